"""Reads JSON files of unknown origin: any content gives a value or a `ValueError`, in bounded memory.

Python's parser raises other errors for deep nesting, accepts `NaN`, which is not JSON, and reads large numbers (`1e999`) as
infinity, which then fails where a whole number is needed.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from pipeline.common import storage

MAX_JSON_BYTES = 256 << 20
ObjectHook = Callable[[dict[str, Any]], Any]


def parse_json(data: bytes | str, object_hook: ObjectHook | None = None) -> Any:
    """Returns the value of JSON text.

    Args:
        data: The text.
        object_hook: Returns the replacement for each parsed object.

    Raises:
        ValueError: The text is not JSON, nests too deeply, or holds a number that is not finite.
    """
    try:
        return json.loads(data, parse_constant=_finite, parse_float=_finite, object_hook=object_hook)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error


def read_json(path: str, object_hook: ObjectHook | None = None, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """Returns the value in a JSON file.

    Args:
        path: A local path or URL.
        object_hook: Returns the replacement for each parsed object.
        most_bytes: Largest size of the file.

    Raises:
        OSError: The file can't be opened.
        ValueError: The file is larger than `most_bytes`, or `parse_json` refuses its text.
    """
    if (size := storage.size(path)) > most_bytes:
        raise ValueError(f"it has {size} bytes, the limit is {most_bytes}")
    return parse_json(storage.read_bytes(path), object_hook)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number
