"""How many bytes of a video file are missing, by what its container says of its own sizes; whether Git LFS left it out.

A decoder reads a file that lost its tail to its new end and is content, and headers seldom give a duration that could be
trusted. But containers frame their content by sizes, and a copy that was cut short ends inside one. This holds for RIFF (AVI),
ISO base media (MP4, MOV), Matroska (WebM) of known size, and MPEG transport streams; a program stream (MPG) says nothing.
"""

import io
from typing import IO

# Some writers count a chunk's own header, or leave out padding.
_TOLERATED_BYTES = 64
_TOP_LEVEL = 10_000  # boxes or chunks that are looked at
_LFS_POINTER = b"version https://git-lfs"  # git-lfs, docs/spec.md
_TS_SYNC = 0x47
_TS_PACKETS = (188, 192, 204)
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_ISO_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
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
