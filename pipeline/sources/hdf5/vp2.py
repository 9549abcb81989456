"""VP2's simulated robots: robomimic HDF5 files of many episodes, their splits lists of episode names in the file itself.

A file holds a thousand episodes and more, so each is divided into stretches of neighbouring ones, which are read independently.
A file that doesn't say what its episodes are counts as so many damaged ones as the others have: else the loss of a large file
would weigh as little as that of an episode. Where that is wrong, the plan changes with the file's repair.
"""

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import h5py
import numpy as np

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, SourceError
from pipeline.episodes.episode import Episode
from pipeline.sources.base import MAX_RECORDS, BadEpisode, SourceShard, make_episode, pad_actions
from pipeline.sources.hdf5 import files as hdf5
from pipeline.sources.hdf5.process import Hdf5Source, call

_log = logging.getLogger(__name__)
# What the catalog calls `image` is RoboDesk's or robosuite's own camera.
_CAMERAS = ("camera_image", "agentview_shift_2_image")
_SPLITS = ("train", "valid")
_STRETCH = 32  # episodes
_BLOCK = 64  # frames in memory as pixels


class Vp2Source(Hdf5Source):
    """A folder of robomimic files. `--camera` may name any `obs/..` of (T, H, W, 3)."""

    kind = "vp2"
    format: ClassVar[int] = 2
    grows: ClassVar[bool] = True
    divides_files: ClassVar[bool] = True

    def plan(self) -> list[SourceShard]:
        """Stretches of every file's episodes, split by split, each beginning at its `first`. See `Source.plan`."""
        sizes = self.list_data()
        counts: dict[str, dict[str, int]] = {}
        reasons: dict[str, BadEpisodeError] = {}
        for name in sizes:
            try:
                counts[name] = {split: len(demos) for split, demos in self._splits(name).items()}
            except BadEpisodeError as error:
                reasons[storage.join(self.folder, name)] = error
        if reasons and not counts:
            again = ". Fetch them again" if any(isinstance(error, DamagedEpisodeError) for error in reasons.values()) else ""
            path, known = next(iter(reasons.items()))
            raise SourceError(f"none of {len(sizes)} files can be read{again}; {path}: {known}")
        for path, reason in reasons.items():
            _log.warning("%s: %s", path, reason)
        usual = _usual(list(counts.values()))
        usual_size = statistics.median_low([sizes[name] for name in counts]) if counts else 0
        shards = []
        for name in sizes:
            splits = counts.get(name, usual)
            # What is left of a damaged file says nothing of what comes of it once it is whole.
            share = (sizes[name] if name in counts else usual_size) / max(1, sum(splits.values()))
            for split, demos in splits.items():
                for first in range(0, max(1, demos), _STRETCH):
                    count = min(_STRETCH, demos - first)
                    shards.append(SourceShard(split, None, name, count, stated_bytes=share * count, first=first))
        return sorted(shards, key=lambda shard: (shard.split, shard.file, shard.first))

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """The episodes of a stretch. See `Source.read`."""
        first = shard.first or 0
        try:
            demos = self._splits(shard.file)[shard.split]
        except BadEpisodeError as error:
            lost = range(first, first + (shard.records or 0))
            yield from ((position, BadEpisode.of(error)) for position in lost[: shard.take])
            return
        stretch = demos[first : first + (shard.records or 0)]
        for position, demo in enumerate(stretch[: shard.take], start=first):
            yield position, self.read_apart(shard, position, demo)

    def read_here(self, shard: SourceShard, position: int, name: str) -> Episode:
        """See `Hdf5Source.read_here`."""
        with hdf5.opened(storage.join(self.folder, shard.file)) as file:
            return self._episode(file, name, shard, position)

    def _splits(self, name: str) -> Mapping[str, tuple[str, ...]]:
        """Split -> names of its episodes.

        Raises:
            BadEpisodeError: The file doesn't say.
        """
        try:
            return call("splits", storage.join(self.folder, name))
        except BadEpisodeError as error:
            raise type(error)(f"it doesn't say what its episodes are, so all are left out: {error}") from error

    def _episode(self, file: h5py.File, demo: str, shard: SourceShard, position: int) -> Episode:
        place = f"data/{demo}"
        camera = self._camera(file, place)
        swap = self.entry.image_key in self.entry.bgr
        blocks = hdf5.blocks(file, f"{place}/obs/{camera}", _BLOCK)
        kept = [self.form.keep_pixels(pixels, swap) for block in blocks for pixels in block]
        action = pad_actions(hdf5.numbers(file, f"{place}/actions"), len(kept))
        return make_episode(
            self.entry,
            shard,
            position,
            kept,
            camera=camera,
            episode_id=demo,
            action_meaning=f"action: {action.shape[1]}",
            action=action,
        )

    def _camera(self, file: h5py.File, place: str) -> str:
        """The name of the camera, which holds frames (T, H, W, 3) uint8."""
        for camera in (self.entry.image_key, *(_CAMERAS if self.entry.image_key == "image" else ())):
            found = hdf5.find(file, f"{place}/obs/{camera}")
            if found is not None:
                shape: tuple[int, ...] = getattr(found, "shape", ())
                dtype = getattr(found, "dtype", None)
                if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
                    raise BadEpisodeError(f"{camera} has the shape {shape} and the type {dtype}, not frames")
                return camera
        there = hdf5.find(file, f"{place}/obs")
        names = ", ".join(hdf5.names(there)) if isinstance(there, h5py.Group) else "nothing"
        raise BadEpisodeError(f"{place}/obs has no camera {self.entry.image_key!r}; it has {names}")


def _usual(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Split -> how many episodes a file has of it, at the median of those that have any."""
    having = {split: [count[split] for count in counts if count.get(split)] for split in _SPLITS}
    return {split: statistics.median_low(known) for split, known in having.items() if known} or dict.fromkeys(_SPLITS, 1)


def read_splits(path: str) -> dict[str, list[str]]:
    """Split -> names of its episodes, as a file says.

    Raises:
        BadEpisodeError: It doesn't say.
        StorageError: The disk or the store it lies on can't be read.
    """
    with hdf5.opened(path) as file:
        places = {split: f"mask/{split}" for split in _SPLITS if hdf5.find(file, f"mask/{split}") is not None}
        lists = {split: hdf5.array(file, place) for split, place in places.items()}
        if any(demos.ndim != 1 or len(demos) > MAX_RECORDS for demos in lists.values()):
            raise BadEpisodeError(f"its mask is no list of at most {MAX_RECORDS} episodes")
        splits = {split: [hdf5.text(demo) for demo in demos] for split, demos in lists.items()}
    if not splits:
        raise BadEpisodeError(
            "it has neither mask/train nor mask/valid: robomimic's split_train_val.py writes a split into it. Or remove it"
        )
    return splits
