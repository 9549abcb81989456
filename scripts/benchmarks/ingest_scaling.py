"""Whether ten times the data costs ten times the time, and what a second process gives.

Linear cost: planning, units and index of a data set and of one with ten times as many files, in this process, by processor
time; each should cost ten times as much. Processes: the whole command over the same data with one worker process and with two,
in turn, by the clock: from its start to its end, and its work alone as its summary has it. Prints one JSON line; `measured` is
the speed-up of the work by a second process, `ceiling` 2, or the number of processors where there are fewer.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from ingest import ENTRY, NAME, ingest, make_data
from ingest_memory import scene

from pipeline import frames, index
from pipeline.frames import FrameForm
from pipeline.plan import make_plan
from pipeline.sources.rlds import RldsSource
from pipeline.sources.rlds_writer import write_rlds

TIMES = 10


def write_small(root: Path, files: int) -> Path:
    """A data set of so many files of one short episode each."""
    features = tfds.features
    image = features.Image(shape=(64, 64, 3), encoding_format="jpeg")
    spec = features.FeaturesDict({"steps": features.Dataset({"observation": features.FeaturesDict({"image": image})})})
    images = [frames.encode_jpeg(scene(number, 64, 64)) for number in range(8)]
    episodes = ({"steps": [{"observation": {"image": images[(n + t) % 8]}} for t in range(8)]} for n in range(files))
    return write_rlds(root, NAME, "0.1.0", spec, {"train": episodes}, episodes_per_shard=1)


@contextlib.contextmanager
def busy(into: dict[str, float], name: str) -> Iterator[None]:
    """Processor time of a block."""
    started = time.process_time()
    yield
    into[name] = time.process_time() - started


def costs(files: int) -> dict[str, float]:
    """Seconds of planning, units and index for so many files, a shard each."""
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
            index.write_index(str(output), NAME, index.read_records(str(output)), [])
    return took


def whole_command(folder: Path, workers: int) -> tuple[float, float, int]:
    """Seconds from start to end of the command, those of its work, and its frames."""
    with tempfile.TemporaryDirectory() as output:
        given = ["--dataset", NAME, "--camera", "image", "--rate", "10", "--source", str(folder), "--output", output]
        processes = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
        command = [sys.executable, "-m", "pipeline", *given, "--data.shard_mib", "4", "--", *processes]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
        summary = json.loads(done.stdout)
        return time.perf_counter() - started, summary["seconds"], summary["frames"]


def processes(episodes: int, repeats: int) -> dict[str, Any]:
    """Speed of one worker process and of two, medians of several runs in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = make_data(Path(name), episodes)
        runs: dict[int, list[tuple[float, float, int]]] = {1: [], 2: []}
        for _, workers in itertools.product(range(repeats), runs):
            runs[workers].append(whole_command(folder, workers))
    count = runs[1][0][2]
    whole, work = ({n: statistics.median(run[part] for run in runs[n]) for n in runs} for part in (0, 1))
    return {
        "frames": count,
        "command_frames_per_s": {n: round(count / whole[n]) for n in runs},
        "command_speed_up": round(whole[1] / whole[2], 3),
        "work_frames_per_s": {n: round(count / work[n]) for n in runs},
        "measured": round(work[1] / work[2], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100, help="Of the smaller data set; the other has ten times as many.")
    parser.add_argument("--episodes", type=int, default=200, help="Of 80 frames, for the comparison of one process and two.")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    costs(10)  # What is done once a process is done now.
    few, many = costs(options.files), costs(TIMES * options.files)
    linear = {part: {"seconds": round(many[part], 3), "times": round(many[part] / few[part], 2)} for part in few}
    results = {"benchmark": "ingest_scaling", "files": [options.files, TIMES * options.files], "ten_times_the_files": linear}
    if options.episodes:
        results |= processes(options.episodes, options.repeats)
        results["ceiling"] = min(2, len(os.sched_getaffinity(0)))
        results["ratio"] = round(results["measured"] / results["ceiling"], 3)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
