"""What a source of episodes is: it says which files it has, and reads one of them at a time.

Nothing else may be asked of a source, so that files can be read in any order, by any process, and a kind of source is one file.
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

# An encoded image, and its height and width.
KeptFrame = tuple[bytes, tuple[int, int]]
MAX_FRAMES = 100_000
MAX_EPISODE_BYTES = 2 << 30
_ARTICLES = {"action": "an action", "reward": "a reward"}
MAX_RECORDS = 100_000  # that may be stated of one file, each of which is listed where the file is lost


@dataclass(frozen=True, slots=True)
class SourceShard:
    """One file of a source, the least that is read at a time.

    Attributes:
        split: To which its episodes belong.
        number: Of the file within its split, part of its episodes' keys, where the source itself numbers its files; None where
            files may come and go, so that a number would say which others there are.
        file: Name, relative to the source's folder, as it is listed: on a local disk it may hold bytes that are no UTF-8.
        records: Episodes in it, bad ones included; None where nobody says.
        take: Only so many records from its beginning are wanted; None takes all.
        stated_bytes: Size that it should have by what the source says of itself; None where it doesn't say.
        first: Index of its first record within the split, as the source publishes it (within the file's part of the split,
            where the source divides its files); None where nobody says.
        text: Caption that the source keeps apart from the file; empty where there is none.
        only: Positions of its records in the file, where not all of these belong to the split; in order, `records` of them.
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
        """Key of the record at a position in the file."""
        if self.number is None:
            return hashed_key(self.split, self.file, position)
        return episode_key(self.split, self.number, position)


@dataclass(frozen=True)
class BadEpisode:
    """Stands in the place of an episode that can't be used.

    Attributes:
        reason: What is wrong with it.
        kind: `missing`, `damaged` or `unusable`; see `BadEpisodeError`.
        filtered: It is sound, but the catalog doesn't want it; not left out but passed over, for this reason.
        episodes: How many episodes it would have been; see `pipeline.common.manifests.SkippedEpisode`.
        ignored: See `Episode.ignored`.
    """

    reason: str
    kind: str = BadEpisodeError.kind
    filtered: bool = False
    episodes: float = 1
    ignored: Mapping[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, error: BadEpisodeError) -> Self:
        """What stands in the place of the episode that raised `error`."""
        return cls(str(error), error.kind)


class Source(abc.ABC):
    """A kind of source. Instances are sent to worker processes, so they hold names and settings only.

    Attributes:
        folder: Where its files lie: a local path or URL.
        entry: What is known of the data set.
        form: In which form frames are kept.
        ignored: What `plan` saw and does not take, as reason -> how many; each call counts anew. What `read` passes over,
            the episodes say: `Episode.ignored`.
        filtered: How many episodes of each split `plan` saw and doesn't want; `ignored` has them too, by their reason.
    """

    kind: ClassVar[str]
    skips_missing: bool = False  # whether files that should be there and aren't are passed over, and are no loss
    divides_files: ClassVar[bool] = False  # whether several `SourceShard`s lie in one file, told apart by `first`
    # Of what decides a shard's bytes, its episodes' keys among them; another one makes all shards of the kind others.
    format: ClassVar[int] = 1
    # Whether files may be added and taken away: then new ones get shards of their own, and the others stay as they are.
    grows: ClassVar[bool] = False
    # Whether it may have a million files, so that a plan opens none of them: their ends are read when their unit is made.
    many_files: ClassVar[bool] = False

    def __init__(self, folder: str, entry: DatasetEntry, form: FrameForm) -> None:
        self.folder = folder
        self.entry = entry
        self.form = form
        self.ignored: collections.Counter[str] = collections.Counter()
        self.filtered: collections.Counter[str] = collections.Counter()
        self._seen: list[tuple[dict[str, ListedFile], collections.Counter[str]]] | None = None

    def inputs(self) -> dict[str, Any]:
        """What decides, besides the files themselves, what is read from them; in a form that JSON holds."""
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
        """Whether a plan may name a file, by its path in the folder. Side files aren't asked for."""
        return "/" not in name

    def is_metadata(self, name: str) -> bool:
        """Whether a file that no plan names is read nevertheless, such as a spec or captions."""
        return False

    def listing(self) -> dict[str, ListedFile]:
        """Return each data file of the folder with what its listing says; inside `cached_listing` the folder is listed once."""
        return self._look()[0]

    @contextlib.contextmanager
    def cached_listing(self) -> Iterator[None]:
        """While this context lasts, the folder is looked at once: of a million objects that takes minutes."""
        outer = self._seen
        self._seen = [] if outer is None else outer
        try:
            yield
        finally:
            self._seen = outer

    def file_sizes(self) -> dict[str, int]:
        """Name -> bytes of the files that a plan may name."""
        return {name: known.size for name, known in self.listing().items()}

    def list_data(self) -> dict[str, int]:
        """What `file_sizes` gives; `ignored` counts the other files from now on. Each `plan` begins with it."""
        taken, others = self._look()
        self.ignored = others.copy()
        return {name: known.size for name, known in taken.items()}

    def _look(self) -> tuple[dict[str, ListedFile], collections.Counter[str]]:
        """What is known of the files that a plan may name, and why how many others are passed over."""
        if self._seen:
            return self._seen[0]
        found = storage.listing(self.folder, nested=True)
        taken = {name: known for name, known in found.items() if self.is_data(name) and not is_side_file(name)}
        others = (name for name in found if name not in taken and not self.is_metadata(name))
        looked = taken, count_by_ending(others)
        if self._seen is not None:
            self._seen.append(looked)
        return looked

    @abc.abstractmethod
    def plan(self) -> list[SourceShard]:
        """All files, in a fixed order: split by split, then by number.

        Raises:
            SourceError: What the folder holds contradicts itself.
        """

    @abc.abstractmethod
    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """The records of a file with their positions, in order, up to `shard.take`.

        Whatever it raises costs what is left of the file; see `pipeline.sources.guard`.
        """

    def read_together(self, shard: SourceShard, sources: Sequence[Self]) -> Iterator[tuple[int, list[Episode | BadEpisode]]]:
        """The records of a file as several sources see them, which differ in the camera; see `read`.

        A kind of source whose files are worth reading once for all cameras has its own way.

        Args:
            shard: The file.
            sources: Of the same folder and kind as this one.

        Returns:
            Position, and what each of `sources` has there.
        """
        for items in zip(*(source.read(shard) for source in sources), strict=True):
            yield items[0][0], [item for _, item in items]


def pad_actions(action: np.ndarray, frames: int) -> np.ndarray:
    """One action for every frame: a source that leaves out the last frame's, which leads nowhere, gets zeros there.

    Args:
        action: (N, A) or (N - 1, A), any numeric type.
        frames: N.

    Returns:
        (N, A) float32.

    Raises:
        BadEpisodeError: The number of actions fits neither.
    """
    if len(action) == frames - 1:
        action = np.concatenate([action, np.zeros_like(action[:1], shape=(1, action.shape[1]))])
    if len(action) != frames:
        raise BadEpisodeError(f"{len(action)} actions for {frames} frames")
    with np.errstate(over="ignore"):  # What becomes infinite, `make_episode` finds.
        return action.astype(np.float32)


def _unfit(array: np.ndarray | None) -> str:
    """What is wrong with numbers for which a model has no use; empty where nothing is."""
    if array is None or not array.size or array.dtype.kind == "b":
        return ""
    greatest = float(np.abs(array).max())
    if not np.isfinite(greatest):
        return "not finite"
    return "" if greatest <= MAX_NUMBER else f"{greatest:.4g}, the limit is {MAX_NUMBER:.4g}, the greatest bfloat16"


def check_count(frames: int) -> None:
    """Raise `BadEpisodeError` for an episode of no frames, or of more than a shard can take."""
    if not frames:
        raise BadEpisodeError("no frames")
    if frames > MAX_FRAMES:
        raise BadEpisodeError(f"{frames} frames, the limit is {MAX_FRAMES}")


def make_episode(entry: DatasetEntry, shard: SourceShard, position: int, kept: Sequence[KeptFrame], **own: Any) -> Episode:
    """The episode of some frames, with what the catalog says of its data set.

    Args:
        entry: Of the data set.
        shard: File that it lies in.
        position: Its number in that file, from 0.
        kept: Its frames.
        own: Further fields of `Episode`, or other values than the catalog's.

    Raises:
        BadEpisodeError: There are no frames, more than a shard can take, or frames of several sizes; or an action or a reward
            is not finite, or too great. A state, of which models learn nothing, is dropped then and counted.
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
        # Frames that were made anew have none any more.
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
