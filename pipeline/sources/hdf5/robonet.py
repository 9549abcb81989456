"""Reads RoboNet as published: one HDF5 file per episode, with frames as an mp4 or JPEGs, and actions of 3 to 5 numbers.

A list in `configs/` names the files of the public test set; they always become the split `test`.
"""

import io
import itertools
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import h5py
import numpy as np

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError
from pipeline.config.catalog import robonet_test_files
from pipeline.episodes.episode import Episode
from pipeline.episodes.naming import printable_name
from pipeline.sources.base import BadEpisode, KeptFrame, SourceShard, check_count, make_episode, pad_actions
from pipeline.sources.hdf5 import files as hdf5
from pipeline.sources.hdf5.process import Hdf5Source
from pipeline.sources.video.source import decoded

ACTION_DIM = 5
_CAMERA = re.compile(r"^(image|cam)(?P<number>\d{0,3})$")
_FORMATS = {"RGB": False, "BGR": True}  # whether red and blue are swapped


class RobonetSource(Hdf5Source):
    """A folder of RoboNet files. Camera `image` is the first camera, `image1` the second."""

    kind = "robonet"
    format: ClassVar[int] = 2
    grows: ClassVar[bool] = True
    many_files: ClassVar[bool] = True

    def plan(self) -> list[SourceShard]:
        """Return all files, sorted by name within each split. See `Source.plan`."""
        names = list(self.list_data())
        test = robonet_test_files()
        splits = {
            "test": [name for name in names if name in test],
            "train": [name for name in names if name not in test],
        }
        return [SourceShard(split, None, name, 1) for split, files in splits.items() for name in files]

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """Yield the episode of a file. See `Source.read`."""
        yield 0, self.read_apart(shard, 0)

    def read_here(self, shard: SourceShard, position: int, name: str) -> Episode:
        """See `Hdf5Source.read_here`."""
        with hdf5.opened(storage.join(self.folder, shard.file)) as file:
            return self._episode(file, shard)

    def _episode(self, file: h5py.File, shard: SourceShard) -> Episode:
        state = hdf5.numbers(file, "env/state")
        action = hdf5.numbers(file, "policy/actions")
        kept = self._frames(file, min(len(state), len(action) + 1))
        check_count(len(kept))
        state, action = state[: len(kept)], five_dimensional(file, action[: len(kept) - 1], state)
        return make_episode(
            self.entry,
            shard,
            0,
            kept,
            episode_id=printable_name(shard.file.rpartition(".")[0]),
            action_meaning=f"action: {ACTION_DIM}",
            action=pad_actions(action, len(kept)),
            state=state.astype(np.float32),
        )

    def _frames(self, file: h5py.File, most: int) -> list[KeptFrame]:
        """Return at most `most` frames of the camera."""
        env = hdf5.find(file, "env")
        match = _CAMERA.match(self.entry.image_key)
        number = int(match["number"] or 0) if match else None
        if env is None:
            raise BadEpisodeError("the file has no group env")
        cameras = int(hdf5.attribute(env, "n_cams"))
        if number is None or number >= cameras:
            raise BadEpisodeError(f"no camera {self.entry.image_key!r}: the file has {cameras}, called image, image1, ..")
        place = f"env/cam{number}_video"
        if hdf5.text(hdf5.attribute(env, "cam_encoding")) == "mp4":
            return self._frames_of_video(file, f"{place}/frames", most)
        return self._frames_of_images(file, place, most)

    def _frames_of_video(self, file: h5py.File, path: str, most: int) -> list[KeptFrame]:
        data = _encoded(file, path)
        video = hdf5.dataset(file, path)
        stated = int(hdf5.attribute(video, "T"))
        count = min(most, stated)
        swap = _swapped(video)
        kept = [self.form.keep_pixels(pixels, swap) for _, pixels in itertools.islice(decoded(io.BytesIO(data)), count)]
        if len(kept) < count:
            raise BadEpisodeError(f"the mp4 in {path} has {len(kept)} frames, where {stated} are stated")
        return kept

    def _frames_of_images(self, file: h5py.File, place: str, most: int) -> list[KeptFrame]:
        # The group is looked up once, because libhdf5 takes longer to find a frame than to read it.
        camera = hdf5.find(file, place)
        if not isinstance(camera, h5py.Group):
            raise BadEpisodeError(f"the file has no group {place}")
        kept: list[KeptFrame] = []
        swap = False
        while len(kept) < most and hdf5.find(camera, frame := f"frame{len(kept)}") is not None:
            data = _encoded(camera, frame)
            swap = swap if kept else _swapped(hdf5.dataset(camera, frame))
            kept.append(self.form.keep(data, swap, checksummed=False))
        return kept


def _encoded(group: h5py.Group, path: str) -> bytes:
    """Return the bytes of an encoded image or video, which the file stores as integers."""
    found = hdf5.array(group, path)
    wide = found.dtype.itemsize > 1
    if found.dtype.kind not in "iu" or (wide and found.size and not 0 <= found.min() <= found.max() <= np.iinfo(np.uint8).max):
        raise BadEpisodeError(f"{path} has the type {found.dtype}, or numbers beyond 0 to 255: no bytes of an image or a video")
    return found.astype(np.uint8, copy=False).tobytes()


def _swapped(frames: h5py.Dataset) -> bool:
    order = hdf5.text(hdf5.attribute(frames, "image_format"))
    if order not in _FORMATS:
        raise BadEpisodeError(f"image_format is {order!r}, neither RGB nor BGR")
    return _FORMATS[order]


def five_dimensional(file: h5py.File, action: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Return actions of five numbers for every robot, by RoboNet's own rule.

    If a primitive moves the gripper (`autograsp`), the fifth number is the gripper's next state: open or closed.

    Args:
        file: File with the robot's primitives and bounds.
        action: (N, A).
        state: (M, S), M > N.

    Returns:
        (N, 5), padded with zeros if the robot has fewer numbers.
    """
    if action.shape[1] == ACTION_DIM - 1 and hdf5.text(_property(file, "primitives", "")) == "autograsp":
        low, high = (float(np.atleast_2d(_property(file, name, np.nan))[0, -1]) for name in ("low_bound", "high_bound"))
        if not np.isfinite([low, high]).all():
            raise BadEpisodeError("an autograsp robot without low_bound and high_bound: its gripper's actions can't be told")
        after = state[1 : len(action) + 1, -1]
        action = np.column_stack([action, np.where(after > (low + high) / 2, high, low)])
    action = action[:, :ACTION_DIM]
    return np.pad(action, ((0, 0), (0, ACTION_DIM - action.shape[1])))


def _property(file: h5py.File, name: str, default: Any) -> Any:
    """Return a property of the file from `metadata`, `misc` or `env`, or the default."""
    metadata = hdf5.find(file, "metadata")
    value = "" if metadata is None else hdf5.attribute(metadata, name, "")
    if not isinstance(value, str) or value:
        return value
    for group in ("misc", "env"):
        if isinstance(hdf5.find(file, f"{group}/{name}"), h5py.Dataset):
            return hdf5.array(file, f"{group}/{name}")
    return default
