"""Records what may change when a run resumes and still decides its results: mixture weights and number of steps.

Each change is recorded with its first step, so samples and learning rates are pure functions of the history and a step number:
resuming from an older checkpoint repeats exactly what was done, even if the recipe has changed. The cost: the recipe alone
doesn't say what a run did, its folder does.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConflictError

HISTORY_NAME = "record.json"


@dataclass(frozen=True)
class Phase:
    """Settings that hold from one step on.

    Attributes:
        first_step: First step of the phase, counted from 0.
        weights: Weight of each data set, as exact numbers such as `3/5`.
        steps: Number of steps of the whole run; the learning rate schedule depends on it.
    """

    first_step: int
    weights: Mapping[str, str]
    steps: int

    def shares(self) -> dict[str, Fraction]:
        """Returns each data set's share of the samples."""
        total = sum(map(Fraction, self.weights.values()))
        return {name: Fraction(weight) / total for name, weight in self.weights.items()}

    def holds(self, other: "Phase") -> bool:
        """Returns whether another phase has the same settings."""
        return self.steps == other.steps and self.shares() == other.shares()


@dataclass(frozen=True)
class RunHistory:
    """All phases of a run.

    Attributes:
        phases: Phases sorted by first step; the first one starts at step 0.
    """

    phases: tuple[Phase, ...]

    def continued(self, wanted: Phase) -> "RunHistory":
        """Returns the history of a run that resumes at step `wanted.first_step` with the settings `wanted`.

        If `wanted` equals the last phase, the run repeats all phases, also those that start later.
        """
        if self.phases[-1].holds(wanted):
            return self
        before = tuple(phase for phase in self.phases if phase.first_step < wanted.first_step)
        return RunHistory(before if before and before[-1].holds(wanted) else (*before, wanted))

    def steps_at(self, step: int) -> int:
        """Returns the number of steps of the whole run that was planned at step `step`."""
        return next(phase.steps for phase in reversed(self.phases) if phase.first_step <= step)

    def mixtures(self, global_batch: int) -> dict[int, dict[str, Fraction]]:
        """Returns the mixture weights by first sample number, starting at 0; changes that keep all shares are left out."""
        mixtures: dict[int, dict[str, Fraction]] = {}
        shares: dict[str, Fraction] = {}
        for phase in self.phases:
            if phase.shares() != shares:
                shares = phase.shares()
                mixtures[phase.first_step * global_batch] = {name: Fraction(weight) for name, weight in phase.weights.items()}
        return mixtures

    def as_json(self) -> list[dict[str, Any]]:
        """Returns the history as JSON values."""
        return [asdict(phase) for phase in self.phases]


def write_history(folder: Path, history: RunHistory) -> None:
    """Writes the history into a run folder."""
    storage.write_bytes(str(folder / HISTORY_NAME), json.dumps(history.as_json(), indent=1).encode())


def read_history(folder: Path) -> RunHistory | None:
    """Returns the history in a run folder; None if there is none.

    Raises:
        ConflictError: The file is damaged.
    """
    path = folder / HISTORY_NAME
    if not path.exists():
        return None
    try:
        phases = tuple(Phase(**phase) for phase in json.loads(path.read_bytes()))
        steps = [phase.first_step for phase in phases]
        if steps[:1] != [0] or steps != sorted(set(steps)) or not all(phase.shares() for phase in phases):
            raise ValueError("its phases don't start at step 0 in ascending order")
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConflictError(f"{path} is damaged ({error}): restore it, or choose another --output") from error
    return RunHistory(phases)
