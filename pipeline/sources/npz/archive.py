"""Reads the arrays of untrusted npz files: every stated size is compared with a limit before anything is read.

An npz is a zip archive of `.npy` members. A few bytes can state any number of members or any array size, and compressed zeros
fill it. So the size of the archive's directory is checked before it is parsed, the size of an array before it is read, and
frames are read one by one.
"""

import contextlib
import errno
import io
import math
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError

MAX_FRAME_BYTES = 256 << 20
MAX_ARRAY_BYTES = 256 << 20
MAX_WHOLE_BYTES = 512 << 20  # limit of frames in Fortran order, which are read as a whole
_MAX_MEMBERS = 1000
_MAX_DIRECTORY_BYTES = 1 << 20
_HEADER_BYTES = 1 << 16
# End record of a zip archive (APPNOTE.TXT, 4.3.16): the directory's size is at byte 12, and a comment may follow.
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\5\6", 22, 1 << 16
_ZIP64, _ZIP64_BYTES = b"PK\6\7", 20
# The compressions that numpy writes; decompressing others may need any amount of memory.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Header(NamedTuple):
    """The header of an array.

    Attributes:
        shape: Shape of the array.
        dtype: Type of its elements.
        columns_first: Whether it is stored in Fortran order.
        start: Offset of the first element in the member, in bytes.
        stored: Size of the member in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool
    start: int
    stored: int

    @property
    def size(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_numbers(self) -> bool:
        """Whether it holds numbers or booleans."""
        return self.dtype.kind in "biuf"

    def __str__(self) -> str:
        """Return the shape and the type for messages."""
        return f"the shape {self.shape} and the type {self.dtype}"


class NpzArchive:
    """An open npz file.

    Attributes:
        headers: Array name -> its header.
        others: Number of members that are not arrays.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Read the headers of all arrays.

        Raises:
            BadEpisodeError: The file is not an npz file, or is larger than any episode.
        """
        _check_directory(file)
        with _reading():
            self._archive = zipfile.ZipFile(file)
            members = self._archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise BadEpisodeError(f"the file has {len(members)} members, the limit is {_MAX_MEMBERS}")
        arrays = [member for member in members if member.filename.endswith(".npy")]
        self.others = len(members) - len(arrays)
        self.headers = {member.filename.removesuffix(".npy"): self._header(member) for member in arrays}

    def _header(self, member: zipfile.ZipInfo) -> Header:
        """Read the header of an array from the first bytes of its member; numpy would read as much as the header states."""
        if member.compress_type not in _COMPRESSIONS:
            raise BadEpisodeError(
                f"{member.filename!r} is compressed in a way (number {member.compress_type}) that numpy never uses"
            )
        with _reading():
            with self._archive.open(member) as content:
                start = io.BytesIO(content.read(_HEADER_BYTES))
            version = np.lib.format.read_magic(start)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = read(start)
            return Header(shape, dtype, columns_first, start.tell(), member.file_size)

    def array(self, name: str, limit: int = MAX_ARRAY_BYTES) -> np.ndarray:
        """Read a whole array.

        Raises:
            BadEpisodeError: It takes more than `limit` bytes, holds Python objects, or is damaged.
        """
        header = self.headers[name]
        if header.size > limit:
            raise BadEpisodeError(f"array {name!r} has {header}: larger than any episode's")
        if header.dtype.hasobject:
            raise BadEpisodeError(f"array {name!r} holds Python objects, which may run code when they are read")
        self._check_length(name)
        with _reading(), self._archive.open(f"{name}.npy") as member:
            found = np.asarray(np.lib.format.read_array(member, allow_pickle=False))
            # zipfile checks the checksum at the end of a member.
            if member.read(1):
                raise DamagedEpisodeError(f"array {name!r} goes on behind its last number")
            return found

    def frames(self, name: str) -> Iterator[np.ndarray]:
        """Yield the frames of an array (T, H, W, 3) in order.

        Raises:
            BadEpisodeError: A frame is too large, or the array is damaged.
        """
        header = self.headers[name]
        if header.columns_first:
            yield from self.array(name, MAX_WHOLE_BYTES)
            return
        count, *shape = header.shape
        size = math.prod(shape) * header.dtype.itemsize
        if size > MAX_FRAME_BYTES:
            raise BadEpisodeError(f"array {name!r} has {header}: its frames are larger than any")
        self._check_length(name)
        with _reading():
            member = self._archive.open(f"{name}.npy")
        with member:
            with _reading():
                member.read(header.start)
            for _ in range(count):
                with _reading():
                    pixels = np.frombuffer(member.read(size), header.dtype).reshape(shape)
                yield pixels
            with _reading():
                if member.read(1):
                    raise DamagedEpisodeError(f"array {name!r} goes on behind its last frame")

    def _check_length(self, name: str) -> None:
        header = self.headers[name]
        if header.start + header.size != header.stored:
            raise DamagedEpisodeError(
                f"no sound npz file: array {name!r} states {header}, {header.size} bytes; its member has "
                f"{header.stored - header.start}"
            )


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Convert errors of zipfile and numpy to `DamagedEpisodeError`; storage errors pass unchanged."""
    try:
        yield
    except (BadEpisodeError, MemoryError):
        raise
    except Exception as error:
        # Seeking before the start of the file raises OSError with EINVAL; some decoders raise OSError without a number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedEpisodeError(f"no sound npz file: {error}") from error


def _check_directory(file: IO[bytes]) -> None:
    """Refuse an archive whose directory is too large to be parsed; zipfile would read all of it.

    The end record is found like zipfile finds it: the last bytes, or else the last match before a comment.
    """
    with _reading():
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - _END_BYTES - _LONGEST_COMMENT - _ZIP64_BYTES))
        tail = file.read()
        file.seek(0)
    place = len(tail) - _END_BYTES
    if not (tail[place:].startswith(_END) and tail.endswith(b"\0\0")):
        place = tail.rfind(_END)
    if place < 0:
        return  # zipfile reports the error
    size = int.from_bytes(tail[place + 12 : place + 16], "little")
    # Larger numbers are in a zip64 record, which numpy needs only above 4 GiB or 65,535 arrays.
    if size > _MAX_DIRECTORY_BYTES or tail[max(0, place - _ZIP64_BYTES) : place].startswith(_ZIP64):
        raise BadEpisodeError("the file has more members, or is larger, than any episode's")
