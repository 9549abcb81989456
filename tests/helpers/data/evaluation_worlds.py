"""Small evaluations: synthetic episodes, a model folder that records its training, and a short command line."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import synthetic_episodes
import tiny_models

from pipeline.config.recipe import ClipsConfig, Recipe
from pipeline.episodes.index import read_manifests, write_index
from training.model.files.locate import RECIPE

# This fraction holds out some of the episodes 0 to 7 of `left`, but not all.
SHARE = 0.4


def data_set(root: Path, dataset: str, frames: dict[str, Sequence[int]], rate: float | None = 5.0) -> None:
    """Writes a data set; `frames` is split -> number of frames of each episode."""
    for split, lengths in frames.items():
        made = [synthetic_episodes.make_episode(number, count, dataset, split) for number, count in enumerate(lengths)]
        made = [dataclasses.replace(episode, rate=rate) for episode in made]
        synthetic_episodes.write_shard(root, 0, made, dataset, split)
    statistics = {"filtered": 0, "actions": {}}
    records = [dataclasses.replace(record, statistics=statistics) for record in read_manifests(str(root / dataset))]
    write_index(str(root / dataset), dataset, records, [])


def model_folder(folder: Path, clips: ClipsConfig | None = None) -> Path:
    """Writes a small action-free model, with its training recipe if `clips` is given."""
    tiny_models.save_model(folder, tiny_models.world_model())
    if clips is not None:
        (folder / RECIPE).write_text(Recipe(clips=clips).as_yaml())
    return folder


def arguments(model: Path, episodes: Path, output: Path | str, *options: str) -> list[str]:
    """Arguments of `ivideogpt-evaluate`."""
    return ["--model", str(model), "--shards", str(episodes), "--output", str(output), "--metrics", "[mse]", *options]


def card(output: Path) -> dict[str, Any]:
    """The content of `evaluation.json`."""
    found: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return found
