"""Measures whether ten times the data costs ten times the time, and the speed-up of a second process.

Linear cost: processor time of planning, work units and index for a data set and for one with ten times as many files, in this
process. Processes: wall time of the whole command over the same data with one and with two worker processes, alternating; and
the time of its work alone, from its summary. Prints one JSON line. `measured` is the speed-up of the work by a second process.
`ceiling` is the speed-up of bare loops of decode, resize and encode, alternating with the runs: the best that this machine can
do, whose processes share caches, memory and clock rate. `target` is 2, or the number of processors if that is lower.

Wall times need as many idle processors. `busy_before` is the number of processors that other work used before the start.
`speed_up_by_cpu` is twice the quotient of processor time per frame with one and with two processes: the speed-up if processes
waited only for processors. It ignores waiting for the disk and an uneven end, and includes the imports of every process.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from ingest import ENTRY, NAME, ingest, make_data, recode
from ingest_memory import scene

from pipeline.episodes import frames, index
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.plan import make_plan
from pipeline.processes.cpus import usable_cpus
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.rlds.writer import write_rlds

TIMES = 10
FORM = FrameForm("jpeg", short_side=80)
LOOP_SECONDS = 4.0


def write_small(root: Path, files: int) -> Path:
    """Write a data set with one short episode per file."""
    features = tfds.features
    image = features.Image(shape=(64, 64, 3), encoding_format="jpeg")
    spec = features.FeaturesDict({"steps": features.Dataset({"observation": features.FeaturesDict({"image": image})})})
    images = [frames.encode_jpeg(scene(number, 64, 64)) for number in range(8)]
    episodes = ({"steps": [{"observation": {"image": images[(n + t) % 8]}} for t in range(8)]} for n in range(files))
    return write_rlds(root, NAME, "0.1.0", spec, {"train": episodes}, episodes_per_shard=1)


@contextlib.contextmanager
def busy(into: dict[str, float], name: str) -> Iterator[None]:
    """Measure the processor time of a block."""
    started = time.process_time()
    yield
    into[name] = time.process_time() - started


def costs(files: int) -> dict[str, float]:
    """Seconds of planning, work units and index for `files` files, with one shard each."""
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        source = RldsSource(str(write_small(Path(name) / "rlds", files)), ENTRY, FrameForm("jpeg", short_side=32))
        output = Path(name) / "out"
        with busy(took, "plan"):
            units = make_plan(source, None, None, 1)
        assert len(units) == files
        with busy(took, "units"):
            ingest(units, source, output)
        with busy(took, "index"):
            index.write_index(str(output), NAME, index.read_manifests(str(output)), [])
    return took


class Run(NamedTuple):
    """A run of the command: wall seconds, seconds of its work, processor seconds, and frames."""

    whole: float
    work: float
    processor: float
    frames: int


def whole_command(folder: Path, workers: int) -> Run:
    """Run the command with a number of worker processes, and wait for it."""
    with tempfile.TemporaryDirectory() as output:
        given = ["--dataset", NAME, "--camera", "image", "--rate", "10", "--source", str(folder), "--output", output]
        processes = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
        command = [sys.executable, "-m", "pipeline", *given, "--data.shard_mib", "4", "--", *processes]
        started, before = time.perf_counter(), children()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
        summary = json.loads(done.stdout)
        return Run(time.perf_counter() - started, summary["seconds"], children() - before, summary["frames"])


def children() -> float:
    """Processor time of all descendants of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def busy_processors(seconds: float = 2.0) -> float:
    """Number of processors that other processes on this machine use now."""
    idle, started = _idle_ticks(), time.perf_counter()
    time.sleep(seconds)
    free = (_idle_ticks() - idle) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - started)
    return max(0.0, (os.cpu_count() or 1) - free)


def _idle_ticks() -> int:
    """Idle seconds of all processors since boot, including waiting for a disk (`man 5 proc_stat`)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[4]) + int(fields[5])


class BareLoops:
    """Processes that are ready to run the bare loop, so that their start is not counted."""

    def __init__(self, images: Sequence[bytes], most: int) -> None:
        self._images = list(images)
        self._pool = ProcessPoolExecutor(most, mp_context=multiprocessing.get_context("spawn"))
        self.run(most)

    def run(self, count: int) -> float:
        """Images per second of a number of simultaneous loops, counted while all of them run."""
        started = time.time() + 1.0
        loops = [self._pool.submit(bare_loop, self._images, started) for _ in range(count)]
        return sum(loop.result() for loop in loops)

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def bare_loop(images: Sequence[bytes], start: float) -> float:
    """Images per second of decode, resize and encode, for `LOOP_SECONDS` from a common start."""
    time.sleep(max(0.0, start - time.time()))
    begun = time.perf_counter()
    done = 0
    while (took := time.perf_counter() - begun) < LOOP_SECONDS:
        recode(images, FORM)
        done += len(images)
    return done / took


def processes(episodes: int, repeats: int) -> dict[str, Any]:
    """Speed with one and with two worker processes, and of bare loops: the best of several alternating runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = make_data(Path(name), episodes)
        images = first_images(folder)
        runs: dict[int, list[Run]] = {1: [], 2: []}
        bare: dict[int, float] = {1: 0.0, 2: 0.0}
        with contextlib.closing(BareLoops(images, 2)) as loops:
            for _, workers in itertools.product(range(repeats), runs):
                runs[workers].append(whole_command(folder, workers))
                bare[workers] = max(bare[workers], loops.run(workers))
    count = runs[1][0].frames
    # Other load only adds time, so the lowest of several runs is the best estimate.
    whole, work, used = (
        {n: min(getattr(run, part) for run in runs[n]) for n in runs} for part in ("whole", "work", "processor")
    )
    return {
        "frames": count,
        "processor_us_per_frame": {n: round(used[n] / count * 1e6) for n in runs},
        "speed_up_by_cpu": round(2 * used[1] / used[2], 3),
        "command_frames_per_s": {n: round(count / whole[n]) for n in runs},
        "command_speed_up": round(whole[1] / whole[2], 3),
        "work_frames_per_s": {n: round(count / work[n]) for n in runs},
        "bare_loops_per_s": {n: round(bare[n]) for n in bare},
        "measured": round(work[1] / work[2], 3),
        "ceiling": round(bare[2] / bare[1], 3),
    }


def first_images(folder: Path) -> list[bytes]:
    """The encoded images of the first episode of a data set."""
    source = RldsSource(str(folder), ENTRY, FrameForm("source"))
    _, episode = next(source.read(source.plan()[0]))
    assert isinstance(episode, Episode)
    return episode.frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--files", type=int, default=100, help="Files of the smaller data set; the larger one has ten times as many."
    )
    parser.add_argument(
        "--episodes", type=int, default=200, help="Episodes of 80 frames for the comparison of one and two processes."
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    costs(10)  # Warm-up: one-time work of the process.
    few, many = costs(options.files), costs(TIMES * options.files)
    linear = {part: {"seconds": round(many[part], 3), "times": round(many[part] / few[part], 2)} for part in few}
    files = [options.files, TIMES * options.files]
    results: dict[str, Any] = {"benchmark": "ingest_scaling", "files": files, "ten_times_the_files": linear}
    if options.episodes:
        results |= {"busy_before": round(busy_processors(), 2), **processes(options.episodes, options.repeats)}
        results["target"] = min(2, usable_cpus())
        results["ratio"] = round(results["measured"] / results["ceiling"], 3)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
