"""Measures how fast clips are loaded and trained on, against upper bounds and against the published way.

The loader's ceiling is one copy of equally many rows out of one mapped array; the trainer's ceiling is the same step on one
batch that stays on the device. The published way (--published) tokenizes the frames in fp32 before every step, computes logits
for all positions, and uses an optimizer that is not fused; its frames are in memory, while the published code decodes files.
All measurements alternate in this process. Prints one JSON line with clips per second and process.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.common.manifests import ShardManifest, fingerprint, sha256_of, write_manifest
from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import Recipe
from tokenize_offline.shards.token_shards import TokenRows, TokenShardInfo, write_token_shard
from tokenize_offline.token_layout import TokenLayout
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training import SampleOrder, TokenStore
from training.data.batch_plan import plan_batches
from training.data.loader import BatchLoader, BatchReader
from training.distributed import Processes, find_rank_info
from training.model.world_model import build_network, parameter_groups
from training.trainer.deepspeed_engine import close_engine, start_engine
from training.trainer.logs.peak_flops import peak_flops
from training.trainer.logs.throughput import flops_per_token, peak_memory, reset_peak_memory
from training.trainer.run import RunOptions
from training.trainer.setup import set_up_run
from training.trainer.trainer import pretrain

PUBLISHED = TokenLayout(
    context_length=2,
    context_grid=16,
    future_grid=4,
    num_vq_embeddings=8192,
    num_dyn_embeddings=8192,
    clip_length=16,
    resolution=64,
    goal=False,
    precision="fp32",
    tokenizer_sha256="0" * 64,
    clips_fingerprint="0" * 16,
)
MODELS = {
    "tiny": ModelConfig(layers=2, heads=4, width=128, mlp_width=512),
    "small": ModelConfig(),
    "medium": ModelConfig(layers=24, heads=16, width=1024, mlp_width=4096),
}
TOKENIZERS = {
    "tiny": CompressiveVQConfig(block_out_channels=(32, 32, 32), layers_per_block=1, latent_channels=16),
    "small": CompressiveVQConfig(),
    "medium": CompressiveVQConfig(),
}


def write_tokens(root: Path, datasets: int, shards: int, clips: int) -> None:
    """Write token shards of the published layout with random ids."""
    random = np.random.default_rng(0)
    for dataset in range(datasets):
        folder = root / f"set{dataset}"
        folder.mkdir(parents=True)
        for number in range(shards):
            name = f"train-{number:06d}"
            info = TokenShardInfo(PUBLISHED, folder.name, "train", 1, 0, "", False, f"{name}.tar", "0" * 64)
            ids = random.integers(0, PUBLISHED.vocabulary, (clips, PUBLISHED.sequence_length))
            rows = TokenRows(ids, ["episode"] * clips, np.zeros(clips), np.ones(clips), np.zeros(clips))
            path = folder / f"{name}.arrow"
            write_token_shard(path, info, rows)
            size, digest = path.stat().st_size, sha256_of(path)
            write_manifest(str(folder), ShardManifest(path.name, fingerprint({}), {}, clips, 16 * clips, size, digest))


def clips_per_second(work: Callable[[], object], clips: int, repeats: int) -> float:
    """Best speed of several runs of a work over a number of clips."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return clips / best


def measure_loader(tokens: Path, repeats: int) -> dict[str, float]:
    """Speed of the loader alone, and of the bare copy."""
    store = TokenStore.open(tokens)
    reader = BatchReader(store, SampleOrder(store), actions=False, rewards=False, pinned=torch.cuda.is_available())
    plan = plan_batches(TrainingConfig(global_batch=64), 1, 0)
    steps = 300
    name = store.datasets[0]
    whole = store.rows(name, np.arange(store.positions(name))).ids
    picks = np.random.default_rng(0).integers(0, len(whole), (steps, plan.micro_batch))

    def load() -> None:
        for _ in BatchLoader(reader, plan, range(steps), workers=1):
            pass

    def copy() -> None:
        for rows in picks:
            torch.from_numpy(whole[rows].astype(np.int64))

    load()
    clips = steps * plan.micro_batch
    measured, ceiling = clips_per_second(load, clips, repeats), clips_per_second(copy, clips, repeats)
    return {"measured": measured, "ceiling": ceiling, "ratio": measured / ceiling}


def measure_resident(recipe: Recipe, options: RunOptions) -> float:
    """Speed of the same engine on one batch that stays on the device."""
    run = set_up_run(recipe, options, find_rank_info(os.environ))
    with Processes(find_rank_info(os.environ)) as processes:
        engine = start_engine(run.network, recipe.training, run.engine_config, processes)
        batch = BatchReader(run.store, run.order, False, False, pinned=False).read(0, run.plan.micro_batch).to(processes.device)

        def steps(count: int) -> None:
            for _ in range(count * run.plan.accumulation):
                output = engine(*batch)
                engine.backward(output.loss)
                engine.step()
            float(output.token_loss)

        steps(recipe.training.log_every)
        rate = clips_per_second(lambda: steps(recipe.training.log_every), recipe.training.log_every * run.plan.global_batch, 3)
        close_engine(engine)
    return rate


def measure_trainer(recipe: Recipe, options: RunOptions) -> dict[str, float]:
    """Speed of the whole trainer from its metrics: the best line after the first one, which includes warm-up."""
    pretrain(recipe, options)
    lines = [json.loads(line) for line in (Path(options.output) / "metrics.jsonl").read_text().splitlines()]
    best = max(lines[1:], key=lambda line: line["tokens_per_second"])
    return {"clips": best["tokens_per_second"] / PUBLISHED.sequence_length, "data_wait": best["data_wait"]}


def measure_published(recipe: Recipe, tokenizer: CompressiveVQConfig, device: torch.device) -> float:
    """Speed of the published step: micro batch by micro batch, with frames in memory."""
    training = recipe.training
    plan = plan_batches(training, 1, 0)
    model = CompressiveVQModel(tokenizer).eval().to(device)
    network = build_network(recipe.model, PUBLISHED, 0, 0).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(network, training.weight_decay), lr=training.learning_rate, fused=False)
    frames = torch.rand(plan.micro_batch, PUBLISHED.clip_length, 3, PUBLISHED.resolution, PUBLISHED.resolution)
    half = torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            for _ in range(plan.accumulation):
                with torch.no_grad():
                    ids = model.tokenize(frames.to(device, non_blocking=True))
                    labels = model.labels(ids)
                with half:
                    loss = network.llm(input_ids=ids, labels=labels).loss / plan.accumulation
                loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), training.gradient_norm)
            optimizer.step()
        float(loss.detach())

    steps(1)
    return clips_per_second(lambda: steps(training.log_every), training.log_every * plan.global_batch, 1)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="small" if on_gpu else "tiny")
    parser.add_argument("--global_batch", type=int, default=64 if on_gpu else 4)
    parser.add_argument("--log_every", type=int, default=20 if on_gpu else 5, help="Steps per timing.")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16" if on_gpu else "fp32")
    parser.add_argument("--zero_stage", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--deepspeed", help="DeepSpeed JSON file, as in a recipe.")
    parser.add_argument("--micro_batch", type=int)
    parser.add_argument("--published", action="store_true", help="Also measure the published way.")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    training = TrainingConfig(
        global_batch=options.global_batch,
        micro_batch=options.micro_batch,
        deepspeed=options.deepspeed,
        steps=4 * options.log_every,
        log_every=options.log_every,
        checkpoint_every=1_000_000,
        precision=options.precision,
        zero_stage=options.zero_stage,
        compile=options.compile,
    )
    recipe = Recipe(model=MODELS[options.model], training=training)
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    loader: dict[str, float] = {}
    trained: dict[str, float] = {"clips": 0.0}
    resident = published = 0.0
    memory = 0
    with tempfile.TemporaryDirectory(prefix="ivideogpt-benchmark-") as folder:
        tokens = Path(folder) / "tokens"
        write_tokens(tokens, datasets=4, shards=8, clips=256)
        loader = measure_loader(tokens, options.repeats)
        for number in range(options.repeats):
            run = RunOptions([str(tokens)], f"{folder}/run{number}")
            resident = max(resident, measure_resident(recipe, run))
            reset_peak_memory(device)
            trained = max(trained, measure_trainer(recipe, run), key=lambda speed: speed["clips"])
            memory = peak_memory(device)
            if options.published:
                published = max(published, measure_published(recipe, TOKENIZERS[options.model], device))
    ids_per_second = trained["clips"] * PUBLISHED.sequence_length
    peak = peak_flops(device)
    result = {
        "benchmark": "train",
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "settings": vars(options),
        "loader_clips_per_second": loader,
        "train_clips_per_second": {"measured": trained["clips"], "ceiling": resident, "ratio": trained["clips"] / resident},
        "ids_per_second": ids_per_second,
        "data_wait": trained["data_wait"],
        "mfu": ids_per_second * flops_per_token(recipe.model, PUBLISHED) / peak if peak else 0.0,
        "peak_memory_gib": memory / 2**30,
    }
    if options.published:
        result |= {"published_clips_per_second": published, "over_published": trained["clips"] / published}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
