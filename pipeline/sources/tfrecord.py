"""TFRecord files: a stream of byte records, each framed by its length and two checksums.

The framing is TensorFlow's: uint64 length, masked CRC-32C of the length, data, masked CRC-32C of the data, little-endian.
Beam has a reader too; this one names the file and the record, and never allocates what a hostile length claims.
"""

import struct
from collections.abc import Iterator
from typing import IO

import google_crc32c

from pipeline import storage
from pipeline.errors import SourceError

_LENGTH = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK = 0xA282EAD8
MAX_RECORD_BYTES = 2 << 30  # what a protocol buffer may hold


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def write_record(file: IO[bytes], data: bytes) -> None:
    """Append one record to a TFRecord file."""
    length = struct.pack("<Q", len(data))
    file.write(length + _CHECKSUM.pack(_masked_crc(length)))
    file.write(data)
    file.write(_CHECKSUM.pack(_masked_crc(data)))


def read_records(path: str) -> Iterator[bytes]:
    """The records of a TFRecord file, in order, checksums compared.

    Raises:
        SourceError: The file is missing, cut short or damaged; the message names it and the record.
    """
    try:
        left = storage.size(path)
    except OSError as error:
        raise SourceError(f"{path} can't be opened: {error}") from error
    with storage.open_read(path) as file:
        number = 0
        while left > 0:
            header = file.read(_LENGTH.size)
            if len(header) < _LENGTH.size:
                raise _damaged(path, number, "it ends inside the record's header: the file is cut short")
            length, checksum = _LENGTH.unpack(header)
            if _masked_crc(header[:8]) != checksum:
                raise _damaged(
                    path, number, "the checksum of the record's length is wrong: the file is damaged, or no TFRecord file"
                )
            left -= _LENGTH.size + length + _CHECKSUM.size
            if left < 0:
                raise _damaged(path, number, f"{-left} bytes are missing: the file is cut short")
            if length > MAX_RECORD_BYTES:
                raise _damaged(path, number, f"the record has {length} bytes, the limit is {MAX_RECORD_BYTES}")
            data = file.read(length)
            if _CHECKSUM.pack(_masked_crc(data)) != file.read(_CHECKSUM.size):
                raise _damaged(path, number, "the checksum of the record's data is wrong: the file is damaged")
            yield data
            number += 1


def count_records(path: str) -> int | None:
    """The number of records of a TFRecord file by their lengths alone; None where these don't add up to its size."""
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
    return count if position == end else None


def _damaged(path: str, number: int, what: str) -> SourceError:
    return SourceError(f"{path}, record {number}: {what}. Fetch the file again")
