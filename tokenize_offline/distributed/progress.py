"""Shows the fleet's progress on one line of the first process: clips, rate, time left, shards, and time spent waiting.

Every process adds to counters in the store, at most twice a second, so that a large fleet does not overload the store.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenize_offline.distributed.worker_group import Fleet

if TYPE_CHECKING:
    from tqdm import tqdm

_SECONDS_BETWEEN = 0.5


@dataclass(frozen=True)
class WorkerProgress:
    """Work done by a worker since its last report.

    Attributes:
        rows: Rows given to the model, plus rows of shards that another run made.
        shards: Shards given to the writer, failed ones included.
        waited: Seconds in which the model waited for clips.
        passed: Total seconds.
    """

    rows: int = 0
    shards: int = 0
    waited: float = 0.0
    passed: float = 0.0

    def __add__(self, other: "WorkerProgress") -> "WorkerProgress":
        return WorkerProgress(
            self.rows + other.rows, self.shards + other.shards, self.waited + other.waited, self.passed + other.passed
        )


class FleetProgress:
    """Adds up the progress of all processes and shows it on `line`.

    Args:
        fleet: The fleet of this process.
        line: Progress line; only the first process shows it.
        shards: Number of shards to make.
    """

    def __init__(self, fleet: Fleet, line: "tqdm[object]", shards: int) -> None:
        self._fleet = fleet
        self._line = line
        self._shards = shards
        self._pending = WorkerProgress()
        self._sent = 0.0

    def __call__(self, progress: WorkerProgress) -> None:
        """Add progress of this process."""
        self._pending += progress
        if time.monotonic() - self._sent > _SECONDS_BETWEEN:
            self.send()

    def send(self) -> None:
        """Send pending progress to the store and show the sums."""
        pending, self._pending = self._pending, WorkerProgress()
        self._sent = time.monotonic()
        rows = self._fleet.add_to_counter("rows", pending.rows)
        shards = self._fleet.add_to_counter("shards", pending.shards)
        # The store counts integers, so times are sent in milliseconds.
        waited = self._fleet.add_to_counter("waited", round(1000 * pending.waited))
        passed = self._fleet.add_to_counter("passed", round(1000 * pending.passed))
        share = f", {waited / passed:.0%} of the time waiting for clips" if passed else ""
        self._line.set_postfix_str(f"{shards}/{self._shards} shards{share}", refresh=False)
        self._line.update(rows - self._line.n)

    def end(self) -> None:
        """Show 100 %: held-out and skipped episodes gave fewer clips than estimated."""
        self.send()
        self._line.total = self._line.n
        self._line.refresh()
