"""Small videos whose frames say which ones they are, for tests."""

import av
import numpy as np

from pipeline.episode import Episode
from pipeline.frames import decode


def write_video(path, count=24, rate=12, codec="mpeg4", height=48, width=64) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.bit_rate = 4_000_000
        for t in range(count):
            # The brightness of a frame says which one it is.
            pixels = np.full((height, width, 3), 10 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def numbers(episode: Episode) -> list[int]:
    return [round(float(decode(frame).mean()) / 10) for frame in episode.frames]
