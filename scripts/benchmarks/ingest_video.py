"""Measures how fast one process ingests a video, against an upper bound.

The ceiling is a loop in which PyAV decodes every frame and shrinks it to packed RGB with the filter of the stage, without
encoding. Two more loops shrink via planes, like the stage, and one of them also encodes; the last loop only decodes. The
differences give the microseconds per frame of `decode`, `shrink`, `encode` and `rest` (sampling, measuring quality, hashing and
writing). A short video is used several times, because a shard holds hundreds of them. All loops alternate over the same files.
Prints one JSON line; speeds are frames per second of processor time, which hardly depends on other load.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter
from ingest import fastest, ingest
from ingest_memory import VIDEO, write_video

from pipeline.episodes import frames
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.plan import make_plan
from pipeline.sources.video.source import SHRINKING, SHRUNK_TO, VideoSource

FORM = FrameForm("jpeg", short_side=80)
Work = Callable[[av.VideoFrame], object]


def bare(folder: Path, start: Callable[[], Work]) -> int:
    """Decode all videos and process every frame with a new work per video; returns the number of frames."""
    count = 0
    for path in sorted(folder.iterdir()):
        work = start()
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                work(frame)
                count += 1
    return count


def only_decode() -> Work:
    """Do nothing with the frames."""
    return lambda frame: None


def shrink(colours: str, encode: bool = False) -> Work:
    """Shrink frames to pixels (H, W, 3) via a pixel format of FFmpeg, and optionally encode them."""
    scaler = VideoReformatter()

    def work(frame: av.VideoFrame) -> None:
        height, width = frames.shrunk_size(frame.height, frame.width, FORM.short_side or frame.height)
        pixels = scaler.reformat(frame, width, height, colours, interpolation=SHRINKING, threads=1).to_ndarray()
        if encode:
            frames.encode_jpeg(pixels, FORM.quality)

    return work


def compare(folder: Path, output: Path, repeats: int) -> dict[str, Any]:
    """Compare ingest of a folder of videos with the bare loops."""
    source = VideoSource(str(folder), VIDEO, FORM)
    units = make_plan(source, None, None, 64 << 20)
    works: list[Callable[[], object]] = [
        lambda: bare(folder, lambda: shrink("rgb24")),
        lambda: bare(folder, only_decode),
        lambda: bare(folder, lambda: shrink(SHRUNK_TO)),
        lambda: bare(folder, lambda: shrink(SHRUNK_TO, encode=True)),
        lambda: ingest(units, source, output),
    ]
    taken = [busy for _, busy in fastest(works, repeats)]
    count = bare(folder, only_decode)
    ceiling, decoding, shrinking, encoding, ours = (seconds / count for seconds in taken)
    costs = {"decode": decoding, "shrink": shrinking - decoding, "encode": encoding - shrinking, "rest": ours - encoding}
    return {
        "frames": count,
        "measured": round(1 / ours),
        "ceiling": round(1 / ceiling),
        "ratio": round(ceiling / ours, 3),
        "ratio_to_own_shrinking": round(shrinking / ours, 3),
        "ratio_with_encoding": round(encoding / ours, 3),
        "us_per_frame": {name: round(1e6 * seconds, 1) for name, seconds in costs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="Video files; by default a 720-line video is made.")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    results: dict[str, Any] = {"benchmark": "ingest_video", "unit": "frames/s of processor time"}
    with tempfile.TemporaryDirectory() as name:
        for number, given in enumerate(options.videos or [None]):
            folder = Path(name) / str(number)
            folder.mkdir()
            if given is None:
                path = folder / "made.mp4"
                write_video(path, options.frames, 720, 1280)
            else:
                path = folder / given.name
                path.symlink_to(given.resolve())
                for copy in range(1, math.ceil(options.frames / bare(folder, only_decode))):
                    (folder / f"{copy}-{given.name}").symlink_to(given.resolve())
            results[path.name] = compare(folder, Path(name) / f"out{number}", options.repeats)
    worst = min((result for result in results.values() if isinstance(result, dict)), key=lambda result: result["ratio"])
    print(json.dumps({**results, **{key: worst[key] for key in ("measured", "ceiling", "ratio")}}))


if __name__ == "__main__":
    main()
