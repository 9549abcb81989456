"""Compares two runs: their checkpoints bit by bit, and their metrics step by step."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from training.trainer.checkpoints.states import COMPLETE_NAME
from training.trainer.logs.throughput import METRICS_NAME


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Returns the names of tensors that differ in any bit between two checkpoints of the same number of processes.

    Compares parameters, master weights and optimizer state of all ranks. A tensor or file that only one of them has also
    differs.

    Args:
        one: Folder of a checkpoint that this project wrote: the files are pickles, so they must not come from elsewhere.
        other: Folder of the other checkpoint.
    """
    names = [{path.name for path in folder.iterdir() if path.name != COMPLETE_NAME} for folder in (one, other)]
    differing = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        # The files also hold objects of DeepSpeed.
        parts = [torch.load(folder / name, map_location="cpu", weights_only=False) for folder in (one, other)]
        tensors = [dict(_tensors(part, name)) for part in parts]
        for key in sorted(tensors[0].keys() | tensors[1].keys()):
            a, b = (part.get(key) for part in tensors)
            if a is None or b is None or not _same_bits(a, b):
                differing.append(key)
    return differing


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields all tensors in nested mappings and sequences, with their paths."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}/{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for number, part in enumerate(value):
            yield from _tensors(part, f"{name}/{number}")


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)


def read_lines(folder: Path) -> dict[int, dict[str, Any]]:
    """Returns a run's metrics by step, without speed."""
    lines: dict[int, dict[str, Any]] = {}
    for line in (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        kept = ("loss", "held_out_loss", "learning_rate", "gradient_norm", "samples")
        lines.setdefault(values["step"], {}).update({name: values[name] for name in kept if name in values})
    return lines


def differing_steps(one: Path, other: Path, first: int) -> list[int]:
    """Returns the steps from number `first` on, counted from 1, whose metrics differ between two runs."""
    a, b = read_lines(one), read_lines(other)
    return [step for step in sorted(a.keys() | b.keys()) if step >= first and a.get(step) != b.get(step)]


def loss_differences(one: Path, other: Path, first: int) -> dict[int, float]:
    """Returns the absolute loss difference of two runs by step, from step number `first` on, counted from 1."""
    a, b = read_lines(one), read_lines(other)
    return {step: abs(a[step]["loss"] - b[step]["loss"]) for step in sorted(a.keys() & b.keys()) if step >= first}
