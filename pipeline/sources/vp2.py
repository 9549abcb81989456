"""VP2's simulated robots: robomimic HDF5 files of many episodes, their splits lists of episode names in the file itself."""

from collections.abc import Iterator

import h5py
import numpy as np

from pipeline import storage
from pipeline.episode import Episode
from pipeline.errors import BadEpisodeError, SourceError
from pipeline.naming import episode_key
from pipeline.sources import hdf5
from pipeline.sources.base import BadEpisode, Source, SourceShard, check_size, pad_actions

# What the catalog calls `image` is RoboDesk's or robosuite's own camera.
_CAMERAS = ("camera_image", "agentview_shift_2_image")
_SPLITS = ("train", "valid")


class Vp2Source(Source):
    """A folder of robomimic files; each is read once for every split. `--camera` may name any `obs/..` of (T, H, W, 3)."""

    kind = "vp2"

    def plan(self) -> list[SourceShard]:
        """Every file once a split. See `Source.plan`."""
        names = [name for name in storage.list_files(self.folder) if name.endswith(hdf5.ENDINGS)]
        shards = []
        for number, name in enumerate(names):
            for split, demos in self._splits(name).items():
                shards.append(SourceShard(split, number, name, len(demos)))
        return sorted(shards, key=lambda shard: (shard.split, shard.number))

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """The episodes of one split in a file. See `Source.read`."""
        demos = self._splits(shard.file)[shard.split]
        for position, demo in enumerate(demos[: shard.take]):
            item: Episode | BadEpisode
            try:
                with hdf5.opened(storage.join(self.folder, shard.file)) as file:
                    item = self._episode(file, demo, shard, position)
            except BadEpisodeError as error:
                item = BadEpisode.of(error)
            yield position, item

    def _splits(self, name: str) -> dict[str, list[str]]:
        """Split -> names of its episodes."""
        path = storage.join(self.folder, name)
        try:
            with hdf5.opened(path) as file:
                places = {split: f"mask/{split}" for split in _SPLITS if hdf5.find(file, f"mask/{split}") is not None}
                splits = {split: [hdf5.text(demo) for demo in hdf5.array(file, place)] for split, place in places.items()}
        except BadEpisodeError as error:
            raise SourceError(f"{path} can't be read: {error}. Fetch it again") from error
        if not splits:
            raise SourceError(f"{path} has neither mask/train nor mask/valid, which say what its splits are")
        return splits

    def _episode(self, file: h5py.File, demo: str, shard: SourceShard, position: int) -> Episode:
        place = f"data/{demo}"
        pixels, camera = self._pixels(file, place)
        kept = [self.form.keep_pixels(frame, swap=self.entry.image_key in self.entry.bgr) for frame in pixels]
        frames = [data for data, _ in kept]
        check_size(frames)
        action = pad_actions(hdf5.numbers(file, f"{place}/actions"), len(frames))
        height, width = kept[0][1]
        return Episode(
            key=episode_key(shard.split, shard.number, position),
            dataset=self.entry.name,
            frames=frames,
            height=height,
            width=width,
            rate=self.entry.control_hz,
            base_step=self.entry.base_step,
            camera=camera,
            language="",
            source_file=shard.file,
            source_record=position,
            episode_id=demo,
            action_meaning=f"action: {action.shape[1]}",
            action=action,
        )

    def _pixels(self, file: h5py.File, place: str) -> tuple[np.ndarray, str]:
        """The frames, (T, H, W, 3) uint8, and the name of their camera."""
        for camera in (self.entry.image_key, *(_CAMERAS if self.entry.image_key == "image" else ())):
            if hdf5.find(file, f"{place}/obs/{camera}") is not None:
                pixels = hdf5.array(file, f"{place}/obs/{camera}")
                if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
                    raise BadEpisodeError(f"{camera} has the shape {pixels.shape} and the type {pixels.dtype}, not frames")
                return pixels, camera
        there = hdf5.find(file, f"{place}/obs")
        names = ", ".join(sorted(there)) if isinstance(there, h5py.Group) else "nothing"
        raise BadEpisodeError(f"{place}/obs has no camera {self.entry.image_key!r}; it has {names}")
