"""The arrays of an npz file, read with suspicion: what a header states is compared with limits before anything is taken.

An npz is a zip archive of `.npy` members. A few bytes of it can state any number of members, numbers of any size, or text of
a gigabyte a word, and compressed zeros fill whatever is stated. So the archive's directory is measured before it is parsed, an
array before it is read, and frames are read one by one.
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
MAX_WHOLE_BYTES = 512 << 20  # of frames that are stored column by column
_MAX_MEMBERS = 1000
_MAX_DIRECTORY_BYTES = 1 << 20
_HEADER_BYTES = 1 << 16
# The end of a zip archive (APPNOTE.TXT, 4.3.16): the size of its directory is at byte 12; a comment may follow.
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\5\6", 22, 1 << 16
_ZIP64, _ZIP64_BYTES = b"PK\6\7", 20
# What numpy writes. Others may ask for any amount of memory to be decompressed with.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Header(NamedTuple):
    """What an array's member states.

    Attributes:
        shape: Of the array.
        dtype: Of its numbers.
        columns_first: Whether it lies column by column.
        start: Where its numbers begin in the member.
        stored: Bytes of the member.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool
    start: int
    stored: int

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_numbers(self) -> bool:
        """Whether it holds numbers or truth values."""
        return self.dtype.kind in "biuf"

    def __str__(self) -> str:
        """Shape and type, in words."""
        return f"the shape {self.shape} and the type {self.dtype}"


class NpzArchive:
    """An opened npz file.

    Attributes:
        headers: Name of an array -> what it states.
        others: How many members are no arrays.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Read the headers of all arrays.

        Raises:
            BadEpisodeError: It is no npz file, or larger than that of an episode.
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
        """The header of an array, from the first bytes of its member: numpy would take all that it states to have."""
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
        """An array, whole.

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
            # The archive's checksum is compared at the end of a member.
            if member.read(1):
                raise DamagedEpisodeError(f"array {name!r} goes on behind its last number")
            return found

    def frames(self, name: str) -> Iterator[np.ndarray]:
        """The frames of an array of them, in order.

        Raises:
            BadEpisodeError: A frame is larger than any, or the array is damaged.
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
    """Whatever zipfile and numpy raise while they read is about damaged bytes, but for what storage says."""
    try:
        yield
    except (BadEpisodeError, MemoryError):
        raise
    except Exception as error:
        # OSError: to a place before the file's beginning has EINVAL, and some decoders leave out the number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedEpisodeError(f"no sound npz file: {error}") from error


def _check_directory(file: IO[bytes]) -> None:
    """Refuse an archive whose directory is too large to be parsed; zipfile would read all of it.

    Its end is found as zipfile finds it: the last bytes, or else the last ones that look like one, before a comment.
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
        return  # zipfile says what is wrong
    size = int.from_bytes(tail[place + 12 : place + 16], "little")
    # Numbers that don't fit are in another record, which numpy has no need of below 4 GiB and 65,535 arrays.
    if size > _MAX_DIRECTORY_BYTES or tail[max(0, place - _ZIP64_BYTES) : place].startswith(_ZIP64):
        raise BadEpisodeError("the file has more members, or is larger, than any episode's")
