"""Prints a command's results: a short table and a path to open on a terminal, or else one line of JSON per result.

The JSON keys are part of the commands' contract.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.common.measured_json import json_values

_LISTED = 6
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
Result = Mapping[str, Any]


def as_json(options: object) -> bool:
    """Whether to print JSON: stdout is not a terminal, or `--json` was given."""
    return bool(getattr(options, "json", False)) or not sys.stdout.isatty()


def show(results: Result | Sequence[Result], options: object, look_at: str | None = None) -> None:
    """Prints one result, or several with the same keys.

    Args:
        results: Values ready for JSON.
        options: Options of the command line, with `json`.
        look_at: Path or URL to open next; printed on a terminal only.
    """
    several = [results] if isinstance(results, Mapping) else list(results)
    if as_json(options):
        text = "\n".join(json.dumps(json_values(result), allow_nan=False) for result in several)
    else:
        text = block(several[0]) if len(several) == 1 else table(several, shutil.get_terminal_size().columns)
        text += f"\n\nLook at {look_at}" if look_at else ""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Without this, Python fails again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def number(value: float, key: str = "") -> str:
    """Formats a number; the last word of its key gives the unit."""
    last = key.rpartition("_")[2]
    if last == "bytes":
        return size(value)
    if not math.isfinite(value):
        return str(value)
    if last == "seconds":
        return duration(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{round(value):,}"
    return f"{value:.4g}"


def size(count: float) -> str:
    """Formats a number of bytes with a unit."""
    power = min(int(math.log(max(count, 1), 1024)), len(_UNITS) - 1)
    return f"{count / 1024**power:.3g} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """Formats seconds, or minutes and hours from 100 seconds on."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def cell(value: object, key: str = "") -> str:
    """Formats a value on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, key)
    if isinstance(value, Mapping):
        # Reasons may contain commas.
        after, between = (":", "; ") if any(" " in name for name in value) else ("", ", ")
        return between.join(f"{name}{after} {cell(item, key)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(cell(part, key) for part in value[:_LISTED])
        return shown + (f" and {len(value) - _LISTED} more" if len(value) > _LISTED else "")
    return str(value)


def block(result: Result, indent: str = "") -> str:
    """Formats one result, one line per value; nested values are indented below their name."""
    shown = {name: value for name, value in result.items() if not _is_empty(value)}
    width = max((len(_label(name)) for name, value in shown.items() if not _is_nested(value)), default=0)
    lines = []
    for name, value in shown.items():
        if not _is_nested(value):
            lines.append(f"{indent}{_label(name):<{width}}  {cell(value, name)}")
        elif isinstance(value, Mapping) and _have_same_keys(list(value.values())):
            rows = [{"": part, **inner} for part, inner in value.items()]
            lines.append(f"{indent}{_label(name)}\n" + _indented(table(rows, 1 << 30), indent + "  "))
        elif isinstance(value, Mapping):
            lines.append(f"{indent}{_label(name)}\n" + block(value, indent + "  "))
        else:
            lines.append(f"{indent}{_label(name)}")
            lines += [f"{indent}  {cell(part)}" for part in value]
    return "\n".join(lines)


def table(results: Sequence[Result], width: int) -> str:
    """Formats results with the same keys as a table; as blocks if a line is wider than the terminal.

    Args:
        results: The rows.
        width: Columns of the terminal.
    """
    every = dict.fromkeys(name for result in results for name in result)
    names = [name for name in every if not all(_is_empty(result.get(name)) for result in results)]
    rows = [[_label(name) for name in names]]
    rows += [[cell(result.get(name), name) for name in names] for result in results]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    if sum(widths) + 2 * len(widths) > width:
        return "\n\n".join(block(result) for result in results)
    numeric = [all(isinstance(result.get(name), int | float | None) for result in results) for name in names]
    lines = [
        "  ".join(
            text.rjust(wide) if right else text.ljust(wide) for text, wide, right in zip(row, widths, numeric, strict=True)
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _label(name: str) -> str:
    return name.replace("_", " ")


def _indented(text: str, indent: str) -> str:
    return "\n".join(indent + line for line in text.splitlines())


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, Mapping | list | tuple | str) and not value)


def _is_nested(value: object) -> bool:
    """Whether a value needs its own lines."""
    if isinstance(value, Mapping):
        return any(isinstance(part, Mapping | list) for part in value.values()) or len(value) > _LISTED
    return isinstance(value, list | tuple) and any(isinstance(part, Mapping | list) or len(str(part)) > 60 for part in value)


def _have_same_keys(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(isinstance(value, Mapping) and value.keys() == values[0].keys() for value in values)
