"""Checks the integrity of encoded images without decoding them, for frames whose bytes are kept.

A PNG has a checksum per chunk. A JPEG has none, and following its Huffman codes costs three quarters of decoding it but finds
only one flipped bit in four. But compressed data can't contain certain pairs of bytes. So, at a tenth of that cost, this check
finds a lost end, blocks of zeros and foreign bytes: most blocks of 512 bytes and all of 4 KiB. It misses most flipped bits, so
images from formats without checksums over all data (unlike TFRecord) must be decoded.
"""

import re
import zlib
from collections.abc import Iterator

_JPEG_SCAN = 0xDA
_RESTART_INTERVAL = 0xDD
# SOF0 and SOF1: one scan has all components, and only the end marker may follow it.
_SEQUENTIAL = (0xC0, 0xC1)
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
# In compressed data 0xFF is followed by a stuffed zero, by a restart marker's number, or by another 0xFF as filling.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND"
# Largest number of padding bytes after the end marker.
_PADDING = 64
# So many zeros in a row are a block that the file system never wrote, not compressed data.
_HOLE = bytes(32)
_HOLES = re.compile(rb"\x00{%d,}" % len(_HOLE))
_READ_AHEAD = 16  # bytes that libjpeg reads ahead
_MAX_SEGMENTS = 1000  # before the picture


def passes_integrity_check(data: bytes) -> bool:
    """Whether a JPEG or PNG shows no sign of damage. An image that fails may still decode: then decoding decides.

    Args:
        data: An image with an intact header.
    """
    return _png_is_whole(data) if data.startswith(b"\x89PNG") else _jpeg_looks_whole(data)


def _png_is_whole(data: bytes) -> bool:
    """Whether all chunks up to the end exist and match their checksums."""
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
    """Whether the data of a single-scan JPEG is valid compressed data and ends with the end marker."""
    start = _scan_start(data)
    if start is None:
        return False
    found = _MARKER.search(data, start)
    if found is None or found[0] != _JPEG_END or len(data) - found.end() > _PADDING:
        return False
    return data.find(_HOLE, start, found.start()) < 0


def is_truncated(data: bytes, stray: int) -> bool:
    """Whether a JPEG lacks its end marker or promised restart markers, or has a block of zeros.

    Args:
        data: A JPEG with an intact header.
        stray: Number of bytes before a marker that the decoder ignored; longer runs of zeros are lost data.
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
    """Returns the number of units, which restart intervals count, in one scan; its frame header is at `position`."""
    height, width = (data[position + at] << 8 | data[position + at + 1] for at in (5, 7))
    components = data[position + 9]
    factors = [data[position + 11 + 3 * number] for number in range(components)]
    # A single component is coded by blocks, whatever its sampling factors.
    across, down = (max(f >> 4 for f in factors), max(f & 15 for f in factors)) if components > 1 else (1, 1)
    return -(-width // (8 * max(1, across))) * -(-height // (8 * max(1, down)))


def _scan_start(data: bytes) -> int | None:
    """Returns where compressed data begins; None if the picture has several scans, or the segments don't lead there."""
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
    """Yields marker, position, and position of the next segment, for each segment up to the first scan's header."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        # Callers read up to 10 bytes of a segment; with fewer, the data ends before the picture.
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
