"""Simulates PushT episodes and writes them with tensorflow-datasets as RLDS, as in Open X-Embodiment.

    python -m training.demo.dataset --output DIR --episodes 160

writes `DIR/pusht/0.1.0`, whole or not at all.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pipeline.common.progress import progress_line
from pipeline.config.cli import run_command
from pipeline.episodes.frames import encode_png
from pipeline.processes.child_processes import process_pool
from pipeline.processes.cpus import usable_cpus
from pipeline.sources.rlds.writer import write_rlds
from training.demo.pusht import ACTION_MEANING, IMAGE_SIZE, SimulatedEpisode, simulate_episode

NAME = "pusht"
VERSION = "0.1.0"
CAMERA = "image"
_EPISODES_PER_SHARD = 20


def features() -> tfds.features.FeaturesDict:
    """Returns the RLDS spec of an episode."""
    step = {
        "observation": {
            CAMERA: tfds.features.Image(shape=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8, encoding_format="png"),
            "state": tfds.features.Tensor(shape=(5,), dtype=np.float32, doc="agent x, y; block x, y, angle"),
        },
        "action": tfds.features.Tensor(shape=(2,), dtype=np.float32, doc=ACTION_MEANING),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "is_last": tfds.features.Scalar(dtype=np.bool_),
        "is_terminal": tfds.features.Scalar(dtype=np.bool_),
        "language_instruction": tfds.features.Text(),
    }
    metadata = {"seed": tfds.features.Scalar(dtype=np.int64)}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_metadata": metadata})


def _record(seed: int, episode: SimulatedEpisode) -> dict[str, Any]:
    last = len(episode.image) - 1
    steps = [
        {
            "observation": {CAMERA: encode_png(episode.image[index]), "state": episode.state[index]},
            "action": episode.action[index],
            "reward": episode.reward[index],
            "is_first": index == 0,
            "is_last": index == last,
            "is_terminal": False,
            "language_instruction": "push the T-shaped block",
        }
        for index in range(last + 1)
    ]
    return {"steps": steps, "episode_metadata": {"seed": seed}}


def write_dataset(root: Path, splits: Mapping[str, range], steps: int, processes: int) -> Path:
    """Simulates and writes a data set; returns its version folder.

    Args:
        root: Output folder; the data set is written to `root/pusht/0.1.0`.
        splits: Split -> seeds of its episodes.
        steps: Number of frames per episode.
        processes: Number of processes that simulate.
    """
    total = sum(map(len, splits.values()))
    with (
        process_pool(processes, "spawn") as pool,
        progress_line(total * steps, "frame", "simulate") as progress,
    ):

        def records(seeds: range) -> Iterator[dict[str, Any]]:
            for seed, episode in zip(seeds, pool.map(partial(simulate_episode, steps=steps), seeds, chunksize=4), strict=True):
                progress.update(steps)
                yield _record(seed, episode)

        content = {split: records(seeds) for split, seeds in splits.items()}
        return write_rlds(root, NAME, VERSION, features(), content, _EPISODES_PER_SHARD, "PushT, driven by a scripted pusher")


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulates and writes the data set unless it exists; prints a summary as one JSON line."""
    return run_command(_main, arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Output folder, an Open X-Embodiment root.")
    parser.add_argument("--episodes", type=int, default=160, help="Number of training episodes.")
    parser.add_argument("--test_episodes", type=int, default=8, help="Number of test episodes.")
    parser.add_argument("--steps", type=int, default=40, help="Number of frames per episode.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the first training episode.")
    parser.add_argument("--test_seed", type=int, default=50_000, help="Seed of the first test episode.")
    options = parser.parse_args(arguments)
    seeds = {"train": (options.seed, options.episodes), "test": (options.test_seed, options.test_episodes)}
    splits = {split: range(first, first + count) for split, (first, count) in seeds.items() if count}
    finished = options.output / NAME / VERSION
    done_before = finished.exists()
    if not done_before:
        unfinished = options.output / f".{NAME}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        made = write_dataset(unfinished, splits, options.steps, usable_cpus())
        finished.parent.mkdir(parents=True, exist_ok=True)
        made.replace(finished)
        shutil.rmtree(unfinished)
    frames = sum(map(len, splits.values())) * options.steps
    episodes = {name: len(seeds) for name, seeds in splits.items()}
    frames_made = 0 if done_before else frames
    print(json.dumps({"folder": str(finished), "frames": frames, "frames_made": frames_made, "episodes": episodes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
