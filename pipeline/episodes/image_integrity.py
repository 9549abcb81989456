"""Whether an encoded image is whole, without decoding it: for frames that stay as they are.

A PNG carries a checksum over each of its chunks. A JPEG carries none, and following its Huffman codes is three quarters of the
cost of decoding it, for which it finds one flipped bit in four. But compressed data can't hold certain pairs of bytes, so
foreign bytes show, most blocks of 512 and all of 4 KiB, and so do a lost end and blocks of zeros, at a tenth of that cost.
Flipped bits are for formats that keep checksums over all they hold, as TFRecord does; images from others are to be decoded.
"""

import re
import zlib
from collections.abc import Iterator

_JPEG_SCAN = 0xDA
_RESTART_INTERVAL = 0xDD
# SOF0 and SOF1: all components of one picture come in one scan, behind which nothing but the end may follow.
_SEQUENTIAL = (0xC0, 0xC1)
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
# In compressed data 0xFF is followed by a zero that is no data, by a restart marker's number, or by another 0xFF as filling.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND"
# How many bytes after the end marker pass for padding.
_PADDING = 64
# So many zeros in a row are no compressed picture, but what a file system gives for a block that was never written.
_HOLE = bytes(32)
_HOLES = re.compile(rb"\x00{%d,}" % len(_HOLE))
_READ_AHEAD = 16  # bytes that libjpeg takes in before it uses them
_SEGMENTS = 1000  # before the picture


def passes_integrity_check(data: bytes) -> bool:
    """Whether a JPEG or PNG shows no sign of damage. One that does may still decode: where this says no, decoding decides.

    Args:
        data: Of an image, whose header is sound.
    """
    return _png_is_whole(data) if data.startswith(b"\x89PNG") else _jpeg_looks_whole(data)


def _png_is_whole(data: bytes) -> bool:
    """Whether all chunks up to the end are there and agree with their checksums."""
    view = memoryview(data)
    position = 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data) or zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return False
        if data[position + 4 : position + 8] == _PNG_END:
            return len(data) - end <= _PADDING
        position = end
    return False


def _jpeg_looks_whole(data: bytes) -> bool:
    """Whether the compressed data of a picture in a single scan could be such, and ends with the end marker."""
    start = _scan_start(data)
    if start is None:
        return False
    found = _MARKER.search(data, start)
    if found is None or found[0] != _JPEG_END or len(data) - found.end() > _PADDING:
        return False
    return data.find(_HOLE, start, found.start()) < 0


def is_truncated(data: bytes, stray: int) -> bool:
    """Whether a JPEG has no end marker, fewer restart markers than its header promises, or a hole.

    Args:
        data: Of a JPEG, whose header is sound.
        stray: Bytes before a marker that its decoder had no use for. Zeros that it did use were no part of the picture.
    """
    last_scan, end = data.rfind(bytes([0xFF, _JPEG_SCAN])), data.rfind(_JPEG_END)
    if end < last_scan:
        return True
    for zeros in _HOLES.finditer(data, last_scan, end):
        is_filling = data[zeros.end()] == 0xFF and len(zeros[0]) <= stray + _READ_AHEAD
        if not is_filling:
            return True
    interval = units = start = 0
    for marker, position, following in _segments(data):
        if marker == _RESTART_INTERVAL:
            interval = data[position + 4] << 8 | data[position + 5]
        elif marker in _SEQUENTIAL:
            units = _coded_units(data, position)
        start = following
    promised = -(-units // interval) - 1 if interval and start >= last_scan else 0
    return len(_RESTART.findall(data, start, end)) < promised


def _coded_units(data: bytes, position: int) -> int:
    """How many units, of which restart intervals are made, a picture in one scan has; its frame header is at `position`."""
    height, width = (data[position + at] << 8 | data[position + at + 1] for at in (5, 7))
    components = data[position + 9]
    factors = [data[position + 11 + 3 * number] for number in range(components)]
    # One component alone is coded block by block, whatever its sampling factors are.
    across, down = (max(f >> 4 for f in factors), max(f & 15 for f in factors)) if components > 1 else (1, 1)
    return -(-width // (8 * max(1, across))) * -(-height // (8 * max(1, down)))


def _scan_start(data: bytes) -> int | None:
    """Where compressed data begins; None where the picture comes in several scans, or no way leads there."""
    components = 0
    for marker, position, following in _segments(data):
        if marker == _JPEG_SCAN:
            return following if data[position + 4] == components else None
        if marker in _FRAME_HEADERS:
            if marker not in _SEQUENTIAL:
                return None
            components = data[position + 9]
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, place, and place of what follows, of each segment up to the first scan's header and this one included."""
    position = 2
    for _ in range(_SEGMENTS):
        # A segment is as long as the longest field that is read of it, or the data end before the picture begins.
        if position + 10 > len(data) or data[position] != 0xFF:
            return
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        following = position + 2 + (data[position + 2] << 8 | data[position + 3])
        yield marker, position, following
        if marker == _JPEG_SCAN:
            return
        position = following
