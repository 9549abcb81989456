"""Chooses the precision of a run: half precision only on devices that are fast at it.

GPUs are fast at it. A CPU needs special instructions; without them (AMD before Zen 4, Intel desktop CPUs) a core computes 3.3
GFLOP/s in bf16 and 42 in fp32. The precision is stored in the run's recipe or in its token shards, and the run keeps it when it
resumes on another machine.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch

Name = TypeVar("Name", bound=str)

# The instructions that make a CPU fast, under the names of `torch.cpu.get_capabilities`.
_NEEDED = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
# Values of oneDNN's environment variable that disable these instructions. torch computes its matrix products with oneDNN.
_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
_WITHOUT = {"bf16": _WITHOUT_BF16, "fp16": _WITHOUT_BF16 | {"AVX512_CORE_BF16"}}
_INSTRUCTIONS = {"bf16": "AVX-512 BF16 or AMX", "fp16": "AVX-512 FP16 or AMX-FP16"}


@dataclass(frozen=True)
class PrecisionChoice(Generic[Name]):
    """The chosen precision.

    Attributes:
        precision: The precision to compute in.
        reason: One line for the user if it differs from the recipe or is slow; else None.
    """

    precision: Name
    reason: str | None = None


def slow_precisions(device: torch.device) -> frozenset[str]:
    """The half precisions in which a device is slower than in fp32. None for a GPU; for a CPU it depends on oneDNN."""
    if device.type != "cpu":
        return frozenset()
    capabilities = torch.cpu.get_capabilities() if torch.backends.mkldnn.is_available() else {}
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    return frozenset(
        name
        for name, needed in _NEEDED.items()
        if limit in _WITHOUT[name] or not any(capabilities.get(instructions, False) for instructions in needed)
    )


def choose_precision(key: str, requested: Name, slow: Collection[str], current: str | None = None) -> PrecisionChoice[Name]:
    """Choose the precision of a run.

    Args:
        key: Recipe key of the precision, for messages.
        requested: Precision in the recipe.
        slow: Precisions at which the device is slow, from `slow_precisions`.
        current: Precision of the run so far; None for a new run. A run in fp32 stays in fp32 if the recipe requests half
            precision, because it may have started on a slow CPU. The caller checks all other differences.
    """
    if current is None:
        if requested not in slow:
            return PrecisionChoice(requested)
        return PrecisionChoice(
            cast(Name, "fp32"),
            f"{key}: fp32 instead of {requested}, at which this CPU is slow (it has no {_INSTRUCTIONS[requested]})",
        )
    if current == "fp32" and requested in _NEEDED:
        return PrecisionChoice(cast(Name, "fp32"), f"{key}: stays fp32, in which this run started, instead of {requested}")
    if current == requested and requested in slow:
        return PrecisionChoice(
            requested,
            f"{key}: stays {requested}, in which this run started, though this CPU is slow at it (it has no "
            f"{_INSTRUCTIONS[requested]}); a run with another --output uses fp32",
        )
    return PrecisionChoice(requested)
