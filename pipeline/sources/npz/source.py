"""Reads episodes in the format of the published iVideoGPT converter: one npz file per episode, with all frames in one array.

Besides the frames, `action`, `reward`, `state`, `is_terminal` and a text are read. Other arrays, and arrays with a wrong shape,
are counted by name.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm
from pipeline.sources.base import MAX_EPISODE_BYTES, MAX_FRAMES, BadEpisode, Source, SourceShard, make_episode, pad_actions
from pipeline.sources.guard import as_bad_episode
from pipeline.sources.npz.archive import Header, NpzArchive

ENDINGS = (".npz",)
_TEXTS = ("language", "language_instruction", "instruction", "text", "caption")
_MAX_TEXT = 10_000
_MAX_TEXT_BYTES = 64 << 20  # limit of the array of texts: one text per frame, each as wide as the longest
_MAX_NAME = 40
_PUBLISHED_NAME = re.compile(r"^(?P<split>[A-Za-z0-9_]+)_eps_(?P<index>\d+)\.npz$")


def read_npz(path: str | Path, camera: str | None = None) -> Episode:
    """Read the episode in one npz file; its frames become JPEG (quality 95, 4:4:4) at full size.

    Args:
        path: A local path or URL.
        camera: Name of the array of frames; by default the only array of frames.

    Raises:
        SourceError: The file doesn't exist, or holds no episode.
    """
    path = str(path)
    entry = DatasetEntry(name="npz", directory="", image_key=camera or "")
    try:
        with storage.open_read(path) as file:
            return _episode(file, entry, FrameForm("jpeg"), SourceShard("file", 0, storage.basename(path)))
    except Exception as error:
        # `as_bad_episode` raises storage errors unchanged.
        if isinstance(error, OSError):
            raise SourceError(f"{path} can't be opened: {error}") from error
        raise SourceError(f"{path} holds no usable episode: {as_bad_episode(error, path).reason}") from error


class NpzSource(Source):
    """A folder of npz episodes.

    The name `{split}_eps_{index}.npz` gives the split; files with other names belong to the split `train`.
    """

    kind = "npz"
    format: ClassVar[int] = 2
    grows: ClassVar[bool] = True
    many_files: ClassVar[bool] = True

    def is_data(self, name: str) -> bool:
        """See `Source.is_data`."""
        return super().is_data(name) and name.endswith(ENDINGS)

    def plan(self) -> list[SourceShard]:
        """Return all files. See `Source.plan`."""
        shards = []
        for position, name in enumerate(self.list_data()):
            match = _PUBLISHED_NAME.match(name)
            split, index = (match["split"], int(match["index"])) if match else ("train", position)
            shards.append((split, index, name))
        return [SourceShard(split, None, name, records=1) for split, _, name in sorted(shards)]

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """Yield the episode of a file. See `Source.read`."""
        with storage.open_read(storage.join(self.folder, shard.file)) as file:
            try:
                item: Episode | BadEpisode = _episode(file, self.entry, self.form, shard)
            except BadEpisodeError as error:
                item = BadEpisode.of(error)
        yield 0, item


def _episode(file: IO[bytes], entry: DatasetEntry, form: FrameForm, shard: SourceShard) -> Episode:
    archive = NpzArchive(file)
    headers = archive.headers
    camera = _camera(headers, entry.image_key)
    kept = [form.keep_pixels(_as_uint8(frame), swap=camera in entry.bgr) for frame in archive.frames(camera)]
    action = _action(archive, len(kept)) if "action" in headers and entry.actions else None
    fields: dict[str, Any] = {}
    text = next((name for name in _TEXTS if name in headers and _is_text(headers[name])), None)
    if text is not None:
        fields["language"] = _text(archive.array(text, _MAX_TEXT_BYTES))
    for name in ("reward", "state", "is_terminal"):
        if name in headers and _fits(name, headers[name], len(kept)):
            fields[name] = _per_step(name, archive.array(name))
    used = {camera, "action", text, *fields}
    ignored = {_why_ignored(name, headers[name]): 1 for name in headers if name not in used}
    if archive.others:
        ignored["members of npz files that are no arrays"] = archive.others
    return make_episode(
        entry,
        shard,
        0,
        kept,
        camera=camera,
        action_meaning="" if action is None else f"action: {action.shape[1]}",
        action=action,
        ignored=ignored,
        **fields,
    )


def _camera(headers: Mapping[str, Header], image_key: str) -> str:
    """Return the name of the array of frames."""
    videos = [name for name, header in headers.items() if _is_video(header)]
    camera = image_key if image_key in videos else videos[0] if len(videos) == 1 else None
    if camera is None:
        raise BadEpisodeError(f"no array {image_key!r} of frames (T, H, W, 3); there are {sorted(headers)[:20]}")
    shape = headers[camera].shape
    if not 0 < shape[0] <= MAX_FRAMES or 0 in shape or math.prod(shape) > MAX_EPISODE_BYTES:
        raise BadEpisodeError(f"array {camera!r} has the shape {shape}: empty, or larger than any episode")
    return camera


def _is_video(header: Header) -> bool:
    return len(header.shape) == 4 and header.shape[3] == 3 and header.dtype.kind in "iu"


def _action(archive: NpzArchive, frames: int) -> np.ndarray:
    """Return the actions of all frames, (T, A)."""
    header = archive.headers["action"]
    if not header.is_numbers or not header.shape or 0 in header.shape[1:]:
        raise BadEpisodeError(f"array 'action' has {header}, not rows of numbers")
    # The width can't be inferred (-1) from an empty array, which an episode of a single frame may have.
    return pad_actions(archive.array("action").reshape(header.shape[0], math.prod(header.shape[1:])), frames)


def _fits(name: str, header: Header, frames: int) -> bool:
    """Whether an array has one number per frame; a state may have any number."""
    return header.is_numbers and header.shape[:1] == (frames,) and (name == "state" or math.prod(header.shape[1:]) == 1)


def _per_step(name: str, array: np.ndarray) -> np.ndarray:
    """Convert an array to the type and shape that `Episode` needs."""
    if name == "is_terminal":
        return array.reshape(len(array)).astype(np.bool_)
    with np.errstate(over="ignore"):  # `make_episode` finds infinite values
        numbers = array.astype(np.float32)
    return numbers.reshape(len(array)) if name == "reward" else numbers.reshape(len(array), -1)


def _is_text(header: Header) -> bool:
    """Whether an array holds one text, or one text per frame."""
    return header.dtype.kind in "US" and len(header.shape) <= 1


def _text(array: np.ndarray) -> str:
    """Return the first non-empty text of an array."""
    found = next((text for text in array.reshape(-1).tolist() if text), "")
    return (found.decode(errors="replace") if isinstance(found, bytes) else str(found))[:_MAX_TEXT]


def _why_ignored(name: str, header: Header) -> str:
    """Return the reason why an array is ignored."""
    shown = name[:_MAX_NAME]
    if _is_video(header):
        return f"arrays `{shown}` of npz files, which are other cameras (--camera)"
    if name in ("reward", "state", "is_terminal", *_TEXTS):
        return f"arrays `{shown}` of npz files, which are no {'text' if name in _TEXTS else 'numbers for every frame'}"
    return f"arrays `{shown}` of npz files, which nothing here reads"


def _as_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.min() < 0 or pixels.max() > 255:
        raise BadEpisodeError(f"frames of type {pixels.dtype} hold values outside 0 to 255")
    return pixels.astype(np.uint8)
