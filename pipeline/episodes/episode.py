"""An episode: frames, actions and facts; and its form as one WebDataset sample.

Frames stay encoded (JPEG or PNG bytes) until a reader needs pixels. A sample holds one msgpack list of images, which reads 18
times faster than one tar member per frame; readers that need a few frames decode only those.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from pipeline.common.errors import ShardError

STEP_ARRAYS = ("action", "state", "reward", "is_terminal")
# Largest finite bfloat16: models take actions in bfloat16, and larger ones would become infinite.
MAX_NUMBER = float.fromhex("0x1.fep127")


@dataclass(frozen=True)
class Episode:
    """One episode of a data set.

    Attributes:
        key: Its place in the source (`pipeline.episodes.naming.episode_key`); unique within the data set.
        dataset: Name of the data set in the catalog.
        frames: Encoded RGB images in time order: JPEG or PNG, or another kind of image under `data.frames: source`.
        height: Height of the frames in pixels.
        width: Width of the frames in pixels.
        rate: Frames per second; None if the source does not say.
        base_step: Sets the published stride in frames; see `catalog.DatasetEntry`.
        camera: Name of the image feature or view.
        language: Instruction or caption; empty if there is none.
        source_file: Name of the source file, relative to the source folder.
        source_record: Position in that file, from 0.
        episode_id: The source's own name of the episode, if it has one.
        action_meaning: Meaning of the columns of `action`, by column or in one text; empty without actions.
        action: (T, A) float32; action[i] is taken at frame i. None without actions.
        state: (T, S) float32 or None.
        reward: (T,) float32 or None.
        is_terminal: (T,) bool or None.
        stray_bytes: Some JPEG frames have stray bytes between their parts; a checksum of the source proved that this is no
            damage.
        ignored: Reason -> number of ignored parts of the source; the manifest counts them, no shard stores them.
    """

    key: str
    dataset: str
    frames: list[bytes] = field(repr=False)
    height: int
    width: int
    rate: float | None
    base_step: float
    camera: str
    language: str
    source_file: str
    source_record: int
    episode_id: str = ""
    action_meaning: str = ""
    action: np.ndarray | None = field(default=None, repr=False)
    state: np.ndarray | None = field(default=None, repr=False)
    reward: np.ndarray | None = field(default=None, repr=False)
    is_terminal: np.ndarray | None = field(default=None, repr=False)
    stray_bytes: bool = False
    ignored: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def facts(self) -> dict[str, Any]:
        """Returns all fields except frames and step arrays; the sample's `.json`."""
        return {
            "key": self.key,
            "dataset": self.dataset,
            "episode_id": self.episode_id,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "rate": self.rate,
            "base_step": self.base_step,
            "camera": self.camera,
            "language": self.language,
            "source_file": self.source_file,
            "source_record": self.source_record,
            "action_meaning": self.action_meaning,
            "action_dim": 0 if self.action is None else int(self.action.shape[1]),
            **({"stray_bytes": True} if self.stray_bytes else {}),
        }

    def to_sample(self) -> dict[str, list[bytes]]:
        """Returns the members of the WebDataset sample in writing order: ending -> pieces.

        Each frame stays a separate piece: joining them would hold a long episode in memory twice.
        """
        members = {
            "json": [json.dumps(self.facts(), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()],
            "frames.mp": _pack_frames(self.frames),
        }
        arrays = {name: value for name in STEP_ARRAYS if (value := getattr(self, name)) is not None}
        if arrays:
            members["steps.npz"] = [_pack_arrays(arrays)]
        return members

    @classmethod
    def from_sample(cls, members: dict[str, bytes], where: str) -> "Episode":
        """Returns the episode in a sample's members.

        Args:
            members: Ending -> bytes.
            where: Shard and key, for messages.

        Raises:
            ShardError: A member is missing or damaged, or the number of frames differs from `.json`.
        """
        try:
            facts = json.loads(members["json"])
            frames = msgpack.unpackb(members["frames.mp"], raw=False)
            arrays: dict[str, Any] = _unpack_arrays(members["steps.npz"]) if "steps.npz" in members else {}
            count = facts.pop("num_frames")
            if count != len(frames):
                raise ValueError(f"{len(frames)} frames instead of {count}")
            if facts.pop("action_dim") and "action" not in arrays:
                raise ValueError("its actions are missing")
            return cls(frames=frames, **facts, **arrays)
        except (KeyError, ValueError, TypeError, OSError, msgpack.UnpackException) as error:
            raise ShardError(
                f"{where}: sample is damaged ({error!r}); delete the shard and its manifest, and ingest again"
            ) from error


def _pack_frames(frames: list[bytes]) -> list[bytes]:
    """Returns the pieces of a msgpack array of binaries (specification: `bin format family`), equal to `msgpack.packb`."""
    pieces = [msgpack.Packer().pack_array_header(len(frames))]
    for frame in frames:
        size = len(frame)
        marker, width = (0xC4, 1) if size < 1 << 8 else (0xC5, 2) if size < 1 << 16 else (0xC6, 4)
        pieces += [bytes([marker]) + size.to_bytes(width), frame]
    return pieces


def _pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    # numpy.savez gives every member the fixed date of 1980, so equal arrays give equal bytes.
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpack_arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in STEP_ARRAYS if name in archive.files}
