"""Which process of one machine does which task: the next one of a list, whenever it is free.

Beam's runner for one machine divides the work among its processes beforehand, so that one that starts later, or has a slower
core, is waited for at the end. Here every process takes the next number from a counter in a file, under a lock; the price is
a file that all of them reach, so this is for one machine.
"""

import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


def claimed(items: Sequence[Item], counter: str) -> Iterator[Item]:
    """The items that this process is to do, in order; each is given to one process alone.

    Args:
        items: The same in every process.
        counter: Path of a file that is empty before the first process comes.
    """
    while (number := _next_number(Path(counter))) < len(items):
        yield items[number]


def _next_number(counter: Path) -> int:
    with counter.open("r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # Closing the file lets it go.
        number = int(file.read() or b"0")
        file.seek(0)
        file.write(b"%d" % (number + 1))
        return number
