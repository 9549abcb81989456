"""How fast the tokenize stage is beside the bare tokenizer that it can't beat; the last line is one JSON object.

In one process: the model on one batch that stays on the device, before and after the whole stage (read, decode, crop, batch,
tokenize, publish) over episode shards. Without --shards it makes some: 80-pixel JPEGs, as ingest keeps them for 64 x 64.
For half precision it also says which share of the ids equals those of fp32. (A script here must not be named `tokenize.py`:
it would stand in front of Python's own module.)
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.episode import Episode
from pipeline.frames import encode_jpeg
from pipeline.naming import episode_key, shard_name
from pipeline.recipe import ClipsConfig
from pipeline.records import ShardRecord, fingerprint, write_record
from pipeline.shards import EpisodeShardWriter, open_shard
from tokenize_offline.clips import resolve_clips
from tokenize_offline.engine import TokenizerEngine
from tokenize_offline.plan import ShardTask, TokenizeJob, find_shards, token_layout
from tokenize_offline.reader import read_clips
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from tokenize_offline.worker import run_worker

SIZES = {
    "tiny": CompressiveVQConfig(block_out_channels=(32, 64, 64), layers_per_block=1, latent_channels=16),
    "published": CompressiveVQConfig(),
}
SIDE = 80


def make_shards(output: Path, shards: int, episodes: int, frames: int) -> None:
    """Episode shards of smooth moving pictures with a little noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    folder = output / "made_up"
    folder.mkdir(parents=True)
    for number in range(shards):
        with EpisodeShardWriter(folder / shard_name("train", number, "tar")) as writer:
            for index in range(number * episodes, (number + 1) * episodes):
                writer.add(
                    Episode(
                        key=episode_key("train", 0, index),
                        dataset="made_up",
                        frames=[encode_jpeg(_picture(rows + t, columns + index, random)) for t in range(frames)],
                        height=SIDE,
                        width=SIDE,
                        rate=5.0,
                        base_step=5.0,
                        camera="front",
                        language="",
                        source_file="made_up",
                        source_record=index,
                    )
                )
        shard = shard_name("train", number, "tar")
        record = ShardRecord(shard, fingerprint({}), {}, episodes, writer.frames, writer.size, writer.sha256)
        write_record(str(folder), record)


def _picture(rows: np.ndarray, columns: np.ndarray, random: np.random.Generator) -> np.ndarray:
    smooth = np.stack([128 + 90 * np.sin(rows / 9 + k) * np.cos(columns / (7 + k)) for k in range(3)], axis=-1)
    return (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def first_clips(task: ShardTask, clips: ClipsConfig, side: int, count: int) -> torch.Tensor:
    """The first `count` different clips of a shard, over again where it has fewer, as (count, T, 3, S, S)."""
    found: list[torch.Tensor] = []
    for episode in open_shard(task.source):
        found += read_clips(episode, clips, views=1, held_out_share=0, side=side).pixels
        if len(found) >= count:
            break
    return torch.stack([found[number % len(found)] for number in range(count)])


def bare_rate(engine: TokenizerEngine, clips: torch.Tensor, seconds: float) -> float:
    """Clips a second of the model alone on a resident batch."""
    engine.ids_of(clips).cpu()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(10 if engine.device.type == "cuda" else 1):
            ids = engine.ids_of(clips)
            done += len(clips)
        ids.cpu()
    return done / passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", nargs="+", help="Episode shards; made here without.")
    parser.add_argument("--tokenizer", help="Folder of a tokenizer; random weights without.")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="Shape of the random tokenizer.")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=16, help="Per made shard; two shards are made.")
    parser.add_argument("--seconds", type=float, default=5.0, help="How long the bare model is timed, twice.")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = (
        CompressiveVQModel.from_pretrained(options.tokenizer) if options.tokenizer else CompressiveVQModel(SIZES[options.size])
    )
    clips = resolve_clips(ClipsConfig(), model.config.context_length)
    layout = token_layout(model.config, clips, options.precision, model.weights_sha256 or "random")
    engine = TokenizerEngine(model, device, options.precision, options.batch)
    with tempfile.TemporaryDirectory() as folder:
        if not options.shards:
            make_shards(Path(folder) / "episodes", shards=2, episodes=options.episodes, frames=48)
        tasks = find_shards(options.shards or [str(Path(folder) / "episodes")])
        resident = first_clips(tasks[0], clips, model.config.resolution, options.batch).to(device)
        before = bare_rate(engine, resident, options.seconds)
        start = time.perf_counter()
        report = run_worker(
            tasks, TokenizeJob(clips, layout, str(Path(folder) / "tokens")), engine, len(os.sched_getaffinity(0))
        )
        stage = report.rows / (time.perf_counter() - start)
        after = bare_rate(engine, resident, options.seconds)
    bare = (before + after) / 2
    result = {
        "benchmark": "tokenize",
        "measured": round(stage, 3),
        "ceiling": round(bare, 3),
        "ratio": round(stage / bare, 3),
        "unit": "clips/s",
        "measured_frames_per_second": round(stage * layout.clip_length, 2),
        "ceiling_frames_per_second": round(bare * layout.clip_length, 2),
        "ceiling_before_and_after": [round(before, 3), round(after, 3)],
        "rows": report.rows,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": options.precision,
        "batch": engine.batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
    }
    if options.precision != "fp32":
        ids = engine.ids_of(resident)
        exact = TokenizerEngine(model, device, "fp32", options.batch).ids_of(resident)
        result["ids_equal_to_fp32"] = round((ids == exact).float().mean().item(), 5)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
