"""Steps whose loss or gradient is not finite: skipped, written down with their clips, and an end to the run when they go on.

DeepSpeed's ZeRO looks at the gradient's norm over all processes anyway, and leaves parameters and optimizer alone where that
is not finite. A loss that isn't finite doesn't always give such a gradient, so it is made to; then all processes agree on
skipping without asking each other, and a good step costs nothing more. The price: what was skipped is known by the clips of
a forward pass, not by the clip; `--replay` looks at single clips.
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
    # Of what only training the transformer needs, which takes seconds to import.
    from training.trainer.setup import Run

SKIPPED_NAME = "skipped.jsonl"
_CLIPS_NAMED = 8
log = logging.getLogger(__name__)


class NonFiniteError(ProjectError):
    """Steps in a row had a loss or gradient that is not finite."""


def propagate_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """The loss, with a gradient of NaN where it is not finite; bit for bit the same where it is. Doesn't synchronise."""
    one, nan = loss.new_ones(()), loss.new_full((), math.nan)
    return loss * torch.where(torch.isfinite(loss.detach()), one, nan)


@dataclass(frozen=True)
class SkippedStep:
    """One skipped step.

    Attributes:
        entry: What `skipped.jsonl` lists of it, apart from its number.
        what: What was not finite, for the log.
        part: `loss` or `gradient`, whichever was not finite first.
        where: More on it for the error that ends the run.
        advice: What to do about it.
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
        limit: Skipped steps in a row that end the run.
        in_row: Steps in a row that were skipped before this process started.
        total: Steps of the run that were skipped before this process started.

    Attributes:
        in_row: Skipped steps in a row, up to now.
        total: Skipped steps of the run.
    """

    def __init__(self, folder: Path, is_first: bool, limit: int, in_row: int, total: int) -> None:
        self._path = folder / SKIPPED_NAME
        self._is_first = is_first
        self._limit = limit
        self.in_row = in_row
        self.total = total

    def count(self, step: int, applied: bool, describe: Callable[[], SkippedStep]) -> None:
        """Count a step if it was skipped. Call it on all ranks.

        Args:
            step: Its number, counted from 0.
            applied: Whether it changed the parameters; the same on all ranks.
            describe: Describes it where it was skipped; called on all ranks.

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
                "step %d is skipped: %s. %s lists them; %d steps of the run were skipped",
                step + 1,
                skipped.what,
                SKIPPED_NAME,
                self.total,
            )
        if self.in_row >= self._limit:
            raise NonFiniteError(
                f"the {skipped.part} was not finite in {self.in_row} steps in a row, the last of them step {step + 1}, "
                f"{skipped.where}. {self._path} lists every skipped step. {skipped.advice}"
            )


def skipped_clips(run: "Run", processes: Processes, step: int, losses: Sequence[torch.Tensor]) -> SkippedStep:
    """Describes a skipped step of pre-training by its clips. Call it on all ranks.

    Args:
        run: What is trained.
        processes: That train it.
        step: Its number, counted from 0.
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
    """Number of skipped steps that a run folder lists."""
    path = folder / SKIPPED_NAME
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def describe_clip(clip: dict[str, Any]) -> str:
    """One clip in words."""
    return f"{clip['dataset']} {clip['episode']} from frame {clip['start']}, view {clip['view']}"


def json_number(value: float) -> float | str:
    """A number as JSON holds it: what is not finite becomes its name."""
    return value if math.isfinite(value) else str(value)


def append_json_line(path: Path, values: dict[str, Any]) -> None:
    """Append a line of JSON to a file and bring it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
