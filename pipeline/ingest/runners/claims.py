"""Which process of one machine does which task: the next one of a list, whenever it is free.

Beam's runner for one machine divides the work among its processes beforehand, so that one that starts later, or has a slower
core, is waited for at the end. Here every process takes the next number from a counter in a file, under a lock; the price is
a file that all of them reach, so this is for one machine.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.common.locks import locked

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
    with locked(counter) as descriptor:
        number = int(os.pread(descriptor, 20, 0) or b"0")
        os.pwrite(descriptor, b"%d" % (number + 1), 0)
        return number
