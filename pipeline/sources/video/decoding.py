"""Decodes a video file: yields its frames with their times, and the gaps between runs of frames."""

import errno
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition

from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError
from pipeline.episodes.frames import MAX_PIXELS
from pipeline.sources.video.containers import bytes_missing, is_lfs_pointer
from pipeline.sources.video.intact_runs import Fault, IntactFrames
from pipeline.sources.video.picture_memory import CopyBytes, PictureMemory
from pipeline.sources.video.timestamps import AHEAD, DecodedFrame, assign_times

# Limits of a missing end that isn't counted as truncated: a fraction of the stated duration, and seconds.
_TOLERATED_SHARE = 0.1
_TOLERATED_SECONDS = 2.0
# FFmpeg's other formats include playlists, which can make it open any file or address.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,asf,flv,ogg,mxf,ivf,nut,dv,rm"
# A longer gap in time is a jump (`dts_delta_threshold` of the program ffmpeg).
_FAR_SECONDS = 10.0
# Memory limit of the frames that wait for their times.
_WAITING_BYTES = 256 << 20
_BYTES_PER_PIXEL = 4
_DEFAULT_STEP = 1 / 25  # seconds
_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


class PresentedFrame(NamedTuple):
    """A frame and its time in seconds; None if it has no usable time."""

    time: float | None
    frame: av.VideoFrame


@dataclass(frozen=True)
class Gap:
    """A gap between two runs of frames, or a missing end.

    Attributes:
        reason: What is wrong; empty if time only jumps.
        seconds: Lost time in seconds, after the last intact frame.
        total: Duration of the whole video in seconds, as stated, or else up to this gap.
        step: Seconds between two frames.
        cut: Whether the file is truncated here.
    """

    reason: str = ""
    seconds: float = 0.0
    total: float = 0.0
    step: float = 1.0
    cut: bool = False


def presented_frames(file: IO[bytes], copy_bytes: CopyBytes) -> Iterator[PresentedFrame | Gap]:
    """Yield all intact frames of a file's best video stream, and the gaps between runs of frames.

    Args:
        file: A seekable file in any container that FFmpeg reads.
        copy_bytes: See `PictureMemory`.

    Raises:
        BadEpisodeError: The file is not a video, can't be opened, or its pictures need too much memory.
    """
    missing = 0
    try:
        if is_lfs_pointer(file):
            raise DamagedEpisodeError("it is a Git LFS pointer. Fetch the file itself: git lfs pull")
        missing = bytes_missing(file)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        with av.open(file, mode="r", metadata_errors="replace", options={"format_whitelist": _CONTAINERS}) as container:
            yield from _Video(container, missing, size).frames(PictureMemory(copy_bytes))
    except av.error.FFmpegError as error:
        raise DamagedEpisodeError(cut_short(missing) if missing else f"the video can't be decoded: {error.strerror}") from error
    except OSError as error:
        # Probing seeks back from the end, which fails with EINVAL in a file shorter than the last block of a format.
        if error.errno != errno.EINVAL:
            raise
        raise DamagedEpisodeError(cut_short(missing) if missing else "the file is too short to be a video") from error


class DisplayTransform:
    """Rotates and mirrors pictures according to their display matrix, to the nearest of the eight orientations.

    The matrix maps a point (x, y) to (a x + c y, b x + d y), y pointing down (ISO/IEC 14496-12, 6.2.2). It is read once per
    rotation: PyAV's side data and their frame reference each other, so reading them frees the frame's memory much later.
    """

    def __init__(self) -> None:
        self._matrices: dict[int, tuple[int, int, int, int]] = {}

    def __call__(self, pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
        """Return the upright pixels (H, W, 3) of a frame."""
        if (matrix := self._matrices.get(frame.rotation)) is None:
            matrix = self._matrices[frame.rotation] = _display_matrix(frame)
        a, b, c, d = matrix
        if abs(a) + abs(d) < abs(b) + abs(c):
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        return pixels if a >= 0 and d >= 0 else pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    return a, b, c, d


class _Video:
    """The best video stream of an open file."""

    def __init__(self, container: av.container.InputContainer, missing: int, size: int) -> None:
        """See `presented_frames`.

        Args:
            container: Container of the video.
            missing: Number of missing bytes.
            size: Size of the file in bytes.
        """
        self._container = container
        self._missing = missing
        self._size = size
        self._stream = stream = _best_stream(container)
        self._unit = stream.time_base or Fraction(1, 1000)  # seconds per unit of timestamps
        rate = stream.guessed_rate or stream.average_rate
        self._step = 1 / float(rate) if rate else _DEFAULT_STEP
        self._stated = _stated_end(container, stream)
        self._start = float((stream.start_time or 0) * self._unit)
        self._end = self._start  # end of the last frame in seconds

    def frames(self, memory: PictureMemory) -> Iterator[PresentedFrame | Gap]:
        """See `presented_frames`."""
        runs = IntactFrames(self._container, self._stream, memory, self._ahead())
        fault: Fault | None = None
        far = float(_FAR_SECONDS / self._unit)
        while not runs.ended:
            for frame, units, jumps in assign_times(self._decoded(runs.run()), far, self._ahead()):
                time = None if units is None else float(units) * self._unit.numerator / self._unit.denominator
                if fault is not None:
                    yield self._damage(fault, time, runs.skipped)
                    fault = None
                elif jumps:
                    yield Gap(step=self._step)
                if time is not None and time + self._step < self._end:
                    # Another recording begins; the stated end doesn't apply to both.
                    self._stated = None
                yield PresentedFrame(time, frame)
                self._end = self._end if time is None else time + self._step
            fault = runs.fault or fault
        if (gap := self._at_end(fault, runs.skipped)) is not None:
            yield gap

    def _decoded(self, frames: Iterator[av.VideoFrame]) -> Iterator[DecodedFrame[av.VideoFrame]]:
        step = float(self._step / self._unit)
        for frame in frames:
            yield DecodedFrame(frame, frame.pts, frame.dts, frame.duration or step)

    def _ahead(self) -> int:
        codec = self._stream.codec_context
        return max(4, min(AHEAD, _WAITING_BYTES // (_BYTES_PER_PIXEL * max(1, codec.width * codec.height))))

    def _damage(self, fault: Fault, until: float | None, skipped: int) -> Gap:
        """Return the gap from the last frame to the next frame, which is at `until` seconds."""
        seconds = max(1, skipped) * self._step
        if until is not None and until > self._end:
            seconds = until - self._end
        reason = f"{fault.reason}, and what is between {self._end:.2f} and {self._end + seconds:.2f} s is lost"
        return self._gap(reason, seconds)

    def _at_end(self, fault: Fault | None, skipped: int) -> Gap | None:
        """Return the gap between the last frame and the expected end of the video, or None."""
        short = 0.0 if self._stated is None else max(0.0, self._stated - self._end)
        if self._missing:
            by_bytes = (self._end - self._start) * self._missing / max(1, self._size)
            return self._gap(cut_short(self._missing), short or by_bytes, cut=True)
        if fault is not None:
            return self._damage(fault, self._stated, skipped)
        tolerated = max(min(_TOLERATED_SHARE * (self._stated or 0), _TOLERATED_SECONDS), 2 * self._step)
        if short > tolerated and self._end > self._start:
            return self._gap(f"the file is cut short: its last {short:.1f} seconds are missing", short, cut=True)
        return None

    def _gap(self, reason: str, seconds: float, cut: bool = False) -> Gap:
        total = max(self._end + seconds, self._stated or 0) - self._start
        return Gap(reason, seconds, total, self._step, cut)


def cut_short(missing: int) -> str:
    """Return the reason for a file with missing bytes."""
    return f"the file is cut short: by its own sizes, {missing} bytes are missing"


def _best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the video stream that FFmpeg would choose, ready for decoding.

    Raises:
        BadEpisodeError: There is no video stream, or it can't be decoded.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None or stream.disposition & Disposition.attached_pic:
        if any(stream.codec_context is None for stream in container.streams.video):
            raise DamagedEpisodeError("the file doesn't say how its video is encoded")
        raise BadEpisodeError("the file holds no video")
    stream.codec_context.thread_count = 1
    # A later picture may be larger than the header states.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise BadEpisodeError(f"frames of more than {MAX_PIXELS} pixels")
    return stream


def _stated_end(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Return the stated end of the video in seconds; None if it isn't stated.

    Matroska states it in a tag of the stream. The whole file may last longer because of its sound.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
    if (tag := _DURATION.match(stream.metadata.get("DURATION", ""))) is not None:
        hours, minutes, seconds = map(float, tag.groups())
        return 3600 * hours + 60 * minutes + seconds
    if container.duration is not None and len(container.streams) == 1:
        return ((container.start_time or 0) + container.duration) / av.time_base
    return None
