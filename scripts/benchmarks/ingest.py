"""Measures how fast one process ingests RLDS, with untouched and with re-encoded frames, against an upper bound.

The ceiling of `source` is a loop that reads the records, compares checksums, hashes them and writes them to a file. The ceiling
of `jpeg` is a loop that decodes, resizes and encodes the same images in memory. Prints one JSON line with frames per second.
Values named `cpu` are per second of processor time, which hardly depends on other load and on waiting for the disk.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image

from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import frames
from pipeline.episodes.frames import FrameForm
from pipeline.episodes.shards import open_shard
from pipeline.ingest.plan import WorkUnit, make_plan
from pipeline.ingest.work_unit import run_unit
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.rlds.writer import write_rlds
from pipeline.sources.tfrecord.reader import read_records

HEIGHT, WIDTH, FRAMES = 256, 320, 80
NAME = "benchmark"
ENTRY = DatasetEntry(NAME, NAME, "image", control_hz=10.0, base_step=10.0)


def make_data(root: Path, episodes: int) -> Path:
    """Make RLDS episodes of moving blobs over noise: JPEGs of about 22 kB, actions, and an unused embedding."""
    features = tfds.features
    spec = features.FeaturesDict(
        {
            "steps": features.Dataset(
                {
                    "observation": features.FeaturesDict(
                        {
                            "image": features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="jpeg"),
                            "natural_language_embedding": features.Tensor(shape=(512,), dtype=np.float32),
                        }
                    ),
                    "action": features.Tensor(shape=(7,), dtype=np.float32),
                    "language_instruction": features.Text(),
                }
            )
        }
    )
    made = (_episode(np.random.default_rng(seed)) for seed in range(episodes))
    return write_rlds(root, NAME, "0.1.0", spec, {"train": made}, episodes_per_shard=5)


def _episode(generator: np.random.Generator) -> dict[str, Any]:
    coarse = generator.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((2 * WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
    scene = np.clip(scene + generator.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
    images = [frames.encode_jpeg(scene[:, 2 * t : 2 * t + WIDTH], 80) for t in range(FRAMES)]
    step = {"action": np.zeros(7, np.float32), "language_instruction": "move"}
    embedding = np.zeros(512, np.float32)
    return {"steps": [{**step, "observation": {"image": image, "natural_language_embedding": embedding}} for image in images]}


def fastest(works: Sequence[Callable[[], object]], repeats: int) -> list[tuple[float, float]]:
    """Lowest wall and processor seconds of several runs of each work, alternating so that load affects all alike."""
    best = [(float("inf"), float("inf"))] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            started, busy = time.perf_counter(), time.process_time()
            work()
            took = (time.perf_counter() - started, time.process_time() - busy)
            best[number] = (min(best[number][0], took[0]), min(best[number][1], took[1]))
    return best


def ingest(units: Sequence[WorkUnit], source: RldsSource, output: Path) -> None:
    """Run all work units of a plan in this process."""
    for unit in units:
        run_unit(unit, source, str(output))


def copy_records(folder: Path, output: Path) -> None:
    """Read, check, hash and write the records: the bare loop for `source`."""
    digest = hashlib.sha256()
    with output.open("wb") as file:
        for path in sorted(folder.glob("*.tfrecord-*")):
            for record in read_records(str(path)):
                digest.update(record)
                file.write(record)
        file.flush()
        os.fsync(file.fileno())


def recode(images: Sequence[bytes], form: FrameForm) -> None:
    """Decode, resize and encode: the bare loop for `jpeg`."""
    height, width = frames.shrunk_size(HEIGHT, WIDTH, form.short_side or HEIGHT)
    for image in images:
        pixels = Image.fromarray(simplejpeg.decode_jpeg(image, min_height=height, min_width=width))
        small = np.ascontiguousarray(pixels.resize((width, height), Image.Resampling.BICUBIC))
        simplejpeg.encode_jpeg(small, quality=form.quality, colorsubsampling="444")


def compare(form: FrameForm, folder: Path, bare: Callable[[], object], output: Path, repeats: int) -> dict[str, Any]:
    """Compare ingest in one form with its bare loop; shards stay in `output`."""
    source = RldsSource(str(folder), ENTRY, form)
    units = make_plan(source, None, None, 64 << 20)
    (seconds, busy), (bare_seconds, bare_busy) = fastest([lambda: ingest(units, source, output), bare], repeats)
    count = sum(json.loads(path.read_bytes())["frames"] for path in output.glob("train-*.json"))
    return {
        "measured": round(count / seconds),
        "ceiling": round(count / bare_seconds),
        "ratio": round(bare_seconds / seconds, 3),
        "measured_cpu": round(count / busy),
        "ratio_cpu": round(bare_busy / busy, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    jpeg = FrameForm("jpeg", short_side=80)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = make_data(scratch, options.episodes)
        kept = scratch / "source"
        as_source = compare(FrameForm("source"), folder, lambda: copy_records(folder, scratch / "copy"), kept, options.repeats)
        images = [image for shard in sorted(kept.glob("*.tar")) for episode in open_shard(shard) for image in episode.frames]
        as_jpeg = compare(jpeg, folder, lambda: recode(images, jpeg), scratch / "jpeg", options.repeats)
    facts = {"benchmark": "ingest", "unit": "frames/s", "frames": len(images)}
    facts["bytes_per_frame"] = sum(map(len, images)) // len(images)
    print(json.dumps({**facts, "source": as_source, "jpeg": as_jpeg}))


if __name__ == "__main__":
    main()
