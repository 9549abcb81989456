"""Computes how many bytes of a video file are missing, from the sizes in its container; also detects Git LFS pointers.

A decoder reads a truncated file to its end without an error, and the duration in the header is rarely reliable. But containers
store the sizes of their parts, and a truncated file ends inside a part. This works for RIFF (AVI), ISO base media (MP4, MOV),
Matroska (WebM) with a known size, ASF (WMV), MPEG transport streams, and Ogg, which marks its last page. Program streams (MPG)
store no sizes.
"""

import io
import re
from typing import IO

# Some writers include a chunk's header in its size, or leave out padding.
_TOLERATED_BYTES = 64
_TOP_LEVEL = 10_000  # limit of boxes or chunks to read
_LFS_POINTER = b"version https://git-lfs"  # git-lfs, docs/spec.md
_TS_SYNC = 0x47
_TS_PACKETS = (188, 192, 204)
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_ISO_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
# Advanced Systems Format, sections 3.1 and 3.2: the header object holds the file properties, with the file size at byte 40.
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES, _ASF_SIZE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"), 40
_ASF_HEADER = 1 << 16
# RFC 3533, section 6: a page has a header of 27 bytes, a table of up to 255 lengths, and data of their total length.
_OGG, _OGG_HEADER, _OGG_PAGE, _OGG_LAST = b"OggS", 27, 27 + 255 + 255 * 255, 4
_RIFF_OPEN = (0, 0xFFFFFFFF)  # sizes that writers leave if they can't seek back


def is_lfs_pointer(file: IO[bytes]) -> bool:
    """Whether a file is a Git LFS pointer instead of the real file; seeks to the beginning."""
    file.seek(0)
    start = file.read(len(_LFS_POINTER))
    file.seek(0)
    return start == _LFS_POINTER


def bytes_missing(file: IO[bytes]) -> int:
    """Return the number of bytes missing at the end of a file, by the sizes in its container; 0 if none or unknown.

    Args:
        file: A seekable file; its position changes.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(2 * max(_TS_PACKETS))
    if start[:4] == b"RIFF":
        end = _riff_end(file, size)
    elif start[4:8] in _ISO_FIRST:
        end = _iso_end(file, size)
    elif start[:4] == _EBML:
        end = _matroska_end(start)
    elif start[:16] == _ASF:
        end = _asf_end(file)
    elif start[:4] == _OGG:
        return _ogg_missing(file, size)
    else:
        return _packet_missing(start, size)
    return end - size if end > size + _TOLERATED_BYTES else 0


def _riff_end(file: IO[bytes], size: int) -> int:
    """Return the end of the last RIFF chunk; files above 1 GB have several."""
    position = 0
    for _ in range(_TOP_LEVEL):
        file.seek(position)
        header = file.read(8)
        length = int.from_bytes(header[4:8], "little")
        if len(header) < 8 or header[:4] != b"RIFF" or length in _RIFF_OPEN:
            break
        position += 8 + length + length % 2
        if position >= size:
            break
    return position


def _iso_end(file: IO[bytes], size: int) -> int:
    """Return the end of the last top-level box."""
    position = 0
    for _ in range(_TOP_LEVEL):
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if length == 1 and len(header) == 16:
            length = int.from_bytes(header[8:16])
        if len(header) < 8 or length < 8:  # 0 is a box that reaches to the end of the file
            break
        position += length
        if position >= size:
            break
    return position


def _matroska_end(start: bytes) -> int:
    """Return the end of the segment, which holds everything except a short header; 0 if its size is open, as in streams."""
    header, position = _vint(start, 4)
    position += header or 0
    if start[position : position + 4] != _SEGMENT:
        return 0
    length, position = _vint(start, position + 4)
    return 0 if length is None else position + length


def _asf_end(file: IO[bytes]) -> int:
    """Return the stated size of a WMV or ASF file; 0 if it isn't stated, as in broadcasts."""
    file.seek(0)
    header = file.read(_ASF_HEADER)
    place = header.find(_ASF_PROPERTIES)
    return 0 if place < 0 else int.from_bytes(header[place + _ASF_SIZE : place + _ASF_SIZE + 8], "little")


def _ogg_missing(file: IO[bytes], size: int) -> int:
    """Return the bytes missing in the last page; 1 if the page is complete but not marked as the last of its stream."""
    file.seek(max(0, size - _OGG_PAGE))
    tail = file.read()
    for place in (found.start() for found in reversed(list(re.finditer(_OGG, tail)))):
        header = tail[place : place + _OGG_HEADER]
        if len(header) < _OGG_HEADER:
            return _OGG_HEADER - len(header)
        if header[4]:  # the version isn't 0: these letters occur in a picture
            continue
        table = tail[place + _OGG_HEADER : place + _OGG_HEADER + header[26]]
        missing = header[26] - len(table) + sum(table) - (len(tail) - place - _OGG_HEADER - len(table))
        return max(0, missing) or int(not header[5] & _OGG_LAST)
    return 0


def _vint(data: bytes, position: int) -> tuple[int | None, int]:
    """Return an EBML number and the position after it; None for the number that means `unknown`."""
    first = data[position] if position < len(data) else 0
    width = 9 - first.bit_length()
    mask = (1 << 7 * width) - 1
    value = int.from_bytes(data[position : position + width]) & mask
    return (None if value == mask or not first else value), position + width


def _packet_missing(start: bytes, size: int) -> int:
    """Return the bytes missing in the last packet of a transport stream; whole lost packets can't be detected."""
    for packet in _TS_PACKETS:
        offset = 4 if packet == 192 else 0  # a time stamp before each packet
        if len(start) > offset + packet and start[offset] == start[offset + packet] == _TS_SYNC:
            return -size % packet
    return 0
