"""Episodes from video files of any container, decoded by PyAV.

Headers are not believed: frames are counted by decoding them, and time is what their timestamps say. A long video becomes
several episodes, so that memory stays bounded. Decoding goes through one thread, since work is shared out by files. Frames
that sampling passes over are decoded but never become pixels, and FFmpeg's scaler shrinks the others before they do, by
averaging areas: a tenth of Pillow's time at 720 lines, half that of FFmpeg's bicubic, and 40 dB or more from either. It is
asked for planes of red, green and blue, whose numbers are those of packed pixels, at half the cost. Y, Cb and Cr, encoded as
they come, would spare a frame of 240 lines 20 us more, but the scaler puts their grey at 127.5, where JPEG has 128, and so
tints every picture. Captions come from a `metadata.csv` or `metadata.jsonl` beside the videos.
"""

import csv
import errno
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline import storage
from pipeline.catalog import DatasetEntry
from pipeline.episode import Episode
from pipeline.errors import BadEpisodeError, DamagedEpisodeError, MissingEpisodeError, SourceError
from pipeline.frames import MAX_PIXELS, FrameForm, shrunk_size
from pipeline.json_files import parse_json
from pipeline.sources.base import MAX_EPISODE_BYTES, BadEpisode, Source, SourceShard, make_episode
from pipeline.sources.containers import bytes_missing, is_lfs_pointer

# In small letters. Left out are those of files of which nobody can tell whether their end is missing, or that tell no times.
ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v"),
    *(".webm", ".mkv", ".avi", ".divx", ".flv", ".wmv", ".asf", ".ogv", ".nut"),
    *(".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t"),
)
EPISODE_FRAMES = 1000
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
MAX_TEXT = 10_000
# A video may end this share of its stated duration early before it counts as cut short.
_TOLERATED_LOSS = 0.1
_RATE_ROUNDING = 0.002
# FFmpeg's other formats include playlists, which would have it open whatever files and addresses they name.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,asf,flv,ogg,mxf,ivf,nut,dv,rm"
# Without the first two flags the scaler works on half the colour columns and rounds coarsely: 23 dB instead of 40 on test
# charts. The third makes all processors agree to the bit.
_EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
SHRINKING = Interpolation.AREA | _EXACT
SHRUNK_TO = "gbrp"
# At full size only colours, of which there are fewer, are enlarged.
_KEEPING_SIZE = Interpolation.BICUBIC | _EXACT


def read_video(path: str | Path, rate: float | None = None, max_frames: int | None = None) -> Episode:
    """One video file as one episode, its frames as JPEG (quality 95, 4:4:4) at full size.

    Args:
        path: A local path or URL.
        rate: Frames per second to sample; by default, and above the video's own rate, every frame is taken.
        max_frames: Stop after so many frames; by default `EPISODE_FRAMES`.

    Raises:
        SourceError: There is no such file, or no video can be decoded from it.
    """
    path = str(path)
    entry = DatasetEntry(name="video", directory="", image_key="video", control_hz=rate)
    shard = SourceShard("file", 0, storage.basename(path))
    try:
        with storage.open_read(path) as file:
            return next(_episodes(file, entry, FrameForm("jpeg"), shard, max_frames or EPISODE_FRAMES))
    except OSError as error:
        raise SourceError(f"{path} can't be opened: {error}") from error
    except BadEpisodeError as error:
        raise SourceError(f"{path} can't be used as a video: {error}") from error


class VideoSource(Source):
    """A folder of video files and folders of them, all of them the split `train`, in the order of their names.

    Attributes:
        episode_frames: A longer video is cut into episodes of so many frames.
    """

    kind = "video"
    format: ClassVar[int] = 2
    grows: ClassVar[bool] = True
    many_files: ClassVar[bool] = True

    def __init__(self, folder: str, entry: DatasetEntry, form: FrameForm, episode_frames: int = EPISODE_FRAMES) -> None:
        super().__init__(folder, entry, form)
        self.episode_frames = episode_frames

    def inputs(self) -> dict[str, Any]:
        """See `Source.inputs`."""
        return {**super().inputs(), "episode_frames": self.episode_frames}

    def is_data(self, name: str) -> bool:
        """Videos at any depth. See `Source.is_data`."""
        return name.lower().endswith(ENDINGS)

    def is_read_besides(self, name: str) -> bool:
        """See `Source.is_read_besides`."""
        return name in METADATA_FILES

    def plan(self) -> list[SourceShard]:
        """All files. See `Source.plan`."""
        names = list(self.list_data())
        texts = read_captions(self.folder, set(names))
        return [SourceShard("train", None, name, text=texts.get(name, "")) for name in names]

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """The episodes of a file. See `Source.read`."""
        path = storage.join(self.folder, shard.file)
        record = 0
        try:
            with storage.open_read(path) as file:
                episodes = _episodes(file, self.entry, self.form, shard, self.episode_frames)
                for episode in itertools.islice(episodes, shard.take):
                    yield record, episode
                    record += 1
        except FileNotFoundError:
            yield record, BadEpisode.of(MissingEpisodeError("the video is missing, though the source's labels name it"))
        except OSError as error:
            raise SourceError(f"{path} can't be opened: {error}") from error
        except BadEpisodeError as error:
            yield record, BadEpisode.of(error)


def read_captions(folder: str, videos: set[str]) -> dict[str, str]:
    """File -> caption, from `metadata.csv` or `metadata.jsonl` in a folder of videos; empty where neither is there.

    Args:
        folder: Of the videos.
        videos: Names of the files there are; what is no member never becomes a path.

    Raises:
        SourceError: The file is damaged, or names no video; the message says where.
    """
    present = [name for name in storage.list_files(folder) if name in METADATA_FILES]
    if len(present) > 1:
        raise SourceError(f"{folder} has both {' and '.join(present)}: remove one of them")
    captions = {}
    for name in present:
        path = storage.join(folder, name)
        for line, row in _metadata_rows(storage.read_bytes(path), path):
            file, text = row.get("file"), row.get("text")
            if not isinstance(file, str) or not isinstance(text, str):
                raise SourceError(f"{path}, line {line}: a caption needs `file` and `text`, both of them text")
            if file not in videos:
                raise SourceError(f"{path}, line {line} names {file[:200]!r}, and {folder} has no such video; remove the line")
            captions[file] = text[:MAX_TEXT]
    return captions


def _metadata_rows(data: bytes, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a metadata file with the numbers of their (last) lines."""
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
        if path.endswith(".csv"):
            reader = csv.DictReader(text, strict=True)
            yield from ((reader.line_num, row) for row in reader)
            return
        for number, line in enumerate(text, start=1):
            if line.strip():
                row = parse_json(line)
                yield number, row if isinstance(row, dict) else {}
    except (ValueError, csv.Error) as error:
        raise SourceError(f"{path} can't be read as UTF-8 text of its kind: {error}. Correct it, or remove it") from error


def _episodes(file: IO[bytes], entry: DatasetEntry, form: FrameForm, shard: SourceShard, length: int) -> Iterator[Episode]:
    """A video in pieces of at most `length` frames."""
    timed = decoded(file, entry.control_hz, form.short_side)
    for record in itertools.count():
        times, kept, total = [], [], 0
        for time, pixels in itertools.islice(timed, length):
            times.append(time)
            kept.append(form.keep_pixels(pixels))
            total += len(kept[-1][0])
            if total > MAX_EPISODE_BYTES:
                raise BadEpisodeError(
                    f"its first {len(kept)} frames take more than {MAX_EPISODE_BYTES} bytes; pass a smaller --episode_frames"
                )
        if not kept:
            if record == 0:
                raise BadEpisodeError("no frames")
            return
        yield make_episode(entry, shard, record, kept, rate=_rate(times, entry.control_hz), language=shard.text)


def _rate(times: list[float], wanted: float | None) -> float | None:
    """Frames per second: what was sampled for, else what timestamps say, rid of their rounding to milliseconds."""
    if len(times) < 2:
        return wanted
    measured = (len(times) - 1) / (times[-1] - times[0])
    if wanted is not None and measured > 0.9 * wanted:
        return wanted
    whole = round(measured)
    return min(
        (rate for rate in (whole, whole / 1.001) if abs(rate - measured) < _RATE_ROUNDING * measured),
        key=lambda rate: abs(rate - measured),
        default=measured,
    )


def _sampled(frames: Iterator[tuple[float, av.VideoFrame]], rate: float | None) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames nearest to times 1 / `rate` apart, none of them twice."""
    if rate is None:
        yield from frames
        return
    start: float | None = None
    wanted = 0  # number of the next time to be met
    previous: tuple[float, av.VideoFrame] | None = None
    half_gap = 0.0  # between the last two frames
    for frame in frames:
        if start is None or previous is None:
            start, previous = frame[0], frame
            continue
        half_gap = (frame[0] - previous[0]) / 2
        middle = previous[0] + half_gap - start
        if wanted / rate < middle:
            yield previous
            wanted = int(np.ceil(middle * rate))
        previous = frame
    if previous is not None and start is not None and wanted / rate <= previous[0] + half_gap - start:
        yield previous


def decoded(file: IO[bytes], rate: float | None = None, short_side: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a video with their times in seconds, upright, (H, W, 3) uint8 RGB.

    Args:
        file: Of any container that FFmpeg reads.
        rate: Frames per second to sample; None takes all frames.
        short_side: To which they are shrunk, in pixels; None keeps their size, and so does a smaller picture.

    Raises:
        BadEpisodeError: The file is no video, can't be decoded to its end, or is shorter than it says.
    """
    scaler = VideoReformatter()
    for time, frame in _sampled(_timed_frames(file), rate):
        height, width = size = frame.height, frame.width
        if short_side is not None:
            height, width = shrunk_size(*size, short_side)
        scaling = _KEEPING_SIZE if size == (height, width) else SHRINKING
        try:
            small = scaler.reformat(frame, width, height, SHRUNK_TO, interpolation=scaling, threads=1)
        except av.error.FFmpegError as error:
            raise BadEpisodeError(f"a frame can't be converted to RGB: {error.strerror}") from error
        pixels, turns = small.to_ndarray(), frame.rotation // 90
        yield time, np.rot90(pixels, turns) if turns else pixels


def _timed_frames(file: IO[bytes]) -> Iterator[tuple[float, av.VideoFrame]]:
    """All frames of the video as they are decoded, with their times in seconds, which increase."""
    last: float | None = None
    missing = 0
    try:
        if is_lfs_pointer(file):
            raise DamagedEpisodeError("it is a Git LFS pointer. Fetch the file itself: git lfs pull")
        missing = bytes_missing(file)
        file.seek(0)
        with av.open(file, mode="r", metadata_errors="replace", options={"format_whitelist": _CONTAINERS}) as container:
            if not container.streams.video:
                raise BadEpisodeError("the file holds no video")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DamagedEpisodeError("the file doesn't say how its video is encoded")
            stream.codec_context.thread_count = 1
            # A later picture may be larger than the header says.
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise BadEpisodeError(f"frames of more than {MAX_PIXELS} pixels")
            for frame in container.decode(stream):
                time = frame.time
                if frame.is_corrupt and missing:
                    break
                if frame.is_corrupt:
                    raise DamagedEpisodeError(f"the frame at {time} s is damaged")
                if time is None or (last is not None and time <= last):
                    continue
                last = time
                yield time, frame
            lost = _seconds_lost(container, stream, last)
    except av.error.FFmpegError as error:
        if not missing:
            raise DamagedEpisodeError(f"the video can't be decoded: {error.strerror}") from error
    except OSError as error:
        # Probing seeks back from the end; what is shorter than a format's last block is no such file.
        if error.errno != errno.EINVAL:
            raise
        if not missing:
            raise DamagedEpisodeError("the file is too short to be a video") from error
    if missing:
        raise DamagedEpisodeError(f"the file is cut short: by its own sizes, {missing} bytes are missing")
    if lost is not None:
        raise DamagedEpisodeError(f"the file is cut short: its last {lost:.1f} seconds are missing")


def _seconds_lost(container: av.container.InputContainer, stream: av.VideoStream, last: float | None) -> float | None:
    """How much of the stated duration did not decode, where that is more than a header's imprecision."""
    if last is None:
        return None
    if stream.duration is not None and stream.time_base is not None:
        stated = float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
    elif container.duration is not None:
        stated = ((container.start_time or 0) + container.duration) / av.time_base
    else:
        return None
    frame_time = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    lost = stated - last - frame_time
    return lost if lost > max(_TOLERATED_LOSS * stated, 2 * frame_time) else None
