"""The fleet's progress on one line of the first process: clips, rate, time left, shards, and how long devices waited.

Every process adds what it did to counters in the store, a few times a second at most, so that a large fleet doesn't keep the
store busy.
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
    """What a worker did since it last said so.

    Attributes:
        rows: Rows that went to the model, and those of shards made elsewhere.
        shards: Shards handed to the writer, failed ones included.
        waited: Seconds in which the model had nothing to do for want of clips.
        passed: Seconds in all.
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
    """Counts of the whole fleet, shown on `line`.

    Args:
        fleet: Of which this process is part.
        line: Of the first process; in the others it is not shown.
        shards: Shards to be made in all.
    """

    def __init__(self, fleet: Fleet, line: "tqdm[object]", shards: int) -> None:
        self._fleet = fleet
        self._line = line
        self._shards = shards
        self._pending = WorkerProgress()
        self._sent = 0.0

    def __call__(self, progress: WorkerProgress) -> None:
        """Add what this process did."""
        self._pending += progress
        if time.monotonic() - self._sent > _SECONDS_BETWEEN:
            self.send()

    def send(self) -> None:
        """Add what is not yet in the store to it, and show the sums."""
        pending, self._pending = self._pending, WorkerProgress()
        self._sent = time.monotonic()
        rows = self._fleet.count("rows", pending.rows)
        shards = self._fleet.count("shards", pending.shards)
        # The store counts whole numbers.
        waited = self._fleet.count("waited", round(1000 * pending.waited))
        passed = self._fleet.count("passed", round(1000 * pending.passed))
        share = f", {waited / passed:.0%} of the time waiting for clips" if passed else ""
        self._line.set_postfix_str(f"{shards}/{self._shards} shards{share}", refresh=False)
        self._line.update(rows - self._line.n)

    def end(self) -> None:
        """Show that all is done: held-out and left-out episodes gave fewer clips than were planned."""
        self.send()
        self._line.total = self._line.n
        self._line.refresh()
