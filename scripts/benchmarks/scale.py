"""Measures planning of the tokenize stage at the size of Open X-Embodiment; prints one JSON line per measurement.

`limits`: quality limits over made-up indexes of 2.4 million episodes, of which a fifth are excluded. `fleet`: the same in a
real fleet of two processes under torchrun: the first plans, the other receives all tasks with their excluded episodes.
`hashes`: near duplicates among a million perceptual hashes of one length, a tenth of them near copies. `baseline`: a process
with the same imports that does nothing. Every measurement runs in its own process, so that peak memory is its own.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.common.parquet import write_table
from pipeline.config.recipe import QualityConfig
from pipeline.episodes.index import INDEX_FILE
from tokenize_offline.distributed.worker_group import Fleet
from tokenize_offline.filtering import excluded_episodes
from tokenize_offline.near_duplicates import first_of_near_duplicates
from tokenize_offline.tasks import ShardTask, exclude_episodes

DATASETS = 40
EPISODES_OF_SHARD = 800
STATIC_SHARE = 0.2
LIMITS = QualityConfig(max_static=0.9, duplicates="exact")


def write_indexes(folder: Path, rows: int) -> None:
    """Write an index for each of `DATASETS` data sets, with `rows` episodes in total; every fifth episode is static."""
    generator = np.random.default_rng(0)
    count = rows // DATASETS
    numbers = np.arange(count)
    for dataset in range(DATASETS):
        static = generator.random(count) < STATIC_SHARE
        table = {
            "key": [f"train-{number // 2000:05d}-{number % 2000:06d}" for number in numbers],
            "split": ["train"] * count,
            "shard": [f"train-{number // EPISODES_OF_SHARD:06d}.tar" for number in numbers],
            "measured_frames": np.full(count, 80, np.int32),
            "static_share": np.where(static, 1.0, 0.1),
            "content_hash": [f"{dataset:08x}{number:024x}" for number in numbers],
        }
        write_table(str(folder / f"data{dataset:02d}" / INDEX_FILE), pa.table(table))


def folders(indexes: Path) -> list[str]:
    """The folders of the data sets, in order."""
    return [str(folder) for folder in sorted(indexes.iterdir())]


def tasks_of(indexes: Path, rows: int) -> list[ShardTask]:
    """A task for every shard in the indexes, as its manifest would give it."""
    shards = range(-(-(rows // DATASETS) // EPISODES_OF_SHARD))
    return [
        ShardTask(Path(folder).name, "train", number, f"{folder}/train-{number:06d}.tar", 1 << 28, "ab" * 32, EPISODES_OF_SHARD)
        for folder in folders(indexes)
        for number in shards
    ]


def measure_limits(options: argparse.Namespace) -> dict[str, Any]:
    """Measure quality limits over all indexes."""
    excluded = excluded_episodes(folders(options.indexes), LIMITS, 0.01)
    return {"episodes": options.rows, "excluded": len(excluded)}


def measure_hashes(options: argparse.Namespace) -> dict[str, Any]:
    """Measure near duplicates among hashes whose 512 motion bits are set with probability `--motion`."""
    generator = np.random.default_rng(0)
    hashes = np.empty((options.hashes, 71), np.uint8)
    chance = np.concatenate([np.full(56, 0.5), np.full(512, options.motion)]).astype(np.float32)
    for start in range(0, len(hashes), 1 << 14):
        block = hashes[start : start + (1 << 14)]
        block[:] = np.packbits(generator.random((len(block), 568), np.float32) < chance, axis=1)
    copies = generator.permutation(len(hashes))[: len(hashes) // 10]
    hashes[copies] = hashes[generator.integers(0, len(hashes), len(copies))]
    hashes[copies, generator.integers(0, 71, len(copies))] ^= 0x15
    # By the processor's clock, which other work on the machine disturbs less.
    began = time.process_time()
    first = first_of_near_duplicates(hashes, QualityConfig().near_bits)
    busy = round(time.process_time() - began, 1)
    counts = {"hashes": len(hashes), "motion": options.motion, "near_duplicates": int((~first).sum())}
    return {**counts, "processor_seconds_of_search": busy}


def measure_fleet(options: argparse.Namespace) -> dict[str, Any] | None:
    """Plan in the first process of a fleet, receive the plan in the others, claim all tasks; returns the first one's result."""
    with Fleet.join() as fleet:
        if fleet.is_first:
            tasks = exclude_episodes(
                tasks_of(options.indexes, options.rows), excluded_episodes(folders(options.indexes), LIMITS, 0.01)
            )
            fleet.broadcast_plan(list(map(dataclasses.asdict, tasks)))
        else:
            began = time.perf_counter()
            tasks = list(map(ShardTask.from_json, fleet.receive_plan()))
            waited = time.perf_counter() - began
        claimed = len(list(fleet.claim(tasks)))
        excluded = sum(len(task.excluded) for task in tasks)
        fleet.send_result({"claimed": claimed, "excluded": excluded, "peak_mib": _peak_mib()})
        if not fleet.is_first:
            print(f"process {fleet.rank} had the plan after {waited:.1f} s", file=sys.stderr)
            return None
        reports, orphans = fleet.collect_results(tasks, lambda: None)
        assert sum(report["claimed"] for report in reports) == len(tasks) and not orphans
        return {"tasks": len(tasks), "processes": reports}


def _peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


MEASUREMENTS = {
    "baseline": lambda options: {},
    "limits": measure_limits,
    "hashes": measure_hashes,
    "fleet": measure_fleet,
}


def main() -> int:
    """Run the given measurements, each in a subprocess; with `--one`, run a single one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MEASUREMENTS), metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--rows", type=int, default=2_400_000, help="Total number of episodes in the indexes.")
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--motion", type=float, default=0.25, help="Fraction of motion bits that are set.")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--indexes", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (name,) = options.names
        began = time.perf_counter()
        result = MEASUREMENTS[name](options)
        if result is not None:
            seconds = round(time.perf_counter() - began, 1)
            print(json.dumps({"name": name, "seconds": seconds, **result, "peak_mib": _peak_mib()}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if {"limits", "fleet"} & set(options.names):
            write_indexes(Path(folder), options.rows)
        for name in options.names:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if name == "fleet" else []
            sizes = ["--rows", str(options.rows), "--hashes", str(options.hashes), "--motion", str(options.motion)]
            command = [sys.executable, *launcher, __file__, name, "--one", "--indexes", folder, *sizes]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
