"""The values of an RLDS record's columns: numbers, pixels and texts, whichever way the record keeps them.

What a record states is never believed: how much a compressed value may become, and how many numbers an episode may have, is
bounded before anything is taken.
"""

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.common.errors import BadEpisodeError
from pipeline.episodes.frames import MAX_PIXELS
from pipeline.sources.base import MAX_FRAMES
from pipeline.sources.rlds.spec import Column, action_meaning
from pipeline.sources.tfrecord.example import Columns, feature_values

_MAX_TEXT = 10_000
_MAX_NUMBERS = 1 << 25  # of one column in one episode: 335 at each of as many steps as there may be


def numbers(columns: Columns, column: Column, steps: int) -> np.ndarray:
    """A numeric column of an episode, (N, width).

    Args:
        columns: The record.
        column: Of which nobody but the record may know the width.
        steps: Of the episode, at least 1. N may differ: a column may leave out the last step, and to compare the two is for
            whoever calls.

    Raises:
        BadEpisodeError: Values are missing, of different lengths, not what they are stated to be, or too many.
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
    """All numbers of a column in one row, and how many values they are of where each value is by itself."""
    values = feature_values(columns, column.values)
    if len(values) > _MAX_NUMBERS:
        raise BadEpisodeError(f"feature {column.path} holds {len(values)} values, the limit is {_MAX_NUMBERS}")
    if column.encoding == "none":
        try:
            flat = np.array(values, dtype=np.float64 if values and isinstance(values[0], float) else np.int64)
        except (ValueError, TypeError) as error:
            wanted = "" if column.width is None else f"{column.width} "
            raise BadEpisodeError(f"feature {column.path} doesn't hold {wanted}numbers a step: {error}") from error
        # Records keep unsigned numbers as signed ones of the same bits.
        return (flat.view(np.uint64) if column.dtype == "uint64" and flat.dtype == np.int64 else flat), None
    size = 2 if column.dtype == "bfloat16" else np.dtype(column.dtype).itemsize
    stated, left = None if column.sequences or column.width is None else column.width * size, _MAX_NUMBERS * size
    parts = []
    for value in values:
        parts.append(_bytes_of(value, column, left if stated is None else min(stated, left)))
        left -= len(parts[-1])
    sizes = sorted({len(part) for part in parts})
    if len(sizes) > 1 or any(one % size for one in sizes):
        raise BadEpisodeError(f"feature {column.path} holds tensors of {sizes[0]} and {sizes[-1]} bytes, of {column.dtype}")
    return _as_numbers(b"".join(parts), column.dtype), len(parts)


def _as_numbers(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":  # The upper half of a float32.
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def _bytes_of(value: Any, column: Column, limit: int) -> bytes:
    """The bytes of an encoded tensor, at most `limit` of them."""
    if not isinstance(value, bytes):
        raise BadEpisodeError(f"feature {column.path} doesn't hold tensors encoded as {column.encoding}")
    if column.encoding == "zlib":
        stream = zlib.decompressobj()
        try:
            # One byte more than there should be is enough to see that a stream doesn't end.
            value = stream.decompress(value, limit + 1)
        except zlib.error as error:
            raise BadEpisodeError(f"feature {column.path} doesn't hold a tensor as zlib: {error}") from error
        if len(value) <= limit and not stream.eof:
            raise BadEpisodeError(f"feature {column.path} holds a tensor as zlib that is cut short")
    if len(value) > limit:
        raise BadEpisodeError(f"feature {column.path} doesn't hold a tensor of shape {column.shape}: more than {limit} bytes")
    return value


def _sequences(columns: Columns, column: Column) -> tuple[int, int]:
    """How many steps a column of sequences has, all of which must have one length, and how many values in all."""
    counts = [0]
    for level in range(column.sequences):
        lengths = np.array(feature_values(columns, f"{column.path}/ragged_row_lengths_{level}")[: _MAX_NUMBERS + 1], np.int64)
        # How many there are, the level above says, and of the steps nobody.
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
    """The frames of a camera that is kept as pixels, each (H, W, 3) uint8.

    Raises:
        BadEpisodeError: One is none, or larger than any frame should be.
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
                # Frame by frame, since a record's numbers take eight bytes each.
                yield np.array(values[place * size : (place + 1) * size], np.uint8).reshape(height, width, 3)
            else:
                yield np.frombuffer(_bytes_of(values[place], camera, size), np.uint8).reshape(height, width, 3)
        except (ValueError, TypeError, OverflowError) as error:
            raise BadEpisodeError(f"feature {camera.path} doesn't hold a tensor of shape {camera.shape}: {error}") from error


def joined(columns: Columns, parts: tuple[Column, ...], steps: int) -> tuple[np.ndarray | None, str]:
    """The parts of an action or a state side by side, (N, A), and what its columns mean; None where there are none.

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


def per_step(columns: Columns, column: Column | None, steps: int, dtype: Any) -> np.ndarray | None:
    """A number of each step, (steps,).

    Raises:
        BadEpisodeError: See `numbers`; or there are more or fewer.
    """
    if column is None:
        return None
    with np.errstate(over="ignore"):  # What becomes infinite, `make_episode` finds.
        return of_length(numbers(columns, column, steps)[:, 0].astype(dtype), steps, column.name)


def of_length(array: np.ndarray, count: int, what: str) -> np.ndarray:
    """`array`, whose length must be `count`."""
    if len(array) != count:
        raise BadEpisodeError(f"{len(array)} {what} for {count} frames")
    return array


def text(columns: Columns, column: Column | None) -> str:
    """The first text of a column that isn't empty; numbers above 1 wide spell it, zeros being padding."""
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
    """Text from UTF-8 bytes or, where one is no byte or the bytes are no UTF-8, code points."""
    try:
        return bytes(row.tolist()).decode()
    except (ValueError, TypeError):
        return "".join(chr(int(number)) if _is_character(number) else "\ufffd" for number in row.tolist())


def _is_character(number: float) -> bool:
    return 0 < number < 0x110000 and not 0xD800 <= number < 0xE000
