"""The progress line of long work: count, rate and time left on stderr. It refreshes often on a terminal, rarely in a log."""

import sys
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 10.0


def progress_line(total: int | None, unit: str, description: str, initial: int = 0, shown: bool = True) -> "tqdm[Any]":
    """Returns a progress line; use it as a context manager and call `update(n)`.

    Args:
        total: Total number of units; None if unknown.
        unit: Name of a unit, such as `frame`.
        description: What is being done.
        initial: Units that are already done.
        shown: False for all but one of several processes.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=unit,
        desc=description,
        initial=initial,
        disable=not shown,
        dynamic_ncols=on_terminal,
        mininterval=0.2 if on_terminal else _LOG_SECONDS,
        maxinterval=10.0 if on_terminal else 6 * _LOG_SECONDS,
        smoothing=0.1,
    )
