"""Measures how fast the tokenize stage is, against the bare tokenizer as an upper bound; the last line is one JSON object.

In one process: the encoder on one batch that stays on the device, before and after the whole stage (read, decode, crop, batch,
tokenize, publish) over episode shards; and the plain module in eager fp32, as the published code runs it. Without --shards it
makes shards: JPEGs of 1.25 x the tokenizer's resolution, like ingest. The readers' server starts before the clock, because the
command starts it while it opens the tokenizer. `tokenizer_precision.py` measures what a precision does to the ids. (A script
here must not be named `tokenize.py`: it would hide Python's own module.)
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.common.manifests import ShardManifest, fingerprint, write_manifest
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import encode_jpeg
from pipeline.episodes.naming import episode_key, shard_name
from pipeline.episodes.shards import EpisodeShardWriter, open_shard
from pipeline.processes.cpus import usable_cpus
from tokenize_offline.clips.decode import read_clips
from tokenize_offline.clips.decode_pool import prepare_readers
from tokenize_offline.clips.sampling import resolve_clips
from tokenize_offline.tasks import ShardTask, TokenizeJob, find_shards, token_layout
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from tokenize_offline.worker.encoder import BatchEncoder
from tokenize_offline.worker.worker import run_worker
from training.trainer.logs.peak_flops import peak_flops

SIZES = {
    "tiny": CompressiveVQConfig(block_out_channels=(32, 64, 64), layers_per_block=1, latent_channels=16),
    "published": CompressiveVQConfig(),
    "published-256": CompressiveVQConfig(resolution=256, block_out_channels=(128, 256, 256, 512, 768), max_att_resolution=32),
}


def make_shards(output: Path, shards: int, episodes: int, frames: int, side: int) -> None:
    """Write episode shards of smooth moving images, `side` pixels wide, with a little noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:side, 0:side]
    folder = output / "made_up"
    folder.mkdir(parents=True)
    for number in range(shards):
        with EpisodeShardWriter(folder / shard_name("train", number, "tar")) as writer:
            for index in range(number * episodes, (number + 1) * episodes):
                writer.add(
                    Episode(
                        key=episode_key("train", 0, index),
                        dataset="made_up",
                        frames=[encode_jpeg(_image(rows + t, columns + index, random)) for t in range(frames)],
                        height=side,
                        width=side,
                        rate=5.0,
                        base_step=5.0,
                        camera="front",
                        language="",
                        source_file="made_up",
                        source_record=index,
                    )
                )
        shard = shard_name("train", number, "tar")
        manifest = ShardManifest(shard, fingerprint({}), {}, episodes, writer.frames, writer.size, writer.sha256)
        write_manifest(str(folder), manifest)


def _image(rows: np.ndarray, columns: np.ndarray, random: np.random.Generator) -> np.ndarray:
    smooth = np.stack([128 + 90 * np.sin(rows / 9 + k) * np.cos(columns / (7 + k)) for k in range(3)], axis=-1)
    return (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def first_clips(task: ShardTask, clips: ClipsConfig, side: int, count: int) -> torch.Tensor:
    """The first `count` clips of a shard, repeated if it has fewer, (count, T, 3, S, S)."""
    found: list[torch.Tensor] = []
    for episode in open_shard(task.source):
        found += read_clips(episode, clips, views=1, held_out_share=0, side=side).pixels
        if len(found) >= count:
            break
    return torch.stack([found[number % len(found)] for number in range(count)])


def rates(runs: Sequence[Callable[[torch.Tensor], torch.Tensor]], clips: torch.Tensor, seconds: float) -> list[float]:
    """Clips per second of each of `runs` on a resident batch, alternating so that other load affects all alike."""
    spent = [0.0] * len(runs)
    batches = 0
    for run in runs:
        run(clips).cpu()
    while sum(spent) < seconds * len(runs):
        for number, run in enumerate(runs):
            start = time.perf_counter()
            for _ in range(10 if clips.is_cuda else 1):
                ids = run(clips)
            ids.cpu()
            spent[number] += time.perf_counter() - start
        batches += 10 if clips.is_cuda else 1
    return [batches * len(clips) / passed for passed in spent]


def eager_fp32(model: CompressiveVQModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The plain module, as the published code runs it."""

    @torch.inference_mode()
    def run(clips: torch.Tensor) -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return model.tokenize(clips)

    return run


def flops_of_clip(model: CompressiveVQModel, clip: torch.Tensor) -> int:
    """Count the floating-point operations of tokenizing one clip (1, T, 3, S, S)."""
    with FlopCounterMode(display=False) as counter:
        model.tokenize(clip)
    return counter.get_total_flops()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", nargs="+", help="Episode shards (default: made here).")
    parser.add_argument("--tokenizer", help="Tokenizer folder (default: random weights).")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="Shape of the random tokenizer.")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=16, help="Episodes per made shard; two shards are made.")
    parser.add_argument("--seconds", type=float, default=5.0, help="Seconds of each of the two timings of the bare model.")
    options = parser.parse_args()
    prepare_readers()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = (
        CompressiveVQModel.from_pretrained(options.tokenizer) if options.tokenizer else CompressiveVQModel(SIZES[options.size])
    )
    clips = resolve_clips(ClipsConfig(), model.config.context_length)
    layout = token_layout(model.config, clips, options.precision, model.weights_sha256 or "random")
    plain = copy.deepcopy(model).to(device).eval()
    started = time.perf_counter()
    encoder = BatchEncoder(model, device, options.precision, options.batch)
    with tempfile.TemporaryDirectory() as folder:
        if not options.shards:
            make_shards(Path(folder) / "episodes", 2, options.episodes, 48, model.config.resolution * 5 // 4)
        tasks = find_shards(options.shards or [str(Path(folder) / "episodes")])
        resident = first_clips(tasks[0], clips, model.config.resolution, options.batch).to(device)
        encoder.ids_of(resident).cpu()
        first_batch = time.perf_counter() - started
        before, eager = rates([encoder.ids_of, eager_fp32(plain)], resident, options.seconds)
        start = time.perf_counter()
        report = run_worker(tasks, TokenizeJob(clips, layout, str(Path(folder) / "tokens")), encoder, usable_cpus())
        stage = report.rows / (time.perf_counter() - start)
        (after,) = rates([encoder.ids_of], resident, options.seconds)
    bare = (before + after) / 2
    result: dict[str, Any] = {
        "benchmark": "tokenize",
        "measured": round(stage, 3),
        "ceiling": round(bare, 3),
        "ratio": round(stage / bare, 3),
        "unit": "clips/s",
        "measured_frames_per_second": round(stage * layout.clip_length, 2),
        "ceiling_frames_per_second": round(bare * layout.clip_length, 2),
        "ceiling_before_and_after": [round(before, 3), round(after, 3)],
        "eager_fp32": round(eager, 3),
        "ceiling_over_eager_fp32": round(before / eager, 3),
        "tflops": round(bare * flops_of_clip(plain, resident[:1]) / 1e12, 3),
        "seconds_to_first_batch": round(first_batch, 1),
        "share_of_time_waiting": round(report.waited / report.passed, 4),
        "rows": report.rows,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": options.precision,
        "batch": encoder.batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
    }
    if device.type == "cuda":
        result["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        # Relative to the dense bf16 peak, in every precision.
        peak = peak_flops(device)
        result["share_of_bf16_peak"] = round(result["tflops"] * 1e12 / peak, 4) if peak else None
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
