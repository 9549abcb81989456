"""The interface of a source of episodes: it lists its files and reads one file at a time.

A source does nothing else, so files can be read in any order and by any process.
"""

import abc
import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError
from pipeline.common.listings import ListedFile
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import MAX_NUMBER, Episode
from pipeline.episodes.frames import FrameForm, MadeFrame
from pipeline.episodes.naming import episode_key, hashed_key, printable_name
from pipeline.sources.side_files import count_by_ending, is_side_file

# An encoded image, and its (height, width).
KeptFrame = tuple[bytes, tuple[int, int]]
MAX_FRAMES = 100_000
MAX_EPISODE_BYTES = 2 << 30
_ARTICLES = {"action": "an action", "reward": "a reward"}
MAX_RECORDS = 100_000  # limit of the stated number of records per file; each of them is listed if the file is lost


@dataclass(frozen=True, slots=True)
class SourceShard:
    """One file of a source, the smallest unit that is read.

    Attributes:
        split: Split of its episodes.
        number: Number of the file within its split, if the source numbers its files; it is part of the episodes' keys. None if
            files may be added or removed, because a number would depend on the other files.
        file: Name relative to the source's folder; on a local disk it may hold bytes that are not UTF-8.
        records: Number of episodes in the file, including bad ones; None if unknown.
        take: Read only this many records from the beginning; None reads all.
        stated_bytes: Size of the file as stated by the source, in bytes; None if not stated.
        first: Index of its first record within the split, or within the file's part of the split if the source divides files;
            None if unknown.
        text: Caption that the source stores outside the file; empty if there is none.
        only: Positions of the records that belong to the split, in order, if not all of them do; there are `records` of them.
    """

    split: str
    number: int | None
    file: str
    records: int | None = None
    take: int | None = None
    stated_bytes: float | None = None
    first: int | None = None
    text: str = ""
    only: tuple[int, ...] | None = None

    def key(self, position: int) -> str:
        """Return the key of the record at a position in the file."""
        if self.number is None:
            return hashed_key(self.split, self.file, position)
        return episode_key(self.split, self.number, position)


@dataclass(frozen=True)
class BadEpisode:
    """Replaces an episode that can't be used.

    Attributes:
        reason: Why it can't be used.
        kind: `missing`, `damaged` or `unusable`; see `BadEpisodeError`.
        filtered: Whether the episode is intact but the catalog excludes it; then it counts as ignored, not as left out.
        episodes: Number of episodes that it would have been; see `pipeline.common.manifests.SkippedEpisode`.
        ignored: See `Episode.ignored`.
    """

    reason: str
    kind: str = BadEpisodeError.kind
    filtered: bool = False
    episodes: float = 1
    ignored: Mapping[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, error: BadEpisodeError) -> Self:
        """Return the replacement of the episode that raised `error`."""
        return cls(str(error), error.kind)


class Source(abc.ABC):
    """A source of episodes. Instances are sent to worker processes, so they hold only names and settings.

    Attributes:
        folder: Local path or URL of its files.
        entry: Catalog entry of the data set.
        form: The form in which frames are stored.
        ignored: Reason -> number of inputs that the last `plan` ignored; `Episode.ignored` has what `read` ignores.
        filtered: Split -> number of episodes that the last `plan` filtered; they also count in `ignored`.
    """

    kind: ClassVar[str]
    skips_missing: bool = False  # whether missing files are ignored instead of counted as losses
    divides_files: ClassVar[bool] = False  # whether one file may have several `SourceShard`s, which differ in `first`
    # Version of the shards' content, including the keys; a new version changes all shards of this kind.
    format: ClassVar[int] = 1
    # Whether files may be added and removed; new files get new shards, and existing shards stay unchanged.
    grows: ClassVar[bool] = False
    # Whether there may be a million files; then a plan opens none of them, and they are hashed when their unit is made.
    many_files: ClassVar[bool] = False

    def __init__(self, folder: str, entry: DatasetEntry, form: FrameForm) -> None:
        self.folder = folder
        self.entry = entry
        self.form = form
        self.ignored: collections.Counter[str] = collections.Counter()
        self.filtered: collections.Counter[str] = collections.Counter()
        self._cached: list[tuple[dict[str, ListedFile], collections.Counter[str]]] | None = None

    def inputs(self) -> dict[str, Any]:
        """Return the settings that decide what is read from the files, for JSON."""
        return {
            "kind": self.kind,
            "dataset": self.entry.name,
            "camera": self.entry.image_key,
            "rate": self.entry.control_hz,
            "base_step": self.entry.base_step,
            "swap_red_and_blue": self.entry.image_key in self.entry.bgr,
            "future_steps": self.entry.future_steps,
            "success_filter": self.entry.success_filter,
            "frames": dataclasses.asdict(self.form),
            **({} if self.entry.actions else {"actions": False}),
        }

    def is_data(self, name: str) -> bool:
        """Whether a file, given by its path in the folder, is data that a plan may use. Never called for side files."""
        return "/" not in name

    def is_metadata(self, name: str) -> bool:
        """Whether a file is read although no plan uses it, such as a spec or captions."""
        return False

    def listing(self) -> dict[str, ListedFile]:
        """Return each data file of the folder with what its listing says; inside `cached_listing` the folder is listed once."""
        return self._look()[0]

    @contextlib.contextmanager
    def cached_listing(self) -> Iterator[None]:
        """List the folder only once inside this context; a million objects take minutes to list."""
        outer = self._cached
        self._cached = [] if outer is None else outer
        try:
            yield
        finally:
            self._cached = outer

    def file_sizes(self) -> dict[str, int]:
        """Return name -> size in bytes of the data files."""
        return {name: file.size for name, file in self.listing().items()}

    def list_data(self) -> dict[str, int]:
        """Return `file_sizes`, and reset `ignored` to the counts of all other files. Each `plan` begins with this call."""
        data, others = self._look()
        self.ignored = others.copy()
        return {name: file.size for name, file in data.items()}

    def _look(self) -> tuple[dict[str, ListedFile], collections.Counter[str]]:
        """Return the listing of the data files, and reason -> number of ignored files."""
        if self._cached:
            return self._cached[0]
        files = storage.listing(self.folder, nested=True)
        data = {name: file for name, file in files.items() if self.is_data(name) and not is_side_file(name)}
        others = (name for name in files if name not in data and not self.is_metadata(name))
        result = data, count_by_ending(others)
        if self._cached is not None:
            self._cached.append(result)
        return result

    @abc.abstractmethod
    def plan(self) -> list[SourceShard]:
        """Return all files in a fixed order: split by split, then by number.

        Raises:
            SourceError: The files of the folder contradict each other.
        """

    @abc.abstractmethod
    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """Yield the records of a file with their positions, in order, up to `shard.take`.

        If it raises an error, the rest of the file is lost; see `pipeline.sources.guard`.
        """

    def read_together(self, shard: SourceShard, sources: Sequence[Self]) -> Iterator[tuple[int, list[Episode | BadEpisode]]]:
        """Yield the records of a file for several sources that differ only in the camera; see `read`.

        Sources override this if a single pass over the file is faster.

        Args:
            shard: The file.
            sources: Sources of the same folder and kind as this one.

        Returns:
            Position, and the record at this position for each of `sources`.
        """
        for items in zip(*(source.read(shard) for source in sources), strict=True):
            yield items[0][0], [item for _, item in items]


def pad_actions(action: np.ndarray, frames: int) -> np.ndarray:
    """Return one action per frame; if the source has no action for the last frame, it becomes zero.

    Args:
        action: (N, A) or (N - 1, A), any numeric type.
        frames: N.

    Returns:
        (N, A) float32.

    Raises:
        BadEpisodeError: The number of actions is neither N nor N - 1.
    """
    if len(action) == frames - 1:
        action = np.concatenate([action, np.zeros_like(action[:1], shape=(1, action.shape[1]))])
    if len(action) != frames:
        raise BadEpisodeError(f"{len(action)} actions for {frames} frames")
    with np.errstate(over="ignore"):  # `make_episode` finds infinite values
        return action.astype(np.float32)


def _unfit(array: np.ndarray | None) -> str:
    """Return why numbers can't be used for training; empty if they can."""
    if array is None or not array.size or array.dtype.kind == "b":
        return ""
    greatest = float(np.abs(array).max())
    if not np.isfinite(greatest):
        return "not finite"
    return "" if greatest <= MAX_NUMBER else f"{greatest:.4g}, the limit is {MAX_NUMBER:.4g}, the greatest bfloat16"


def check_count(frames: int) -> None:
    """Raise `BadEpisodeError` if an episode has no frames, or more than a shard can hold."""
    if not frames:
        raise BadEpisodeError("no frames")
    if frames > MAX_FRAMES:
        raise BadEpisodeError(f"{frames} frames, the limit is {MAX_FRAMES}")


def make_episode(entry: DatasetEntry, shard: SourceShard, position: int, kept: Sequence[KeptFrame], **own: Any) -> Episode:
    """Build an episode from its frames and the catalog entry of its data set.

    Args:
        entry: Catalog entry of the data set.
        shard: File of the episode.
        position: Position of the episode in the file, from 0.
        kept: Frames of the episode.
        own: Other fields of `Episode`; they override the catalog's values.

    Raises:
        BadEpisodeError: There are no frames, too many frames, or frames of different sizes; or an action or reward is infinite,
            NaN or too large. States like this are dropped and counted instead, because models don't train on states.
    """
    check_count(len(kept))
    frames = [data for data, _ in kept]
    total = sum(map(len, frames))
    if total > MAX_EPISODE_BYTES:
        raise BadEpisodeError(f"frames of {total} bytes in all, the limit is {MAX_EPISODE_BYTES}")
    sizes = sorted({size for _, size in kept})
    if len(sizes) > 1:
        raise BadEpisodeError(f"the size of the picture changes: {', '.join(f'{h}x{w}' for h, w in sizes[:5])}")
    height, width = sizes[0]
    for name in ("action", "reward"):
        if unfit := _unfit(own.get(name)):
            raise BadEpisodeError(f"{_ARTICLES[name]} is {unfit}")
    tolerated = sum(getattr(frame, "tolerated", False) for frame in frames)
    ignored = collections.Counter(own.pop("ignored", {}))
    if tolerated:
        ignored["stray bytes in the JPEG of a frame, which is kept, since its pixels are whole"] = tolerated
        # Frames that were encoded again have no stray bytes.
        own["stray_bytes"] = any(not isinstance(frame, MadeFrame) for frame in frames)
    if unfit := _unfit(own.get("state")):
        own["state"] = None
        ignored["states of an episode, one of which is not finite or too great; the episode is kept without them"] = 1
    known: dict[str, Any] = {
        "key": shard.key(position),
        "dataset": entry.name,
        "rate": entry.control_hz,
        "base_step": entry.base_step,
        "camera": entry.image_key,
        "language": "",
        "source_file": printable_name(shard.file),
        "source_record": position,
        "ignored": dict(ignored),
    }
    return Episode(frames=frames, height=height, width=width, **known | own)
