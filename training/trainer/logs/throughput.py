"""Computes a run's metrics, and truncates `metrics.jsonl` when a run resumes.

Losses are averaged over the steps since the last line, in fp64 on the device, so logging every tenth step costs one
synchronization in ten steps. The running sums are saved in checkpoints: a resumed run writes the same lines as an uninterrupted
one.
"""

import contextlib
import json
import logging
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config.model import ModelConfig
from tokenize_offline.metrics import entropy
from tokenize_offline.token_layout import TokenLayout
from training.trainer.nonfinite import SKIPPED_NAME

METRICS_NAME = "metrics.jsonl"
# Former keys by current ones; both are written in this version.
_FORMER_KEYS = {"tokens_per_second": "ids_per_second", "target_tokens_per_second": "label_ids_per_second"}
log = logging.getLogger(__name__)


def with_current_names(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns results of an earlier version with their current keys added."""
    added = {new: results[old] for new, old in _FORMER_KEYS.items() if new not in results and old in results}
    return {**results, **added}


def device_name(device: torch.device) -> str:
    """Returns the name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def reset_peak_memory(device: torch.device) -> None:
    """Resets `peak_memory` of a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory in bytes: on a GPU of tensors since `reset_peak_memory`, on a CPU of this process so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def flops_per_token(model: ModelConfig, layout: TokenLayout) -> float:
    """Returns the FLOPs of a training step per token: 0.79 G for the published small model, 2.67 G for the medium one.

    Six per weight of a matrix (forward and backward), and 12 x layers x width x tokens for attention. The head is computed for
    target tokens only, 237 of 751 in these models, so its weights count by that share.
    """
    layers = model.layers * (4 * model.width**2 + 3 * model.width * model.mlp_width)
    target_share = (layout.sequence_length - layout.prefix_length) / layout.sequence_length
    weights = layers + model.width * layout.vocabulary * target_share
    return 6 * weights + 12 * model.layers * model.width * layout.sequence_length


def target_entropy(ids: np.ndarray, layout: TokenLayout) -> float:
    """Returns the entropy in nats of the target tokens: the loss of a model that only knows how often each token occurs.

    Args:
        ids: (N, L) tokens of clips.
        layout: Layout of these clips.
    """
    return entropy(np.bincount(ids[:, layout.prefix_length :].reshape(-1), minlength=layout.vocabulary))


class StepClock:
    """Times the steps since the last line of metrics.

    Attributes:
        steps: Steps added.
        waited: Seconds of these steps in which the process waited for data.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts again from zero."""
        self.steps, self.waited, self._earlier = 0, 0.0, 0.0
        self._began = time.perf_counter()

    def add(self, waited: float) -> None:
        """Adds a step that waited so many seconds for data."""
        self.steps += 1
        self.waited += waited

    @property
    def seconds(self) -> float:
        """Seconds since the start, without pauses."""
        return self._earlier + time.perf_counter() - self._began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock while this context lasts."""
        self._earlier = self.seconds
        yield
        self._began = time.perf_counter()


class RunningLoss:
    """Mean loss of the steps since the last line; adding to it doesn't synchronize.

    Attributes:
        steps: Number of steps added.
    """

    def __init__(self, device: torch.device) -> None:
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self.steps = 0

    def add(self, losses: list[torch.Tensor]) -> None:
        """Adds a step's loss, the mean over its micro steps."""
        for loss in losses:
            self._total += loss.double() / len(losses)
        self.steps += 1

    @property
    def total(self) -> float:
        """Sum of this process's losses; waits for the device."""
        return float(self._total)

    def reset(self, total: float = 0.0, steps: int = 0) -> None:
        """Restarts from zero, or from what a checkpoint holds."""
        self._total.fill_(total)
        self.steps = steps


def truncate_logs(folder: Path, last_step: int) -> None:
    """Drops a run's metrics and skipped steps after `last_step`; see `_truncate_lines`."""
    for name in (METRICS_NAME, SKIPPED_NAME):
        _truncate_lines(folder / name, last_step)


def _truncate_lines(path: Path, last_step: int) -> None:
    """Drops a file's lines of steps after `last_step`, and lines torn by a crash, so that a resumed run appends to it."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            log.info("%s: dropping an incomplete line", path)
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    staging.replace(path)
