"""Episodes as the published iVideoGPT converter leaves them: one npz an episode, frames uncompressed in one array.

Every file holds exactly one episode, so what is wrong with its content makes a bad episode; only a file that can't be opened
at all stops its unit of work. Frames are read one by one; an array that is stored column by column has none in one piece and is
held whole.
"""

import errno
import io
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pipeline import storage
from pipeline.catalog import DatasetEntry
from pipeline.episode import Episode
from pipeline.errors import BadEpisodeError, DamagedEpisodeError, SourceError
from pipeline.frames import FrameForm
from pipeline.sources.base import MAX_EPISODE_BYTES, MAX_FRAMES, BadEpisode, Source, SourceShard, make_episode, pad_actions

ENDINGS = (".npz",)
# What zipfile and numpy raise for damage, depending on where it lies.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    RuntimeError,
    ArithmeticError,
)
_HEADER_BYTES = 1 << 16
_MAX_ACTION_NUMBERS = 1 << 27
_PUBLISHED_NAME = re.compile(r"^(?P<split>[A-Za-z0-9_]+)_eps_(?P<index>\d+)\.npz$")


def read_npz(path: str | Path, camera: str | None = None) -> Episode:
    """The episode in one npz file, its frames as JPEG (quality 95, 4:4:4) at full size.

    Args:
        path: A local path or URL.
        camera: Name of the array of frames; by default the only one that can be.

    Raises:
        SourceError: There is no such file, or it holds no episode.
    """
    path = str(path)
    entry = DatasetEntry(name="npz", directory="", image_key=camera or "")
    try:
        with storage.open_read(path) as file:
            return _episode(file, entry, FrameForm("jpeg"), SourceShard("file", 0, storage.basename(path)))
    except OSError as error:
        raise SourceError(f"{path} can't be opened: {error}") from error
    except BadEpisodeError as error:
        raise SourceError(f"{path} holds no usable episode: {error}") from error


class NpzSource(Source):
    """A folder of npz episodes.

    Files are named `{split}_eps_{index}.npz`, or anything else, in which case all of them are the split `train`.
    """

    kind = "npz"

    def is_data(self, name: str) -> bool:
        """See `Source.is_data`."""
        return super().is_data(name) and name.endswith(ENDINGS)

    def plan(self) -> list[SourceShard]:
        """All files. See `Source.plan`."""
        shards = []
        for position, name in enumerate(self.list_data()):
            match = _PUBLISHED_NAME.match(name)
            split, number = (match["split"], int(match["index"])) if match else ("train", position)
            shards.append(SourceShard(split, number, name, records=1))
        return sorted(shards, key=lambda shard: (shard.split, shard.number))

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """The episode of a file. See `Source.read`."""
        path = storage.join(self.folder, shard.file)
        try:
            with storage.open_read(path) as file:
                yield 0, _episode(file, self.entry, self.form, shard)
        except OSError as error:
            raise SourceError(f"{path} can't be opened: {error}") from error
        except BadEpisodeError as error:
            yield 0, BadEpisode.of(error)


def _episode(file: IO[bytes], entry: DatasetEntry, form: FrameForm, shard: SourceShard) -> Episode:
    try:
        with zipfile.ZipFile(file) as archive:
            shapes = {name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()}
            camera = _camera(shapes, entry.image_key)
            frames = _frames(archive, camera, shapes[camera])
            kept = [form.keep_pixels(_as_uint8(frame), swap=camera in entry.bgr) for frame in frames]
            if "action" in shapes and math.prod(shapes["action"].shape) > _MAX_ACTION_NUMBERS:
                raise BadEpisodeError(f"array 'action' has the shape {shapes['action'].shape}: larger than any episode's")
            action = _array(archive, "action") if "action" in shapes else None
    except OSError as error:
        # To a place before the file's beginning, or out of a damaged bzip2 stream; all others are storage's.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedEpisodeError(f"no sound npz file: {error}") from error
    except _DAMAGE as error:
        raise DamagedEpisodeError(f"no sound npz file: {error}") from error
    if action is not None:
        action = pad_actions(action.reshape(len(action), -1), len(kept))
    return make_episode(
        entry,
        shard,
        0,
        kept,
        camera=camera,
        action_meaning="" if action is None else f"action: {action.shape[1]}",
        action=action,
    )


class _Header(NamedTuple):
    """What an array's member states: shape, type, whether columns come first, and where its numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool
    start: int


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    """The header of an array, from the first bytes of its member: numpy would take all that it states to have."""
    with archive.open(name) as member:
        start = io.BytesIO(member.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(start)
    return _Header(shape, dtype, columns_first, start.tell())


def _frames(archive: zipfile.ZipFile, name: str, header: _Header) -> Iterator[np.ndarray]:
    """The frames of an array of them, in order."""
    if header.columns_first:
        yield from _array(archive, name)
        return
    count, *shape = header.shape
    size = math.prod(shape) * header.dtype.itemsize
    with archive.open(f"{name}.npy") as member:
        member.read(header.start)
        for _ in range(count):
            yield np.frombuffer(member.read(size), header.dtype).reshape(shape)
        # The archive's checksum is compared at the end of a member.
        if member.read(1):
            raise DamagedEpisodeError(f"array {name!r} goes on behind its last frame")


def _camera(shapes: dict[str, _Header], wanted: str) -> str:
    """Which array holds the frames."""
    videos = [name for name, (shape, dtype, *_) in shapes.items() if len(shape) == 4 and shape[3] == 3 and dtype.kind in "iu"]
    camera = wanted if wanted in videos else videos[0] if len(videos) == 1 else None
    if camera is None:
        raise BadEpisodeError(f"no array {wanted!r} of frames (T, H, W, 3); there are {sorted(shapes)}")
    shape = shapes[camera].shape
    if not 0 < shape[0] <= MAX_FRAMES or 0 in shape or math.prod(shape) > MAX_EPISODE_BYTES:
        raise BadEpisodeError(f"array {camera!r} has the shape {shape}: empty, or larger than any episode")
    return camera


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))


def _as_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.min() < 0 or pixels.max() > 255:
        raise BadEpisodeError(f"frames of type {pixels.dtype} hold values outside 0 to 255")
    return pixels.astype(np.uint8)
