"""How many bytes of a video file are missing, by what its container says of its own sizes; whether Git LFS left it out.

A decoder reads a file that lost its tail to its new end and is content, and headers seldom give a duration that could be
trusted. But containers frame their content by sizes, and a copy that was cut short ends inside one. This holds for RIFF (AVI),
ISO base media (MP4, MOV), Matroska (WebM) of known size, ASF (WMV), MPEG transport streams, and Ogg, which marks its last
page; a program stream (MPG) says nothing.
"""

import io
import re
from typing import IO

# Some writers count a chunk's own header, or leave out padding.
_TOLERATED_BYTES = 64
_TOP_LEVEL = 10_000  # boxes or chunks that are looked at
_LFS_POINTER = b"version https://git-lfs"  # git-lfs, docs/spec.md
_TS_SYNC = 0x47
_TS_PACKETS = (188, 192, 204)
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_ISO_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
# Advanced Systems Format, sections 3.1 and 3.2: the header object, in it the file's properties with its size behind 40 bytes.
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES, _ASF_SIZE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"), 40
_ASF_HEADER = 1 << 16
# RFC 3533, section 6: a page has a header of 27 bytes, a table of up to 255 lengths, and what these add up to.
_OGG, _OGG_HEADER, _OGG_PAGE, _OGG_LAST = b"OggS", 27, 27 + 255 + 255 * 255, 4
_RIFF_OPEN = (0, 0xFFFFFFFF)  # sizes that writers leave where they could not go back


def is_lfs_pointer(file: IO[bytes]) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that was not fetched; it stands at its beginning afterwards."""
    file.seek(0)
    start = file.read(len(_LFS_POINTER))
    file.seek(0)
    return start == _LFS_POINTER


def bytes_missing(file: IO[bytes]) -> int:
    """Bytes of a file that its container has and the file does not; 0 where none are, or nobody says.

    Args:
        file: Seekable; where it stands afterwards is not said.
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
        return _lacking_of_packet(start, size)
    return end - size if end > size + _TOLERATED_BYTES else 0


def _riff_end(file: IO[bytes], size: int) -> int:
    """The end of the last of the RIFF chunks, of which files above 1 GB have several."""
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
    """The end of the last top-level box."""
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
    """The end of the segment, which holds everything but a short header; 0 where its size is left open, as in streams."""
    header, position = _vint(start, 4)
    position += header or 0
    if start[position : position + 4] != _SEGMENT:
        return 0
    length, position = _vint(start, position + 4)
    return 0 if length is None else position + length


def _asf_end(file: IO[bytes]) -> int:
    """The size that a file (WMV, ASF) states of itself; 0 where it doesn't, as in broadcasts."""
    file.seek(0)
    header = file.read(_ASF_HEADER)
    place = header.find(_ASF_PROPERTIES)
    return 0 if place < 0 else int.from_bytes(header[place + _ASF_SIZE : place + _ASF_SIZE + 8], "little")


def _ogg_missing(file: IO[bytes], size: int) -> int:
    """What the last page lacks; where it is whole but not marked as the last of its stream, nobody knows how much: 1."""
    file.seek(max(0, size - _OGG_PAGE))
    tail = file.read()
    for place in (found.start() for found in reversed(list(re.finditer(_OGG, tail)))):
        header = tail[place : place + _OGG_HEADER]
        if len(header) < _OGG_HEADER:
            return _OGG_HEADER - len(header)
        if header[4]:  # the version; these letters may occur in a picture too
            continue
        table = tail[place + _OGG_HEADER : place + _OGG_HEADER + header[26]]
        lacking = header[26] - len(table) + sum(table) - (len(tail) - place - _OGG_HEADER - len(table))
        return max(0, lacking) or int(not header[5] & _OGG_LAST)
    return 0


def _vint(data: bytes, position: int) -> tuple[int | None, int]:
    """An EBML number and the position behind it; None for the number that means `unknown`."""
    first = data[position] if position < len(data) else 0
    width = 9 - first.bit_length()
    mask = (1 << 7 * width) - 1
    value = int.from_bytes(data[position : position + width]) & mask
    return (None if value == mask or not first else value), position + width


def _lacking_of_packet(start: bytes, size: int) -> int:
    """What the last packet lacks, for what begins like a transport stream; more may be lost, of which nothing tells."""
    for packet in _TS_PACKETS:
        offset = 4 if packet == 192 else 0  # a time stamp before each packet
        if len(start) > offset + packet and start[offset] == start[offset + packet] == _TS_SYNC:
            return -size % packet
    return 0
