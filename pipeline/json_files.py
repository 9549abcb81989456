"""JSON files of unknown origin: whatever they hold, reading one gives a value or a `ValueError`, in bounded memory.

Python's own parser raises other errors for what nests too deeply, takes `NaN`, which is no JSON, and lets a number be infinite
(`1e999`), which then fails wherever a whole one is wanted.
"""

import json
import math
from typing import Any

from pipeline import storage

MAX_JSON_BYTES = 256 << 20


def parse_json(data: bytes | str) -> Any:
    """The value that JSON text holds.

    Raises:
        ValueError: It is no JSON, nests too deeply, or holds a number that is not finite.
    """
    try:
        return json.loads(data, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error


def read_json(path: str) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: It can't be opened.
        ValueError: See `parse_json`; or it is larger than `MAX_JSON_BYTES`.
    """
    if (size := storage.size(path)) > MAX_JSON_BYTES:
        raise ValueError(f"it has {size} bytes, the limit is {MAX_JSON_BYTES}")
    return parse_json(storage.read_bytes(path))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number
