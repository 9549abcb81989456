"""How fast one process ingests a video, against what it can't beat.

The ceiling is a loop in which PyAV decodes every frame and shrinks it, at the same setting of FFmpeg's scaler; it encodes
nothing. A second loop encodes the shrunk frames too, as the stage has to. A short video is there several times: shards hold
hundreds of such. All run in turn over the same files. Prints one JSON line; speeds are frames per second of processor time,
which other load on the machine leaves alone for the most part.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter
from ingest import fastest, ingest
from ingest_memory import VIDEO, write_video

from pipeline import frames
from pipeline.frames import FrameForm
from pipeline.plan import make_plan
from pipeline.sources.video import SHRINKING, VideoSource

FORM = FrameForm("jpeg", short_side=80)


def bare(folder: Path, encode: bool) -> int:
    """Decode and shrink all frames of all videos, and encode them where asked; how many there are."""
    count = 0
    for path in sorted(folder.iterdir()):
        scaler = VideoReformatter()
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            height, width = frames.shrunk_size(stream.height, stream.width, FORM.short_side or stream.height)
            for frame in container.decode(stream):
                pixels = scaler.reformat(frame, width, height, "rgb24", interpolation=SHRINKING, threads=1).to_ndarray()
                if encode:
                    frames.encode_jpeg(pixels, FORM.quality)
                count += 1
    return count


def compare(folder: Path, output: Path, repeats: int) -> dict[str, Any]:
    """Ingest of a folder of videos beside the bare loops."""
    source = VideoSource(str(folder), VIDEO, FORM)
    units = make_plan(source, None, None, 64 << 20)
    works = [lambda: ingest(units, source, output), lambda: bare(folder, False), lambda: bare(folder, True)]
    (_, ours), (_, ceiling), (_, with_encoding) = fastest(works, repeats)
    count = bare(folder, False)
    return {
        "frames": count,
        "measured": round(count / ours),
        "ceiling": round(count / ceiling),
        "ratio": round(ceiling / ours, 3),
        "ceiling_with_encoding": round(count / with_encoding),
        "ratio_with_encoding": round(with_encoding / ours, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="Files; by default one of 720 lines is made.")
    parser.add_argument("--frames", type=int, default=300)
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
                for copy in range(1, math.ceil(options.frames / bare(folder, False))):
                    (folder / f"{copy}-{given.name}").symlink_to(given.resolve())
            results[path.name] = compare(folder, Path(name) / f"out{number}", options.repeats)
    worst = min((result for result in results.values() if isinstance(result, dict)), key=lambda result: result["ratio"])
    print(json.dumps({**results, **{key: worst[key] for key in ("measured", "ceiling", "ratio")}}))


if __name__ == "__main__":
    main()
