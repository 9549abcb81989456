"""In which precision a machine computes what a recipe asks for: half precision only where its processor is fast at it.

GPUs are. A CPU needs instructions for it; one without them (AMD before Zen 4, Intel's desktops) takes numbers apart one by one:
a core then makes 3.3 GFLOP/s in bf16 and 42 in fp32. The choice belongs to a run: it is written into its recipe or its token
shards, and a run goes on in the precision that it has, on whatever machine.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch

Name = TypeVar("Name", bound=str)

# The instructions that make a CPU fast, as `torch.cpu.get_capabilities` names them.
_NEEDED = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
# What oneDNN, which computes torch's products, goes without when its environment variable holds it to one of these.
_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
_WITHOUT = {"bf16": _WITHOUT_BF16, "fp16": _WITHOUT_BF16 | {"AVX512_CORE_BF16"}}
_INSTRUCTIONS = {"bf16": "AVX-512 BF16 or AMX", "fp16": "AVX-512 FP16 or AMX-FP16"}


@dataclass(frozen=True)
class PrecisionChoice(Generic[Name]):
    """What is computed in.

    Attributes:
        used: The precision.
        why: One line for people where it isn't simply what the recipe asks for, or is slow; else None.
    """

    precision: Name
    reason: str | None = None


def slow_precisions(device: torch.device) -> frozenset[str]:
    """The half precisions that a device is slower at than at fp32: none for a GPU; for a CPU as oneDNN will use it."""
    if device.type != "cpu":
        return frozenset()
    capabilities = torch.cpu.get_capabilities() if torch.backends.mkldnn.is_available() else {}
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    return frozenset(
        name
        for name, needed in _NEEDED.items()
        if limit in _WITHOUT[name] or not any(capabilities.get(instructions, False) for instructions in needed)
    )


def choose_precision(key: str, asked: Name, slow: Collection[str], known: str | None = None) -> PrecisionChoice[Name]:
    """The precision that a run computes in.

    Args:
        key: Of the recipe that asks, for the line that says why.
        asked: What the recipe asks for.
        slow: What the device is slow at, of `slow_precisions`.
        known: In which the run computed so far; None begins it. A run in fp32 goes on so where a recipe asks for half
            precision, because it may have begun on a CPU that is slow at that. Other differences are for the caller to refuse.
    """
    if known is None:
        if asked not in slow:
            return PrecisionChoice(asked)
        return PrecisionChoice(
            cast(Name, "fp32"), f"{key}: fp32 in place of {asked}, at which this CPU is slow (it has no {_INSTRUCTIONS[asked]})"
        )
    if known == "fp32" and asked in _NEEDED:
        return PrecisionChoice(cast(Name, "fp32"), f"{key}: stays fp32, in which this run began, in place of {asked}")
    if known == asked and asked in slow:
        return PrecisionChoice(
            asked,
            f"{key}: stays {asked}, in which this run began, though this CPU is slow at it (it has no {_INSTRUCTIONS[asked]}); "
            "a run with another --output takes fp32",
        )
    return PrecisionChoice(asked)
