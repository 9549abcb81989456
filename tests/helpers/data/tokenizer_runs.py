"""Small episodes and runs of `ivideogpt-train-tokenizer` on them."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import warm
from safetensors.torch import save_file
from worlds import run_ranks

from pipeline.common.manifests import ShardManifest, write_manifest
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import encode_jpeg
from pipeline.episodes.index import write_index
from pipeline.episodes.naming import episode_key, shard_name
from pipeline.episodes.shards import EpisodeShardWriter
from training.metrics.lpips import VGGFeatures

RECIPE = """
clips: {stride: "1", held_out: 0.3}
tokenizer: {resolution: 32, context_length: 1, block_out_channels: [32, 32], layers_per_block: 1, latent_channels: 8,
  num_vq_embeddings: 64, num_dyn_embeddings: 48, segment_length: 3, horizon: 5, batch_size: 4, steps: 6, log_every: 1,
  checkpoint_every: 3, dead_code_reset_every: 2, warmup_steps: 1, lpips_weight: 1.0, disc_weight: 0.8, disc_start: 1,
  balanced_loss: true, ema_decay: 0.9}
"""


RATES = ("clips_per_second", "data_wait", "memory_bytes")


def make_episode(number: int) -> Episode:
    """A square that moves over a gradient."""
    frames = []
    for moment in range(8):
        picture = np.tile(np.linspace(0, 200, 40, dtype=np.uint8)[:, None, None], (1, 40, 3))
        picture[4 + number : 12 + number, 3 * moment : 3 * moment + 8] = (250, 10 * number, 0)
        frames.append(encode_jpeg(picture))
    where = {"source_file": "made-up", "source_record": number}
    facts = {"height": 40, "width": 40, "rate": 10.0, "base_step": 10.0, "camera": "image", "language": "", **where}
    return Episode(key=episode_key("train", 0, number), dataset="squares", frames=frames, **facts)


def write_episodes(root: Path, damaged: Collection[int] = ()) -> None:
    """A data set of twelve episodes, of which all frames of some are cut short."""
    folder, name = root / "squares", shard_name("train", 0, "tar")
    folder.mkdir()
    with EpisodeShardWriter(folder / name) as writer:
        for number in range(12):
            episode = make_episode(number)
            cut = [frame[:200] for frame in episode.frames] if number in damaged else episode.frames
            writer.add(dataclasses.replace(episode, frames=cut))
    made = ShardManifest(name, "0", {}, 12, 96, writer.size, writer.sha256, [], writer.entries, {"filtered": 0, "actions": {}})
    write_manifest(str(folder), made)
    write_index(str(folder), "squares", [made], [])


def train_arguments(episodes: Path, output: Path, *options: str) -> list[str]:
    given = ["--config", str(episodes / "recipe.yaml"), "--shards", str(episodes), "--output", str(output), "--workers", "0"]
    return [*given, "--tokenizer.vgg_weights", str(episodes / "vgg.safetensors"), *options]


def train(
    episodes: Path, output: Path, *options: str, processes: int = 1, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.train_tokenizer", *train_arguments(episodes, output, *options)]
    if processes == 1:
        return warm.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **variables})
    return run_ranks(processes, command, **variables)


def metric_lines(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics, without what depends on the machine."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in RATES} for line in lines]


def losses(output: Path, name: str = "future_l1") -> list[float]:
    return [line[name] for line in metric_lines(output) if name in line]


def make_episodes(root: Path) -> Path:
    """The data set, a recipe and VGG weights in a folder."""
    write_episodes(root)
    (root / "recipe.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    save_file(VGGFeatures().state_dict(), root / "vgg.safetensors")
    return root
