"""Writes predictions as mp4, for slides, messengers and editors that accept no GIF.

The video is H.264 with 4:2:0 pixels, which every player reads. Frames are enlarged first, so the halved colour resolution is
still finer than one pixel of the model.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np

from pipeline.common import storage
from training.visuals.pictures import DEFAULT_RATE, Strip, side_by_side

# Use the first one that this build of FFmpeg can encode. Browsers do not play MPEG-4 part 2; desktop players do.
_CODECS = ("libx264", "mpeg4")
# Visually lossless: `crf` for x264, `qscale` (1 to 31) for mpeg4.
_QUALITY = {"libx264": {"crf": "16"}, "mpeg4": {"qscale": "2"}}


def write_mp4(path: str, strips: Sequence[Strip], context_length: int, rate: float | None = None) -> None:
    """Writes strips side by side as a video, as `write_gif` does.

    Args:
        path: File to publish.
        strips: Strips of the same length T and size S.
        context_length: Number of context frames.
        rate: Frames per second; None means 4.
    """
    codec = next(name for name in _CODECS if name in av.codecs_available)
    pace = max(Fraction(rate or DEFAULT_RATE).limit_denominator(1000), Fraction(1, 10))
    frames = [_even(np.asarray(side_by_side(strips, number, context_length))) for number in range(len(strips[0].frames))]
    with storage.staged(path) as staging, av.open(str(staging), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream = cast(av.VideoStream, file.add_stream(codec, rate=pace, options=_QUALITY[codec]))
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def _even(pixels: np.ndarray) -> np.ndarray:
    """Repeats the last row and column of pixels (H, W, 3) where needed: 4:2:0 needs even numbers."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
