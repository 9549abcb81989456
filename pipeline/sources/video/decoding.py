"""What a video file shows and when: its frames with their times, and the gaps at which one stretch ends and the next begins."""

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
from pipeline.sources.video.intact_runs import Fault, SoundFrames
from pipeline.sources.video.picture_memory import Besides, PictureMemory
from pipeline.sources.video.timestamps import AHEAD, Stamped, timed

# A video may end so early before it counts as cut short: this share of its stated duration, and so many seconds.
_TOLERATED_SHARE = 0.1
_TOLERATED_SECONDS = 2.0
# FFmpeg's other formats include playlists, which would have it open whatever files and addresses they name.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,asf,flv,ogg,mxf,ivf,nut,dv,rm"
# A longer gap in time is a jump (`dts_delta_threshold` of the program ffmpeg).
_FAR_SECONDS = 10.0
# Frames that wait until their times are clear take no more memory than this.
_WAITING_BYTES = 256 << 20
_BYTES_PER_PIXEL = 4
_DEFAULT_STEP = 1 / 25  # seconds
_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


class Shown(NamedTuple):
    """A frame and its time in seconds; None where it has no usable time."""

    time: float | None
    frame: av.VideoFrame


@dataclass(frozen=True)
class Gap:
    """A place at which one stretch of a video ends and the next begins, or the video ends where it should not.

    Attributes:
        reason: What is wrong there; empty where nothing is, but time jumps.
        seconds: How much is lost, from the last sound frame's end.
        total: Seconds that the whole video has by its own account, else those there are up to here.
        step: Seconds from a frame to the next.
        cut: The file ends before it should.
    """

    reason: str = ""
    seconds: float = 0.0
    total: float = 0.0
    step: float = 1.0
    cut: bool = False


def shown_frames(file: IO[bytes], besides: Besides) -> Iterator[Shown | Gap]:
    """All sound frames of a file's best video, and the gaps between its stretches.

    Args:
        file: Of any container that FFmpeg reads; seekable.
        besides: See `PictureMemory`.

    Raises:
        BadEpisodeError: The file is no video, or one that can't be opened, or its pictures need too much memory.
    """
    missing = 0
    try:
        if is_lfs_pointer(file):
            raise DamagedEpisodeError("it is a Git LFS pointer. Fetch the file itself: git lfs pull")
        missing = bytes_missing(file)
        there = file.seek(0, io.SEEK_END)
        file.seek(0)
        with av.open(file, mode="r", metadata_errors="replace", options={"format_whitelist": _CONTAINERS}) as container:
            yield from _Video(container, missing, there).shown(PictureMemory(besides))
    except av.error.FFmpegError as error:
        raise DamagedEpisodeError(cut_short(missing) if missing else f"the video can't be decoded: {error.strerror}") from error
    except OSError as error:
        # Probing seeks back from the end; what is shorter than a format's last block is no such file.
        if error.errno != errno.EINVAL:
            raise
        raise DamagedEpisodeError(cut_short(missing) if missing else "the file is too short to be a video") from error


class Upright:
    """Turns and mirrors the pictures of a video as their display matrix says, to the nearest of the eight ways.

    The matrix takes a point (x, y) to (a x + c y, b x + d y), y pointing down (ISO/IEC 14496-12, 6.2.2). It is looked up once
    for each rotation: PyAV's side data and their frame hold each other, so that its memory is free only much later.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int, int, int]] = {}

    def __call__(self, pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
        """The pixels (H, W, 3) of a frame, upright."""
        if (matrix := self._known.get(frame.rotation)) is None:
            matrix = self._known[frame.rotation] = _display_matrix(frame)
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
    """An open file's best video."""

    def __init__(self, container: av.container.InputContainer, missing: int, there: int) -> None:
        """See `shown_frames`.

        Args:
            container: Of the video.
            missing: Bytes that the file lacks.
            there: Bytes that it has.
        """
        self._container = container
        self._missing = missing
        self._there = there
        self._stream = stream = _best_stream(container)
        self._unit = stream.time_base or Fraction(1, 1000)  # of timestamps, in seconds
        rate = stream.guessed_rate or stream.average_rate
        self._step = 1 / float(rate) if rate else _DEFAULT_STEP
        self._stated = _stated_end(container, stream)
        self._start = float((stream.start_time or 0) * self._unit)
        self._end = self._start  # of the last frame

    def shown(self, memory: PictureMemory) -> Iterator[Shown | Gap]:
        """See `shown_frames`."""
        sound = SoundFrames(self._container, self._stream, memory, self._ahead())
        fault: Fault | None = None
        while not sound.ended:
            for frame, units, jumps in timed(self._stamped(sound.run()), float(_FAR_SECONDS / self._unit), self._ahead()):
                time = None if units is None else float(units) * self._unit.numerator / self._unit.denominator
                if fault is not None:
                    yield self._damage(fault, time, sound.skipped)
                    fault = None
                elif jumps:
                    yield Gap(step=self._step)
                if time is not None and time + self._step < self._end:
                    # Another recording: when all end is not said of both.
                    self._stated = None
                yield Shown(time, frame)
                self._end = self._end if time is None else time + self._step
            fault = sound.fault or fault
        if (gap := self._at_end(fault, sound.skipped)) is not None:
            yield gap

    def _stamped(self, frames: Iterator[av.VideoFrame]) -> Iterator[Stamped[av.VideoFrame]]:
        step = float(self._step / self._unit)
        for frame in frames:
            yield Stamped(frame, frame.pts, frame.dts, frame.duration or step)

    def _ahead(self) -> int:
        codec = self._stream.codec_context
        return max(4, min(AHEAD, _WAITING_BYTES // (_BYTES_PER_PIXEL * max(1, codec.width * codec.height))))

    def _damage(self, fault: Fault, until: float | None, skipped: int) -> Gap:
        """The gap from the last frame to the next one, at `until` seconds."""
        seconds = max(1, skipped) * self._step
        if until is not None and until > self._end:
            seconds = until - self._end
        reason = f"{fault.reason}, and what is between {self._end:.2f} and {self._end + seconds:.2f} s is lost"
        return self._gap(reason, seconds)

    def _at_end(self, fault: Fault | None, skipped: int) -> Gap | None:
        """The gap between the last frame and where the video should end."""
        short = 0.0 if self._stated is None else max(0.0, self._stated - self._end)
        if self._missing:
            by_bytes = (self._end - self._start) * self._missing / max(1, self._there)
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
    """What is said of a file that lacks bytes."""
    return f"the file is cut short: by its own sizes, {missing} bytes are missing"


def _best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video that FFmpeg would take, ready for decoding.

    Raises:
        BadEpisodeError: There is none, or one that can't be decoded.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None or stream.disposition & Disposition.attached_pic:
        if any(stream.codec_context is None for stream in container.streams.video):
            raise DamagedEpisodeError("the file doesn't say how its video is encoded")
        raise BadEpisodeError("the file holds no video")
    stream.codec_context.thread_count = 1
    # A later picture may be larger than the header says.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise BadEpisodeError(f"frames of more than {MAX_PIXELS} pixels")
    return stream


def _stated_end(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """When the video ends by what is said of it, in seconds; None where nobody says.

    Matroska says it in a tag of the stream. Its file as a whole may last longer, by its sound.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
    if (tag := _DURATION.match(stream.metadata.get("DURATION", ""))) is not None:
        hours, minutes, seconds = map(float, tag.groups())
        return 3600 * hours + 60 * minutes + seconds
    if container.duration is not None and len(container.streams) == 1:
        return ((container.start_time or 0) + container.duration) / av.time_base
    return None
