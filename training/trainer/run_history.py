"""What of a run may change from one start to the next and still decides its results: mixture weights and number of steps.

Each is recorded by the step from which it holds, so samples and learning rates stay pure functions of the record and a step
number: going back to an older checkpoint repeats exactly what was done, whatever the recipe says by now. The price: a recipe
alone no longer says what a run did, its folder does.
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
    """What holds from one step on.

    Attributes:
        first_step: The first step that it holds for, counted from 0.
        weights: Data set name -> weight, as exact numbers such as `3/5`.
        steps: Steps of the whole run, which the shape of the learning rate depends on.
    """

    first_step: int
    weights: Mapping[str, str]
    steps: int

    def shares(self) -> dict[str, Fraction]:
        """Data set name -> share of the samples."""
        total = sum(map(Fraction, self.weights.values()))
        return {name: Fraction(weight) / total for name, weight in self.weights.items()}

    def holds(self, other: "Phase") -> bool:
        """Whether another phase asks for the same."""
        return self.steps == other.steps and self.shares() == other.shares()


@dataclass(frozen=True)
class RunHistory:
    """The phases of a run, the first from step 0.

    Attributes:
        phases: By first step, ascending.
    """

    phases: tuple[Phase, ...]

    def continued(self, wanted: Phase) -> "RunHistory":
        """The record of a run that goes on from step `wanted.first_step` as `wanted` says.

        A run that asks for what the last phase says repeats all phases, also those past its first step.
        """
        if self.phases[-1].holds(wanted):
            return self
        before = tuple(phase for phase in self.phases if phase.first_step < wanted.first_step)
        return RunHistory(before if before and before[-1].holds(wanted) else (*before, wanted))

    def steps_at(self, step: int) -> int:
        """Steps of the whole run, as planned when step `step` was made."""
        return next(phase.steps for phase in reversed(self.phases) if phase.first_step <= step)

    def mixtures(self, global_batch: int) -> dict[int, dict[str, Fraction]]:
        """Sample number -> weights from there on, the first at 0; a change that keeps all shares is none."""
        mixtures: dict[int, dict[str, Fraction]] = {}
        shares: dict[str, Fraction] = {}
        for phase in self.phases:
            if phase.shares() != shares:
                shares = phase.shares()
                mixtures[phase.first_step * global_batch] = {name: Fraction(weight) for name, weight in phase.weights.items()}
        return mixtures

    def as_json(self) -> list[dict[str, Any]]:
        """The record as JSON holds it."""
        return [asdict(phase) for phase in self.phases]


def write_history(folder: Path, history: RunHistory) -> None:
    """Write the record into a run folder, in place of the one there."""
    storage.write_bytes(str(folder / HISTORY_NAME), json.dumps(history.as_json(), indent=1).encode())


def read_history(folder: Path) -> RunHistory | None:
    """The record of a run folder; None where there is none.

    Raises:
        ConflictError: It is damaged.
    """
    path = folder / HISTORY_NAME
    if not path.exists():
        return None
    try:
        phases = tuple(Phase(**phase) for phase in json.loads(path.read_bytes()))
        steps = [phase.first_step for phase in phases]
        if steps[:1] != [0] or steps != sorted(set(steps)) or not all(phase.shares() for phase in phases):
            raise ValueError("its phases don't follow each other from step 0")
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConflictError(f"{path} is damaged ({error}): restore it, or choose another --output") from error
    return RunHistory(phases)
