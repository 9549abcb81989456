"""Predictions as mp4, for slides, messengers and editors that take no GIF.

H.264 in the 4:2:0 pixels that every player reads. Frames are enlarged before, so the halved colour resolution stays below
one pixel of the model's.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np

from pipeline.common import storage
from training.visuals.pictures import DEFAULT_RATE, Strip, side_by_side

# The first that this build of FFmpeg encodes. Browsers don't play MPEG-4 part 2; desktop players do.
_CODECS = ("libx264", "mpeg4")
# Visually lossless for x264; `qscale`, of 1 to 31, is its counterpart for mpeg4.
_QUALITY = {"libx264": {"crf": "16"}, "mpeg4": {"qscale": "2"}}


def write_mp4(path: str, strips: Sequence[Strip], context_length: int, rate: float | None = None) -> None:
    """Write strips side by side as a video, one picture a frame, as `write_gif` shows them.

    Args:
        path: File to publish.
        strips: All of the same T and S.
        context_length: How many of the T frames are context.
        rate: Frames per second; None takes 4.
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
    """Pixels (H, W, 3) with a row and a column repeated where 4:2:0 wants even numbers of them."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
