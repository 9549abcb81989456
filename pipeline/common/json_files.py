"""JSON files of unknown origin: whatever they hold, reading one gives a value or a `ValueError`, in bounded memory.

Python's own parser raises other errors for what nests too deeply, takes `NaN`, which is no JSON, and lets a number be infinite
(`1e999`), which then fails wherever a whole one is wanted.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from pipeline.common import storage

MAX_JSON_BYTES = 256 << 20
ObjectHook = Callable[[dict[str, Any]], Any]


def parse_json(data: bytes | str, object_hook: ObjectHook | None = None) -> Any:
    """The value that JSON text holds.

    Args:
        data: The text.
        object_hook: Gives what takes the place of an object as soon as that is parsed.

    Raises:
        ValueError: It is no JSON, nests too deeply, or holds a number that is not finite.
    """
    try:
        return json.loads(data, parse_constant=_finite, parse_float=_finite, object_hook=object_hook)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error


def read_json(path: str, object_hook: ObjectHook | None = None, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Args:
        path: A local path or URL.
        object_hook: See `parse_json`.
        most_bytes: That it may have.

    Raises:
        OSError: It can't be opened.
        ValueError: See `parse_json`; or it is larger than `most_bytes`.
    """
    if (size := storage.size(path)) > most_bytes:
        raise ValueError(f"it has {size} bytes, the limit is {most_bytes}")
    return parse_json(storage.read_bytes(path), object_hook)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number
