"""Measures a worker's memory for an episode of 20,000 frames, from RLDS and from a video, compared with 100 frames.

A worker holds one episode at a time, with encoded frames, so its memory is a small multiple of the episode. Prints one JSON
line: the peak resident MiB of a process that makes one shard, and the multiple as `ratio`. `ceiling` is the peak without any
work; for the multiple it is 1, the record itself.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import tensorflow_datasets as tfds
from ingest import ENTRY, NAME, ingest
from PIL import Image

from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import frames
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.plan import make_plan
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.rlds.writer import write_rlds
from pipeline.sources.video.source import VideoSource

SHORT, RATE = 100, 30
VIDEO = DatasetEntry("video", "", "video")
FORMS = {"source": FrameForm("source"), "jpeg": FrameForm("jpeg", short_side=80)}


def scene(number: int, height: int, width: int) -> np.ndarray:
    """A noisy image, (height, width, 3) uint8."""
    generator = np.random.default_rng(number)
    coarse = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return np.clip(picture + generator.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def write_records(root: Path, count: int, height: int, width: int) -> Path:
    """Write an RLDS data set of one episode that cycles through a few images."""
    features = tfds.features
    image = features.Image(shape=(height, width, 3), encoding_format="jpeg")
    step = {"observation": features.FeaturesDict({"image": image}), "action": features.Tensor(shape=(7,), dtype=np.float32)}
    spec = features.FeaturesDict({"steps": features.Dataset(step)})
    images = [frames.encode_jpeg(scene(number, height, width), 80) for number in range(16)]
    steps = [{"observation": {"image": images[t % 16]}, "action": np.zeros(7, np.float32)} for t in range(count)]
    return write_rlds(root, NAME, "0.1.0", spec, {"train": [{"steps": steps}]})


def write_video(path: Path, count: int, height: int, width: int) -> None:
    """Write a video that cycles through a few images."""
    pictures = [scene(number, height, width) for number in range(16)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, "yuv420p", 2_000_000
        for t in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[t % 16], format="rgb24")))
        container.mux(stream.encode())


def peak_mib() -> float:
    """Peak resident memory of this process. `getrusage` would include its parent's memory."""
    return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def work(kind: str, form: str, folder: str, output: str, episode_frames: int) -> dict[str, Any]:
    """Run one work unit in this process; returns peak memory in MiB before and after."""
    idle = peak_mib()
    if kind == "rlds":
        ingest(make_plan(source := RldsSource(folder, ENTRY, FORMS[form]), None, None, 1 << 30), source, Path(output))
    else:
        videos = VideoSource(folder, VIDEO, FORMS[form], episode_frames)
        ingest(make_plan(videos, None, None, 1 << 30), videos, Path(output))
    return {"idle": idle, "peak": peak_mib()}


def measured(kind: str, form: str, folder: Path, count: int, episode_frames: int) -> dict[str, Any]:
    """Peak memory of a new process that ingests a source of one episode."""
    with tempfile.TemporaryDirectory() as output:
        given = ["--work", kind, form, str(folder), output, str(episode_frames)]
        done = subprocess.run([sys.executable, __file__, *given], stdout=subprocess.PIPE, check=True, text=True)
        (record,) = Path(output).glob("train-*.json")
        found = json.loads(record.read_bytes())
        assert found["frames"] == count, found
    peak = json.loads(done.stdout.splitlines()[-1])
    source = sum(path.stat().st_size for path in folder.iterdir())
    held = max(found["bytes"], source) / 2**20 if kind == "rlds" else found["bytes"] / 2**20
    return {
        "frames": count,
        "source_mib": round(source / 2**20, 1),
        "shard_mib": round(found["bytes"] / 2**20, 1),
        "idle_mib": round(peak["idle"]),
        "peak_mib": round(peak["peak"]),
        "times_held": round((peak["peak"] - peak["idle"]) / held, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        kind, form, folder, output, episode_frames = options.work
        print(json.dumps(work(kind, form, folder, output, int(episode_frames))))
        return
    results: dict[str, Any] = {"benchmark": "ingest_memory", "unit": "MiB", "size": [options.height, options.width]}
    for count in (SHORT, options.frames):
        with tempfile.TemporaryDirectory() as name:
            folder = write_records(Path(name), count, options.height, options.width)
            (Path(name) / "videos").mkdir()
            write_video(Path(name) / "videos" / "a.mp4", count, options.height, options.width)
            for form in FORMS:
                results[f"rlds_{form}_{count}"] = measured("rlds", form, folder, count, count)
            results[f"video_{count}"] = measured("video", "jpeg", Path(name) / "videos", count, count)
            results[f"video_in_thousands_{count}"] = measured("video", "jpeg", Path(name) / "videos", count, 1000)
    longest = results[f"rlds_source_{options.frames}"]
    print(
        json.dumps({**results, "measured": longest["peak_mib"], "ceiling": longest["idle_mib"], "ratio": longest["times_held"]})
    )


if __name__ == "__main__":
    main()
