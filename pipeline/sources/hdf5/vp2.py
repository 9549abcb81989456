"""Reads VP2's simulated robots: robomimic HDF5 files with many episodes; each file lists the episodes of its splits.

A file holds more than a thousand episodes, so it is divided into ranges of episodes that are read independently. If a file
doesn't list its episodes, it counts as many damaged episodes as the other files have; otherwise the loss of a large file would
count as one episode. If this number is wrong, the plan changes when the file is repaired.
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
# The catalog's camera `image` is one of these: RoboDesk's or robosuite's own camera.
_CAMERAS = ("camera_image", "agentview_shift_2_image")
_SPLITS = ("train", "valid")
_RANGE = 32  # episodes per range
_BLOCK = 64  # frames per block, decoded in memory


class Vp2Source(Hdf5Source):
    """A folder of robomimic files. `--camera` may name any data set `obs/..` of shape (T, H, W, 3)."""

    kind = "vp2"
    format: ClassVar[int] = 2
    grows: ClassVar[bool] = True
    divides_files: ClassVar[bool] = True

    def plan(self) -> list[SourceShard]:
        """Return the ranges of all files, split by split; each range starts at its `first`. See `Source.plan`."""
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
            path, reason = next(iter(reasons.items()))
            raise SourceError(f"none of {len(sizes)} files can be read{again}; {path}: {reason}")
        for path, reason in reasons.items():
            _log.warning("%s: %s", path, reason)
        usual = _usual(list(counts.values()))
        usual_size = statistics.median_low([sizes[name] for name in counts]) if counts else 0
        shards = []
        for name in sizes:
            splits = counts.get(name, usual)
            # The size of a damaged file doesn't predict its size after repair.
            share = (sizes[name] if name in counts else usual_size) / max(1, sum(splits.values()))
            for split, demos in splits.items():
                for first in range(0, max(1, demos), _RANGE):
                    count = min(_RANGE, demos - first)
                    shards.append(SourceShard(split, None, name, count, stated_bytes=share * count, first=first))
        return sorted(shards, key=lambda shard: (shard.split, shard.file, shard.first))

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """Yield the episodes of a range. See `Source.read`."""
        first = shard.first or 0
        try:
            demos = self._splits(shard.file)[shard.split]
        except BadEpisodeError as error:
            lost = range(first, first + (shard.records or 0))
            yield from ((position, BadEpisode.of(error)) for position in lost[: shard.take])
            return
        in_range = demos[first : first + (shard.records or 0)]
        for position, demo in enumerate(in_range[: shard.take], start=first):
            yield position, self.read_apart(shard, position, demo)

    def read_here(self, shard: SourceShard, position: int, name: str) -> Episode:
        """See `Hdf5Source.read_here`."""
        with hdf5.opened(storage.join(self.folder, shard.file)) as file:
            return self._episode(file, name, shard, position)

    def _splits(self, name: str) -> Mapping[str, tuple[str, ...]]:
        """Return split -> names of its episodes.

        Raises:
            BadEpisodeError: The file doesn't list its episodes.
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
        """Return the name of the camera's data set, of shape (T, H, W, 3) uint8."""
        for camera in (self.entry.image_key, *(_CAMERAS if self.entry.image_key == "image" else ())):
            found = hdf5.find(file, f"{place}/obs/{camera}")
            if found is not None:
                shape: tuple[int, ...] = getattr(found, "shape", ())
                dtype = getattr(found, "dtype", None)
                if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
                    raise BadEpisodeError(f"{camera} has the shape {shape} and the type {dtype}, not frames")
                return camera
        group = hdf5.find(file, f"{place}/obs")
        names = ", ".join(hdf5.names(group)) if isinstance(group, h5py.Group) else "nothing"
        raise BadEpisodeError(f"{place}/obs has no camera {self.entry.image_key!r}; it has {names}")


def _usual(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return split -> median number of episodes per file, over the files that have episodes of this split."""
    known = {split: [count[split] for count in counts if count.get(split)] for split in _SPLITS}
    return {split: statistics.median_low(numbers) for split, numbers in known.items() if numbers} or dict.fromkeys(_SPLITS, 1)


def read_splits(path: str) -> dict[str, list[str]]:
    """Return split -> names of its episodes, as listed in a file.

    Raises:
        BadEpisodeError: The file doesn't list its episodes.
        StorageError: The disk or the object store can't be read.
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
