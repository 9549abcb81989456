"""Reads and writes TFRecord files: a stream of byte records, each with its length and two checksums.

Format of a record (TensorFlow's): uint64 length, masked CRC-32C of the length, data, masked CRC-32C of the data; little-endian.
Unlike Beam's reader, this one continues after a damaged record, and never allocates a hostile length.
"""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import google_crc32c
import numpy as np

from pipeline.common import storage
from pipeline.common.errors import SourceError

_LENGTH = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_FRAME = _LENGTH.size + _CHECKSUM.size  # size of a record without its data, in bytes
_MASK = 0xA282EAD8
_SCANNED = 1 << 20
_MAX_GAPS = 64  # limit of damaged places per file, so that hostile files take time proportional to their size
MAX_RECORD_BYTES = 2 << 30  # limit of a protocol buffer


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def write_record(file: IO[bytes], data: bytes) -> None:
    """Append one record to a TFRecord file."""
    length = struct.pack("<Q", len(data))
    file.write(length + _CHECKSUM.pack(_masked_crc(length)))
    file.write(data)
    file.write(_CHECKSUM.pack(_masked_crc(data)))


@dataclass(frozen=True)
class DamagedRecord:
    """Replaces a record that can't be read.

    Attributes:
        reason: Why it can't be read.
        alone: Whether exactly one record is lost, so that later records keep their numbers. If a length is damaged, several
            records may be lost.
    """

    reason: str
    alone: bool


class PackedFileError(SourceError):
    """A TFRecord file is compressed as a whole."""


def _refuse_packed(file: IO[bytes]) -> None:
    """Raise `PackedFileError` if the decompressed file starts with a record; moves the file's position."""
    file.seek(0)
    start = file.read(_SCANNED)
    for name, window in (("gzip", 31), ("zlib", 15)):
        with contextlib.suppress(zlib.error):
            header = zlib.decompressobj(window).decompress(start, _LENGTH.size)
            if _parse_length(header, MAX_RECORD_BYTES + _FRAME)[0] is not None:
                raise PackedFileError(f"the file is compressed as a whole, with {name}: unpack it, and leave it its name")


def scan_records(path: str) -> Iterator[bytes | DamagedRecord]:
    """Yield the records of a TFRecord file in order, with verified checksums; a damaged record loses only itself.

    After a damaged length, the next record is found by the checksum of its length. A false match has a chance of 1 in 4 billion
    per place, and the checksum of its data must match too.

    Raises:
        FileNotFoundError: The file doesn't exist.
        PackedFileError: The file is compressed as a whole.
    """
    end = storage.size(path)
    with storage.open_read(path) as file:
        position = gaps = 0
        while position < end:
            if gaps == _MAX_GAPS:
                yield DamagedRecord(f"the file is damaged in more than {gaps} places; the rest of it is not looked at", False)
                return
            length, reason = _parse_length(file.read(_LENGTH.size), end - position)
            if length is None:
                if position == 0:
                    _refuse_packed(file)
                yield DamagedRecord(reason, alone=False)
                gaps += 1
                position = file.seek(_find_record(file, position + 1, end))
                continue
            following = position + _FRAME + length
            if length > MAX_RECORD_BYTES:
                yield DamagedRecord(f"the record has {length} bytes, the limit is {MAX_RECORD_BYTES}", alone=True)
                file.seek(following)
            elif _masked_crc((held := [file.read(length)])[0]) == _CHECKSUM.unpack(file.read(_CHECKSUM.size))[0]:
                # Keep no reference here, so that the caller can free the record before the next one is read.
                yield held.pop()
            else:
                # If bytes were lost or added in the data, the next record isn't where the length says.
                alone = following == end or _parse_length(file.read(_LENGTH.size), end - following)[0] is not None
                yield DamagedRecord("the checksum of the record's data is wrong", alone)
                gaps += not alone
                following = file.seek(following if alone else _find_record(file, position + 1, end))
            position = following


def _parse_length(header: bytes, left: int) -> tuple[int | None, str]:
    """Return the length in a header, or None and the reason why it is invalid; `left` is the rest of the file in bytes."""
    if len(header) < _LENGTH.size:
        return None, "it ends inside the record's header: the file is cut short"
    length, checksum = _LENGTH.unpack(header)
    if _masked_crc(header[:8]) != checksum:
        return None, "the checksum of the record's length is wrong: the file is damaged, or no TFRecord file"
    missing = _FRAME + length - left
    return (None, f"{missing} bytes are missing: the file is cut short") if missing > 0 else (length, "")


def _find_record(file: IO[bytes], position: int, end: int) -> int:
    """Return the start of the next record at or after `position`, or `end`. Empty records are ignored."""
    while position + _FRAME < end:
        file.seek(position)
        block = file.read(_SCANNED)
        words = len(block) - _LENGTH.size + 1
        low, high = (_words(block[offset:])[:words] for offset in (0, 4))
        for offset in np.flatnonzero((high == 0) & (low > 0) & (low < end - position)).tolist():
            if _parse_length(block[offset : offset + _LENGTH.size], end - position - offset)[0] is not None:
                return position + offset
        position += max(1, words)
    return end


def _words(data: bytes) -> np.ndarray:
    """Return the little-endian 32-bit number that starts at each byte of `data`."""
    parts = np.frombuffer(data, np.uint8).astype(np.uint32)
    return parts[:-3] | parts[1:-2] << 8 | parts[2:-1] << 16 | parts[3:] << 24


def read_records(path: str) -> Iterator[bytes]:
    """Yield the records of an intact TFRecord file in order.

    Raises:
        SourceError: The file is missing, truncated or damaged; the message names the file and the record.
    """
    try:
        for number, record in enumerate(scan_records(path)):
            if isinstance(record, DamagedRecord):
                raise SourceError(f"{path}, record {number}: {record.reason}. Fetch the file again")
            yield record
    except OSError as error:
        raise SourceError(f"{path} can't be opened: {error}") from error


def count_records(path: str) -> int | None:
    """Count the records of a TFRecord file by their lengths; None if the lengths don't add up, or the file is empty."""
    if not storage.exists(path):
        return None
    end = storage.size(path)
    position = count = 0
    with storage.open_read(path) as file:
        while position < end:
            file.seek(position)
            header = file.read(_LENGTH.size)
            if len(header) < _LENGTH.size:
                return None
            position += _LENGTH.size + _LENGTH.unpack(header)[0] + _CHECKSUM.size
            count += 1
    return count if count and position == end else None
