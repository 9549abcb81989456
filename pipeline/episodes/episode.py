"""Episode: frames, actions and what is known of them; and its form as one WebDataset sample.

Frames stay encoded (JPEG or PNG bytes) until somebody needs pixels: a sample holds one msgpack list of images, which reads
18 times faster than one tar member per frame and can't be cut frame by frame; readers that want a few frames decode a few.
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
# The greatest that bfloat16 holds, in which models take actions: what is greater would become infinite.
MAX_NUMBER = float.fromhex("0x1.fep127")


@dataclass(frozen=True)
class Episode:
    """One episode of a data set.

    Attributes:
        key: Where it lies in its source (`pipeline.episodes.naming.episode_key`); unique within its data set.
        dataset: Name of the data set in the catalog.
        frames: Encoded images in time order, RGB once decoded: JPEG or PNG, or as they came, of any kind that is read.
        height: Of the frames, in pixels.
        width: Of the frames, in pixels.
        rate: Frames per second; None where the source doesn't say.
        base_step: Frame step from which the published stride follows; see `catalog.DatasetEntry`.
        camera: Name of the image feature, or of the view.
        language: Instruction or caption, empty where there is none.
        source_file: Name of the source file, relative to the source folder.
        source_record: Position in that file, from 0.
        episode_id: The source's own name for it, where it has one.
        action_meaning: What the columns of `action` mean, column by column or in words; empty without actions.
        action: (T, A) float32, where action[i] is taken at frame i; None without actions.
        state: (T, S) float32 or None.
        reward: (T,) float32 or None.
        is_terminal: (T,) bool or None.
        stray_bytes: JPEGs among its frames have stray bytes between their parts, by a source whose checksum proved them: for
            readers these are no damage.
        ignored: What its source has of it that was not taken, as reason -> count; no shard keeps it, the record counts it.
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
        """What is known of the episode apart from its frames and step arrays; the sample's `.json`."""
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
        """The members of the WebDataset sample: ending -> pieces, in the order in which they are written.

        Frames stay pieces of their own: joined, those of a long episode would be in memory twice.
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
        """The episode that a sample's members hold.

        Args:
            members: Ending -> bytes.
            where: Shard and key, for messages.

        Raises:
            ShardError: A member is missing or damaged, or the frames don't number what `.json` says.
        """
        try:
            facts = json.loads(members["json"])
            frames = msgpack.unpackb(members["frames.mp"], raw=False)
            arrays: dict[str, Any] = _unpack_arrays(members["steps.npz"]) if "steps.npz" in members else {}
            count = facts.pop("num_frames")
            if count != len(frames):
                raise ValueError(f"{len(frames)} frames where {count} are stated")
            if facts.pop("action_dim") and "action" not in arrays:
                raise ValueError("actions are stated, but there are none")
            return cls(frames=frames, **facts, **arrays)
        except (KeyError, ValueError, TypeError, OSError, msgpack.UnpackException) as error:
            raise ShardError(
                f"{where}: sample is damaged ({error!r}); delete the shard and its record, and ingest again"
            ) from error


def _pack_frames(frames: list[bytes]) -> list[bytes]:
    """The pieces of a msgpack array of binaries (msgpack's specification, `bin format family`), as `msgpack.packb` packs it."""
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
