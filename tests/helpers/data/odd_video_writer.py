"""Writes video files that say odd things, in processes apart: on odd times FFmpeg's writers abort, and take all with them."""

import contextlib
import functools
import io
import os
import pickle
import subprocess
import sys
from fractions import Fraction
from typing import IO, NamedTuple

import av
import numpy as np

_UNWRITABLE = (av.error.FFmpegError, ValueError, OverflowError)
_LENGTH_BYTES = 8


class Stream(NamedTuple):
    """A video in a file: codec, pixels, width and height, unit of time, and by how much each picture's time is later.

    A step of 2 stands for a picture without a time.
    """

    codec: str
    pixels: str
    size: tuple[int, int]
    unit: Fraction
    steps: list[int]


def written(form: str, options: dict[str, str], title: str, streams: list[Stream], sound: bool) -> bytes:
    """A video file; empty, or what there was of it until then, where FFmpeg can't write it."""
    process = _writer()
    _send(process.stdin, pickle.dumps((form, options, title, [tuple(stream) for stream in streams], sound)))
    return _receive(process.stdout)


@functools.cache
def _writer() -> subprocess.Popen:
    """A small process, which forks for each file; it ends when its input does."""
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(_LENGTH_BYTES) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    return pipe.read(int.from_bytes(pipe.read(_LENGTH_BYTES)))


def _serve() -> None:
    requests = sys.stdin.buffer
    while request := _receive(requests):
        reading, writing = os.pipe()
        if not (pid := os.fork()):
            try:
                form, options, title, streams, sound = pickle.loads(request)
                with open(writing, "wb") as pipe:
                    wanted = [Stream(*stream) for stream in streams]
                    # Matroska takes nearly all codecs.
                    pipe.write(_file(form, options, title, wanted, sound) or _file("matroska", {}, title, wanted, sound))
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        _send(sys.stdout.buffer, data)


def _file(form: str, options: dict[str, str], title: str, streams: list[Stream], sound: bool) -> bytes:
    buffer = io.BytesIO()
    with contextlib.suppress(*_UNWRITABLE), av.open(buffer, "w", format=form, container_options=options) as container:
        container.metadata["title"] = title
        # The header is written with the first packet, and streams that come later crash FFmpeg.
        packets = _sound(container) if sound else []
        for stream in streams:
            packets += _pictures(container, stream)
        for packet in packets:
            container.mux(packet)
    return buffer.getvalue()


def _sound(container: av.container.OutputContainer) -> list[av.Packet]:
    with contextlib.suppress(*_UNWRITABLE):
        stream = container.add_stream("mp2", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1152), np.int16), format="s16", layout="stereo")
        sound.sample_rate = 44100
        return list(stream.encode(sound))
    return []


def _pictures(container: av.container.OutputContainer, wanted: Stream) -> list[av.Packet]:
    packets: list[av.Packet] = []
    with contextlib.suppress(*_UNWRITABLE):
        stream = container.add_stream(wanted.codec, rate=10, options={"threads": "1"})
        width, height = stream.width, stream.height = wanted.size
        stream.pix_fmt = wanted.pixels
        for number in range(len(wanted.steps)):
            pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=wanted.pixels)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += stream.encode(frame)
        packets += stream.encode() if wanted.steps else []
        # Encoders want times that increase; what a file says, whoever wrote it could choose.
        stream.time_base = wanted.unit
        time = 0
        for step, packet in zip(wanted.steps, packets, strict=False):
            time += step
            packet.pts = packet.dts = time if step != 2 else None
            packet.time_base = wanted.unit
    return packets


if __name__ == "__main__":
    _serve()
