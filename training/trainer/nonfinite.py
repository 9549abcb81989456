"""Skips steps whose loss or gradient is not finite, records their clips, and ends the run after too many in a row.

DeepSpeed's ZeRO checks the gradient norm over all processes anyway and skips the update if it is not finite. A non-finite loss
doesn't always give such a gradient, so `propagate_nonfinite` forces it. Then all processes skip without asking each other, and
a good step
costs nothing extra. The cost: only the forward pass that failed is known, not the clip; `--replay` shows single clips.
"""

import collections
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from pipeline.common.errors import ProjectError
from training.distributed import Processes

if TYPE_CHECKING:
    # Takes seconds to import.
    from training.trainer.run import Run

SKIPPED_NAME = "skipped.jsonl"
_CLIPS_NAMED = 8
log = logging.getLogger(__name__)


class NonFiniteError(ProjectError):
    """Too many steps in a row had a loss or gradient that is not finite."""


def propagate_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """Returns the loss, with NaN gradient if it is not finite; otherwise bit for bit unchanged. Doesn't synchronize."""
    one, nan = loss.new_ones(()), loss.new_full((), math.nan)
    return loss * torch.where(torch.isfinite(loss.detach()), one, nan)


@dataclass(frozen=True)
class SkippedStep:
    """A skipped step.

    Attributes:
        entry: Content of its line in `skipped.jsonl`, without the step number.
        what: What was not finite, for the log.
        part: Which of loss and gradient was not finite first.
        where: Details for the error that ends the run.
        advice: What the user can do about it.
    """

    entry: dict[str, Any]
    what: str
    part: Literal["loss", "gradient"]
    where: str
    advice: str


class SkippedSteps:
    """Counts skipped steps. All ranks hold one; rank 0's writes `skipped.jsonl`.

    Args:
        folder: Run folder.
        is_first: Whether this is rank 0.
        limit: Number of skipped steps in a row that ends the run.
        in_row: Number of steps in a row that were skipped before this process started.
        total: Number of skipped steps of the run before this process started.

    Attributes:
        in_row: Number of steps in a row that were skipped, up to now.
        total: Number of skipped steps of the run.
    """

    def __init__(self, folder: Path, is_first: bool, limit: int, in_row: int, total: int) -> None:
        self._path = folder / SKIPPED_NAME
        self._is_first = is_first
        self._limit = limit
        self.in_row = in_row
        self.total = total

    def count(self, step: int, applied: bool, describe: Callable[[], SkippedStep]) -> None:
        """Counts a step if it was skipped. Call it on all ranks.

        Args:
            step: Number of the step, counted from 0.
            applied: Whether it changed the parameters; the same on all ranks.
            describe: Describes a skipped step; called on all ranks.

        Raises:
            NonFiniteError: The limit is reached.
        """
        if applied:
            self.in_row = 0
            return
        self.in_row += 1
        self.total += 1
        skipped = describe()
        if self._is_first:
            append_json_line(self._path, {"step": step + 1, "in_row": self.in_row, **skipped.entry})
            log.warning(
                "step %d is skipped: %s. %s lists them; %d steps of the run were skipped so far",
                step + 1,
                skipped.what,
                SKIPPED_NAME,
                self.total,
            )
        if self.in_row >= self._limit:
            raise NonFiniteError(
                f"the {skipped.part} was not finite in {self.in_row} steps in a row, up to step {step + 1}, "
                f"{skipped.where}. {self._path} lists every skipped step. {skipped.advice}"
            )


def skipped_clips(run: "Run", processes: Processes, step: int, losses: Sequence[torch.Tensor]) -> SkippedStep:
    """Describes a skipped step of pre-training by its clips. Call it on all ranks.

    Args:
        run: The run.
        processes: Processes of the run.
        step: Number of the step, counted from 0.
        losses: Loss of each micro step of this rank.
    """
    ranks = processes.gather_tensor(torch.stack(list(losses)).double().cpu())
    by_micro_step = torch.cat(ranks).tolist()
    clips = run.clips(step * run.plan.global_batch, run.plan.global_batch)
    for number, clip in enumerate(clips):
        clip["loss"] = json_number(by_micro_step[number // run.plan.micro_batch])
    suspects = [clip for clip in clips if isinstance(clip["loss"], str)]
    listed = suspects or clips
    counts = collections.Counter(clip["dataset"] for clip in listed)
    counted = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
    found = " or ".join(sorted({clip["loss"] for clip in suspects}))
    named = "; ".join(map(describe_clip, listed[:_CLIPS_NAMED]))
    more = len(listed) - _CLIPS_NAMED
    return SkippedStep(
        entry={"clips": clips},
        what=f"a loss is {found} among its clips, {counted}"
        if suspects
        else f"its gradient is not finite; its clips: {counted}",
        part="loss" if suspects else "gradient",
        where=f"with the clips {named}" + (f" and {more} more" if more > 0 else ""),
        advice=f"`--replay {step + 1}` shows the loss of each clip. Leave the clips out, lower training.learning_rate, or "
        "raise training.nonfinite_limit.",
    )


def skipped_before(folder: Path) -> int:
    """Returns the number of skipped steps that a run folder lists."""
    path = folder / SKIPPED_NAME
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def describe_clip(clip: dict[str, Any]) -> str:
    """Returns a clip's source in words."""
    return f"{clip['dataset']} {clip['episode']} from frame {clip['start']}, view {clip['view']}"


def json_number(value: float) -> float | str:
    """Returns a number as a JSON value: a non-finite one becomes its name."""
    return value if math.isfinite(value) else str(value)


def append_json_line(path: Path, values: dict[str, Any]) -> None:
    """Appends a line of JSON to a file and flush it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
