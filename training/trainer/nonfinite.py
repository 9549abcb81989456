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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def poisoned(loss: torch.Tensor) -> torch.Tensor:
    """The loss, with a gradient of NaN where it is not finite; bit for bit the same where it is. Doesn't synchronise."""
    one, nan = loss.new_ones(()), loss.new_full((), math.nan)
    return loss * torch.where(torch.isfinite(loss.detach()), one, nan)


class SkippedSteps:
    """Keeps count of the steps that were skipped. All ranks hold one, rank 0's writes `skipped.jsonl`.

    Args:
        run: What is trained.
        processes: That train it.

    Attributes:
        in_row: Steps skipped one after the other, up to now.
        total: Steps skipped since the run began; of rank 0 alone, which has the list.
    """

    def __init__(self, run: "Run", processes: Processes) -> None:
        self._run = run
        self._processes = processes
        self.in_row = run.checkpoint.progress.skipped if run.checkpoint else 0
        self.total = _lines(run.folder / SKIPPED_NAME) if processes.is_first else 0

    def count(self, step: int, applied: bool, losses: Sequence[torch.Tensor]) -> None:
        """Take note of a step. Call it on all ranks.

        Args:
            step: Its number, counted from 0.
            applied: Whether it changed the parameters; the same on all ranks.
            losses: Loss of each micro step of this rank.

        Raises:
            NonFiniteError: As many steps in a row were skipped as the recipe allows.
        """
        if applied:
            self.in_row = 0
            return
        self.in_row += 1
        ranks = self._processes.gather_tensor(torch.stack(list(losses)).double().cpu())
        entry = self._describe(step, torch.cat(ranks).tolist())
        if self._processes.is_first:
            append_line(self._run.folder / SKIPPED_NAME, entry)
            self.total += 1
            log.warning("%s", self._told(entry))
        if self.in_row >= self._run.recipe.training.nonfinite_limit:
            raise NonFiniteError(self._reason(entry))

    def _describe(self, step: int, losses: Sequence[float]) -> dict[str, Any]:
        """What is written down of a skipped step: every clip with the loss of the forward pass that it was in."""
        plan = self._run.plan
        first = step * plan.global_batch
        clips = self._run.clips(first, plan.global_batch)
        for number, clip in enumerate(clips):
            clip["loss"] = json_number(losses[number // plan.micro_batch])
        return {"step": step + 1, "in_row": self.in_row, "clips": clips}

    def _told(self, entry: dict[str, Any]) -> str:
        """One skipped step in words."""
        suspects = _suspects(entry)
        clips = collections.Counter(clip["dataset"] for clip in suspects or entry["clips"])
        counted = ", ".join(f"{count} of {name}" for name, count in sorted(clips.items()))
        losses = " or ".join(sorted({clip["loss"] for clip in suspects}))
        what = (
            f"a loss is {losses} among its clips, {counted}"
            if suspects
            else f"its gradient is not finite; its clips: {counted}"
        )
        return f"step {entry['step']} is skipped: {what}. {SKIPPED_NAME} lists them; {self.total} steps of the run were skipped"

    def _reason(self, entry: dict[str, Any]) -> str:
        suspects = _suspects(entry)
        named = (suspects or entry["clips"])[:_CLIPS_NAMED]
        rest = len(suspects or entry["clips"]) - len(named)
        what = "loss" if suspects else "gradient"
        return (
            f"the {what} was not finite in {self.in_row} steps in a row, the last of them step {entry['step']}, with the clips "
            f"{'; '.join(map(clip_name, named))}{f' and {rest} more' if rest else ''}. {self._run.folder / SKIPPED_NAME} lists "
            f"those of every skipped step, `--replay {entry['step']}` shows the loss of each. Leave the clips out, lower "
            "training.learning_rate, or raise training.nonfinite_limit."
        )


def _suspects(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The clips of the forward passes whose loss was not finite."""
    return [clip for clip in entry["clips"] if isinstance(clip["loss"], str)]


def _lines(path: Path) -> int:
    """Lines of a file, none where it isn't there."""
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def clip_name(clip: dict[str, Any]) -> str:
    """One clip in words."""
    return f"{clip['dataset']} {clip['episode']} from frame {clip['start']}, view {clip['view']}"


def json_number(value: float) -> float | str:
    """A number as JSON holds it: what is not finite becomes its name."""
    return value if math.isfinite(value) else str(value)


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append a line of JSON to a file and bring it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
