"""Reads the columns of RLDS records: numbers, pixels and texts, in any encoding.

Records are untrusted: the decompressed size of a value and the number of values in an episode are limited.
"""

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pipeline.common.errors import BadEpisodeError
from pipeline.episodes.frames import MAX_PIXELS
from pipeline.sources.base import MAX_FRAMES
from pipeline.sources.rlds.spec import Column, action_meaning
from pipeline.sources.tfrecord.example import Columns, feature_values

_MAX_TEXT = 10_000
_MAX_NUMBERS = 1 << 25  # limit of one column in one episode: 335 numbers for each of the most steps


def numbers(columns: Columns, column: Column, steps: int) -> np.ndarray:
    """Return a numeric column of an episode, (N, width).

    Args:
        columns: Features of the record.
        column: The column; its width may be known only from the record.
        steps: Number of steps of the episode, at least 1. N may differ, because a column may leave out the last step; the
            caller compares them.

    Raises:
        BadEpisodeError: Values are missing, too many, of different lengths, or don't have the stated form.
    """
    flat, count = _flat(columns, column)
    known = math.prod(1 if side is None else side for side in column.shape)
    elements = 0
    if column.sequences:
        count, elements = _sequences(columns, column)
    elif count is None:
        width = column.width
        count = len(flat) // width if width else next((n for n in (steps, steps - 1) if n and len(flat) % n == 0), 0)
    per_step = len(flat) // count if count else 0
    if column.sequences:
        fits = elements > 0 and len(flat) % elements == 0 and (None in column.shape or len(flat) == elements * known)
    else:
        fits = per_step == column.width if column.width is not None else known > 0 and per_step % known == 0
    if not per_step or per_step * count != len(flat) or not fits:
        wanted = "as many" if column.width is None else column.width
        raise BadEpisodeError(f"feature {column.path} doesn't hold {wanted} numbers a step: {len(flat)} for {steps} steps")
    return flat.reshape(count, per_step)


def _flat(columns: Columns, column: Column) -> tuple[np.ndarray, int | None]:
    """Return all numbers of a column in one row, and the number of encoded values (None if numbers aren't encoded)."""
    values = feature_values(columns, column.values)
    if len(values) > _MAX_NUMBERS:
        raise BadEpisodeError(f"feature {column.path} holds {len(values)} values, the limit is {_MAX_NUMBERS}")
    if column.encoding == "none":
        try:
            flat = np.array(values, dtype=np.float64 if values and isinstance(values[0], float) else np.int64)
        except (ValueError, TypeError) as error:
            width = "" if column.width is None else f"{column.width} "
            raise BadEpisodeError(f"feature {column.path} doesn't hold {width}numbers a step: {error}") from error
        # Records store unsigned numbers as signed numbers with the same bits.
        return (flat.view(np.uint64) if column.dtype == "uint64" and flat.dtype == np.int64 else flat), None
    size = 2 if column.dtype == "bfloat16" else np.dtype(column.dtype).itemsize
    stated, left = None if column.sequences or column.width is None else column.width * size, _MAX_NUMBERS * size
    parts = []
    for value in values:
        parts.append(_bytes_of(value, column, left if stated is None else min(stated, left)))
        left -= len(parts[-1])
    sizes = sorted({len(part) for part in parts})
    if len(sizes) > 1 or any(length % size for length in sizes):
        raise BadEpisodeError(f"feature {column.path} holds tensors of {sizes[0]} and {sizes[-1]} bytes, of {column.dtype}")
    return _as_numbers(b"".join(parts), column.dtype), len(parts)


def _as_numbers(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def _bytes_of(value: Any, column: Column, limit: int) -> bytes:
    """Return the bytes of an encoded tensor, at most `limit`."""
    if not isinstance(value, bytes):
        raise BadEpisodeError(f"feature {column.path} doesn't hold tensors encoded as {column.encoding}")
    if column.encoding == "zlib":
        stream = zlib.decompressobj()
        try:
            # One extra byte shows that the stream is too long.
            value = stream.decompress(value, limit + 1)
        except zlib.error as error:
            raise BadEpisodeError(f"feature {column.path} doesn't hold a tensor as zlib: {error}") from error
        if len(value) <= limit and not stream.eof:
            raise BadEpisodeError(f"feature {column.path} holds a tensor as zlib that is cut short")
    if len(value) > limit:
        raise BadEpisodeError(f"feature {column.path} doesn't hold a tensor of shape {column.shape}: more than {limit} bytes")
    return value


def _sequences(columns: Columns, column: Column) -> tuple[int, int]:
    """Return the number of steps and of values in a column of sequences, which must all have the same length."""
    counts = [0]
    for level in range(column.sequences):
        lengths = np.array(feature_values(columns, f"{column.path}/ragged_row_lengths_{level}")[: _MAX_NUMBERS + 1], np.int64)
        # The level above gives the number of lengths; nothing gives the number of steps.
        if not len(lengths) or len(lengths) > _MAX_NUMBERS or (level and len(lengths) != counts[-1]) or lengths.min() < 0:
            raise BadEpisodeError(f"feature {column.path} holds sequences whose lengths can't be")
        if lengths.min() != lengths.max():
            raise BadEpisodeError(
                f"feature {column.path} holds sequences of different lengths, {lengths.min()} to {lengths.max()}"
            )
        if not level:
            counts[0] = len(lengths)
        counts.append(len(lengths) * int(lengths[0]))
    return counts[0], counts[-1]


def pixels(columns: Columns, camera: Column) -> Iterator[np.ndarray]:
    """Yield the frames of a camera that is stored as pixels, each (H, W, 3) uint8.

    Raises:
        BadEpisodeError: A frame is invalid or too large.
    """
    height, width = (side or 0 for side in camera.shape[:2])
    if not 0 < height * width <= MAX_PIXELS:
        raise BadEpisodeError(f"image of {height} x {width} pixels, the limit is {MAX_PIXELS} in all")
    size = height * width * 3
    values = feature_values(columns, camera.path, None if camera.encoding == "none" else "bytes_list")
    count = -(-len(values) // size) if camera.encoding == "none" else len(values)
    if count > MAX_FRAMES:
        raise BadEpisodeError(f"{count} frames, the limit is {MAX_FRAMES}")
    for place in range(count):
        try:
            if camera.encoding == "none":
                # One frame at a time, because each number of a record takes eight bytes.
                yield np.array(values[place * size : (place + 1) * size], np.uint8).reshape(height, width, 3)
            else:
                yield np.frombuffer(_bytes_of(values[place], camera, size), np.uint8).reshape(height, width, 3)
        except (ValueError, TypeError, OverflowError) as error:
            raise BadEpisodeError(f"feature {camera.path} doesn't hold a tensor of shape {camera.shape}: {error}") from error


def joined(columns: Columns, parts: tuple[Column, ...], steps: int) -> tuple[np.ndarray | None, str]:
    """Concatenate the parts of an action or state; return (N, A) and the meaning of its columns, or None without parts.

    Raises:
        BadEpisodeError: See `numbers`; or the parts have different lengths.
    """
    if not parts:
        return None, ""
    arrays = [numbers(columns, part, steps) for part in parts]
    arrays = [array[:, : array.shape[1] // part.spans] for array, part in zip(arrays, parts, strict=True)]
    if len({len(array) for array in arrays}) > 1:
        raise BadEpisodeError(f"parts of different lengths: { {p.name: len(a) for p, a in zip(parts, arrays, strict=True)} }")
    return np.concatenate(arrays, axis=1), action_meaning(parts, [array.shape[1] for array in arrays])


def per_step(columns: Columns, column: Column | None, steps: int, dtype: DTypeLike) -> np.ndarray | None:
    """Return one number per step, (steps,), or None without a column.

    Raises:
        BadEpisodeError: See `numbers`; or their number isn't `steps`.
    """
    if column is None:
        return None
    with np.errstate(over="ignore"):  # `make_episode` finds infinite values
        return of_length(numbers(columns, column, steps)[:, 0].astype(dtype), steps, column.name)


def of_length(array: np.ndarray, count: int, what: str) -> np.ndarray:
    """Return `array`, or raise `BadEpisodeError` if its length isn't `count`."""
    if len(array) != count:
        raise BadEpisodeError(f"{len(array)} {what} for {count} frames")
    return array


def text(columns: Columns, column: Column | None) -> str:
    """Return the first non-empty text of a column. Rows of several numbers spell the text, padded with zeros."""
    if column is None:
        return ""
    values = feature_values(columns, column.path)
    if not len(values):
        return ""
    if column.encoding == "none" and isinstance(values[0], bytes):
        return next((value for value in values if value), b"")[:_MAX_TEXT].decode(errors="replace")
    rows = numbers(columns, column, 1)
    if column.width == 1:
        return str(rows[0, 0])
    row = next((row[row != 0] for row in rows if row.any()), np.zeros(0, np.int64))[:_MAX_TEXT]
    return _spelled(row)


def _spelled(row: np.ndarray) -> str:
    """Decode a row of numbers as UTF-8 bytes, or else as code points."""
    try:
        return bytes(row.tolist()).decode()
    except (ValueError, TypeError):
        return "".join(chr(int(number)) if _is_character(number) else "\ufffd" for number in row.tolist())


def _is_character(number: float) -> bool:
    return 0 < number < 0x110000 and not 0xD800 <= number < 0xE000
