"""Small data sets in RLDS form, written by tensorflow-datasets' own encoders, for tests."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, encode_jpeg
from pipeline.sources.base import BadEpisode
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.rlds.writer import write_rlds
from pipeline.sources.tfrecord.reader import read_records, write_record

NAME = "toy_set"
VERSION = "0.1.0"
F = tfds.features


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth colour picture, (H, W, 3) uint8, different for every seed."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(x / 9 + phase[0]), np.cos(y / 7 + phase[1]), np.sin((x + y) / 11 + phase[2])]
    return np.stack([127 + 120 * wave for wave in waves], axis=2).astype(np.uint8)


def features(action=None, image=None, extra=None, instruction=None) -> tfds.features.FeaturesDict:
    """The spec of a data set; parts may be replaced, `extra` adds to a step."""
    return F.FeaturesDict(
        {
            "steps": F.Dataset(
                {
                    "observation": F.FeaturesDict(
                        {
                            "image": image or F.Image(shape=(None, None, 3), encoding_format="jpeg"),
                            "state": F.Tensor(shape=(3,), dtype=np.float32),
                        }
                    ),
                    "action": action or F.Tensor(shape=(2,), dtype=np.float32),
                    "language_instruction": instruction or F.Text(),
                    "reward": F.Scalar(np.float32),
                    "is_terminal": F.Scalar(np.bool_),
                    **(extra or {}),
                }
            ),
            "episode_metadata": F.FeaturesDict({"file_path": F.Text()}),
        }
    )


def episode(seed: int, frames: int = 6, height: int = 48, width: int = 64, **replaced) -> dict:
    """An episode for `features`; `replaced` maps `action`, `image`, `instruction` or further step features to step -> value."""

    def of(name, step, default):
        return replaced[name](step) if name in replaced else default

    known = ("action", "image", "instruction")
    return {
        "steps": [
            {
                "observation": {
                    "image": of("image", t, encode_jpeg(picture(100 * seed + t, height, width))),
                    "state": np.full(3, t, np.float32),
                },
                "action": of("action", t, np.array([seed, t], np.float32)),
                "language_instruction": of("instruction", t, f"do thing {seed}"),
                "reward": np.float32(t == frames - 1),
                "is_terminal": t == frames - 1,
                **{name: value(t) for name, value in replaced.items() if name not in known},
            }
            for t in range(frames)
        ],
        "episode_metadata": {"file_path": f"episode {seed}"},
    }


def write_set(root: Path, episodes=7, per_shard=2, spec=None, name=NAME, **shape) -> Path:
    """A data set with a split `train` of `episodes` (a number, or themselves) and a split `val` of one; its version folder."""
    train = [episode(seed, **shape) for seed in range(episodes)] if isinstance(episodes, int) else episodes
    splits = {"train": train, "val": train[:1]}
    return write_rlds(root, name, VERSION, spec or features(), splits, episodes_per_shard=per_shard)


def plain_episode(seed: int, frames: int = 5, key: str | None = None) -> Episode:
    """An episode that never was in a source."""
    return Episode(
        key=key or f"train-00000-{seed:06d}",
        dataset=NAME,
        frames=[encode_jpeg(picture(seed + t)) for t in range(frames)],
        height=48,
        width=64,
        rate=10.0,
        base_step=10.0,
        camera="image",
        language="schiebe den Würfel",
        source_file="somewhere",
        source_record=seed,
        action_meaning="action: 2",
        action=np.arange(2 * frames, dtype=np.float32).reshape(frames, 2),
        is_terminal=np.arange(frames) == frames - 1,
    )


SOURCE = FrameForm("source")


def entry(**known) -> DatasetEntry:
    return DatasetEntry(
        **{"name": NAME, "directory": NAME, "image_key": "image", "control_hz": 10.0, "base_step": 10.0, **known}
    )


def read_all(folder, form=SOURCE, **known) -> list[Episode | BadEpisode]:
    source = RldsSource(str(folder), entry(**known), form)
    return [item for shard in source.plan() if shard.split == "train" for _, item in source.read(shard)]


def rewrite(folder, change) -> None:
    """Apply `change` to the feature map of every training record."""
    for path in folder.glob("*-train.tfrecord-*"):
        records = list(read_records(str(path)))
        with path.open("wb") as file:
            for record in records:
                example = tf_example_pb2.Example.FromString(record)
                change(example.features.feature)
                write_record(file, example.SerializeToString())
