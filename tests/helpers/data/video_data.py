"""Small videos whose frames say which ones they are, for tests."""

from fractions import Fraction

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import decode


def write_video(path, count=24, rate=12, codec="mpeg4", height=48, width=64) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000
        for t in range(count):
            # The brightness of a frame says which one it is.
            pixels = np.full((height, width, 3), 10 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def numbers(episode: Episode) -> list[int]:
    return [round(float(decode(frame).mean()) / 10) for frame in episode.frames]


def write_moving(path, count: int, codec: str = "libx264", rate: int = 25, gop: int = 50, **options: str) -> None:
    """A video of noise that moves a pixel a frame, so that every frame has something to say; with B-frames for H.264."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.bit_rate = 200_000
        for t in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, t, axis=1), format="rgb24")))
        container.mux(stream.encode())


# Both codecs come length by length in MP4 and Matroska, and between start codes in the containers of broadcasting.
START_CODES = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}


def remux(source, target) -> None:
    """The packets of a file's best video in another container; AVI, which has no pts, gets them in coding order."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        video = old.streams.best("video")
        codec = video.codec_context.name
        # Opaque: not every codec that is decoded has an encoder.
        stream = new.add_stream_from_template(video, opaque=True)
        bare = None
        if str(target).endswith((".avi", ".mpg", ".vob")):
            if str(target).endswith(".avi"):
                stream.time_base = 1 / Fraction(video.average_rate)
            if codec in START_CODES and (video.codec_context.extradata or b"")[:1] == b"\1":
                bare = BitStreamFilterContext(START_CODES[codec], video)
        begin = None
        for packet in old.demux(video):
            if packet.dts is not None:
                # AVI begins at 0 whatever its first packet says; the program ffmpeg moves the others too.
                begin = packet.dts if begin is None else begin
                if str(target).endswith(".avi"):
                    packet.dts, packet.pts = packet.dts - begin, packet.pts - begin
                for ready in [packet] if bare is None else bare.filter(packet):
                    ready.stream = stream
                    new.mux(ready)


def spoil(data: bytes, *places: float, size: int = 3000) -> bytes:
    """Bytes with random ones at some shares of their length, across several frames: within one, a decoder may not notice."""
    spoilt = bytearray(data)
    for seed, place in enumerate(places):
        start = int(len(data) * place)
        spoilt[start : start + size] = np.random.default_rng(seed).bytes(size)
    return bytes(spoilt)
