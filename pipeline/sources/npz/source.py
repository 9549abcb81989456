"""Episodes as the published iVideoGPT converter leaves them: one npz an episode, frames uncompressed in one array.

Every file holds exactly one episode, so what is wrong with its content makes a bad episode. Beside the frames, `action`,
`reward`, `state`, `is_terminal` and a text are read; what else is there, or doesn't fit, is counted by name.
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
_MAX_TEXT_BYTES = 64 << 20  # one a frame, each as wide as the longest
_MAX_NAME = 40
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
    except Exception as error:
        # Storage's own errors come out as they are.
        if isinstance(error, OSError):
            raise SourceError(f"{path} can't be opened: {error}") from error
        raise SourceError(f"{path} holds no usable episode: {as_bad_episode(error, path).reason}") from error


class NpzSource(Source):
    """A folder of npz episodes.

    Files are named `{split}_eps_{index}.npz`, or anything else, in which case all of them are the split `train`.
    """

    kind = "npz"
    format: ClassVar[int] = 2
    grows: ClassVar[bool] = True
    many_files: ClassVar[bool] = True

    def is_data(self, name: str) -> bool:
        """See `Source.is_data`."""
        return super().is_data(name) and name.endswith(ENDINGS)

    def plan(self) -> list[SourceShard]:
        """All files. See `Source.plan`."""
        shards = []
        for position, name in enumerate(self.list_data()):
            match = _PUBLISHED_NAME.match(name)
            split, place = (match["split"], int(match["index"])) if match else ("train", position)
            shards.append((split, place, name))
        return [SourceShard(split, None, name, records=1) for split, _, name in sorted(shards)]

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """The episode of a file. See `Source.read`."""
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
    known: dict[str, Any] = {}
    text = next((name for name in _TEXTS if name in headers and _is_text(headers[name])), None)
    if text is not None:
        known["language"] = _text(archive.array(text, _MAX_TEXT_BYTES))
    for name in ("reward", "state", "is_terminal"):
        if name in headers and _fits(name, headers[name], len(kept)):
            known[name] = _per_step(name, archive.array(name))
    taken = {camera, "action", text, *known}
    ignored = {_not_taken(name, headers[name]): 1 for name in headers if name not in taken}
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
        **known,
    )


def _camera(headers: Mapping[str, Header], wanted: str) -> str:
    """Which array holds the frames."""
    videos = [name for name, header in headers.items() if _is_video(header)]
    camera = wanted if wanted in videos else videos[0] if len(videos) == 1 else None
    if camera is None:
        raise BadEpisodeError(f"no array {wanted!r} of frames (T, H, W, 3); there are {sorted(headers)[:20]}")
    shape = headers[camera].shape
    if not 0 < shape[0] <= MAX_FRAMES or 0 in shape or math.prod(shape) > MAX_EPISODE_BYTES:
        raise BadEpisodeError(f"array {camera!r} has the shape {shape}: empty, or larger than any episode")
    return camera


def _is_video(header: Header) -> bool:
    return len(header.shape) == 4 and header.shape[3] == 3 and header.dtype.kind in "iu"


def _action(archive: NpzArchive, frames: int) -> np.ndarray:
    """The actions of all frames, (T, A)."""
    header = archive.headers["action"]
    if not header.is_numbers or not header.shape or 0 in header.shape[1:]:
        raise BadEpisodeError(f"array 'action' has {header}, not rows of numbers")
    # Where there are none, as beside a single frame, their width isn't what is left.
    return pad_actions(archive.array("action").reshape(header.shape[0], math.prod(header.shape[1:])), frames)


def _fits(name: str, header: Header, frames: int) -> bool:
    """Whether an array has numbers for every frame: one, or of states any number."""
    return header.is_numbers and header.shape[:1] == (frames,) and (name == "state" or math.prod(header.shape[1:]) == 1)


def _per_step(name: str, array: np.ndarray) -> np.ndarray:
    """An array as `Episode` holds it."""
    if name == "is_terminal":
        return array.reshape(len(array)).astype(np.bool_)
    with np.errstate(over="ignore"):  # What becomes infinite, `make_episode` finds.
        numbers = array.astype(np.float32)
    return numbers.reshape(len(array)) if name == "reward" else numbers.reshape(len(array), -1)


def _is_text(header: Header) -> bool:
    """Whether an array holds one text, or one a frame."""
    return header.dtype.kind in "US" and len(header.shape) <= 1


def _text(array: np.ndarray) -> str:
    """The first text of an array that isn't empty."""
    found = next((text for text in array.reshape(-1).tolist() if text), "")
    return (found.decode(errors="replace") if isinstance(found, bytes) else str(found))[:_MAX_TEXT]


def _not_taken(name: str, header: Header) -> str:
    """Why an array is not taken."""
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
