"""Steps of tokenizer training whose loss or gradient is not finite: skipped, told, counted, and an end when they go on."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import ProjectError

# In a row, as the default of `training.nonfinite_limit`.
_LIMIT = 5
log = logging.getLogger(__name__)


class SkippedSteps:
    """Keeps count of them; the same on all processes.

    Attributes:
        total: Of the run.
        in_row: One after the other, up to now.
    """

    def __init__(self) -> None:
        self.total = self.in_row = 0

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"skipped_steps": self.total, "skipped_in_row": self.in_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        self.total, self.in_row = state.get("skipped_steps", 0), state.get("skipped_in_row", 0)

    def count(self, step: int, applied: bool, terms: Mapping[str, Tensor], told: bool) -> None:
        """Take note of a step.

        Args:
            step: Its number, from 1.
            applied: Whether it changed the weights.
            terms: Of its loss, on this process.
            told: Whether this process tells of it.

        Raises:
            ProjectError: So many in a row were skipped that the training is lost.
        """
        if applied:
            self.in_row = 0
            return
        self.total += 1
        self.in_row += 1
        bad = ", ".join(f"{name} {float(term.detach())}" for name, term in terms.items() if not torch.isfinite(term))
        what = bad or "its gradient"
        if told:
            log.warning("step %d is skipped: not finite is %s; %d steps of the run were skipped", step, what, self.total)
        if self.in_row >= _LIMIT:
            raise ProjectError(
                f"{self.in_row} steps in a row were not finite, the last of them step {step} ({what}): lower "
                "tokenizer.learning_rate or the weights of the losses, and begin anew in another --output"
            )
