"""Shares work between processes of one machine: a free process claims the next item of a list.

Beam's local runner divides the work in advance, so a process that starts late or runs on a slow core delays the end. Here every
process takes the next number from a counter in a locked file, which works on one machine only.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.common.locks import locked

Item = TypeVar("Item")


def claimed(items: Sequence[Item], counter: str) -> Iterator[Item]:
    """Yield the items that this process claims, in order; each item goes to exactly one process.

    Args:
        items: All items, the same in every process.
        counter: Path of the counter file, which must be empty at the start.
    """
    while (number := _next_number(Path(counter))) < len(items):
        yield items[number]


def _next_number(counter: Path) -> int:
    with locked(counter) as descriptor:
        number = int(os.pread(descriptor, 20, 0) or b"0")
        os.pwrite(descriptor, b"%d" % (number + 1), 0)
        return number
