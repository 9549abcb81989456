"""Reads episodes from video files of any container, with PyAV.

Headers aren't trusted: frames are counted by decoding them, and their timestamps give the time. A long video becomes several
episodes, so that memory is limited; a new episode also begins where time jumps or after damage. Decoding uses one thread,
because work is divided by files. Frames that sampling drops are decoded but never converted to pixels. FFmpeg's scaler shrinks
the others first, by averaging areas: a tenth of Pillow's time at 720 lines, half that of FFmpeg's bicubic, and 40 dB or more to
both. It returns planes of red, green and blue, which have the same values as packed pixels at half the cost. YCbCr would save
another 20 us per frame of 240 lines, but the scaler puts grey at 127.5 where JPEG has 128, which tints every picture.
Captions come from `metadata.csv` or `metadata.jsonl` next to the videos.
"""

import csv
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, MissingEpisodeError, SourceError
from pipeline.common.json_files import parse_json
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, shrunk_size
from pipeline.sources.base import MAX_EPISODE_BYTES, BadEpisode, KeptFrame, Source, SourceShard, make_episode
from pipeline.sources.video.decoding import DisplayTransform, Gap, presented_frames
from pipeline.sources.video.frame_sampling import sample_frames

# Endings in lower case. Formats whose missing end can't be detected, or without times, are left out.
ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v"),
    *(".webm", ".mkv", ".avi", ".divx", ".flv", ".wmv", ".asf", ".ogv", ".nut"),
    *(".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t"),
)
EPISODE_FRAMES = 1000
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
MAX_TEXT = 10_000
# Limits of frames without a usable time in one episode: a number, and a fraction.
_FEW = 3
_FEW_SHARE = 0.01
UNTIMED = "frames of videos without a usable time"
_RATE_ROUNDING = 0.002
# Without the first two flags the scaler uses half the colour columns and rounds coarsely: 23 dB instead of 40 on test charts.
# The third makes the result the same on all processors.
_EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
SHRINKING = Interpolation.AREA | _EXACT
SHRUNK_TO = "gbrp"
_COPIED = 9  # bytes per pixel of the copies: planes, packed pixels, and encoded or rotated pixels
# At full size only the colour planes, which have fewer pixels, are scaled.
_KEEPING_SIZE = Interpolation.BICUBIC | _EXACT


def read_video(path: str | Path, rate: float | None = None, max_frames: int | None = None) -> Episode:
    """Read one video file as one episode; its frames become JPEG (quality 95, 4:4:4) at full size.

    Args:
        path: A local path or URL.
        rate: Frames per second to sample; by default, and above the video's rate, every frame is taken.
        max_frames: Stop after this many frames; by default `EPISODE_FRAMES`.

    Raises:
        SourceError: The file doesn't exist, or can't be decoded as a video.
    """
    path = str(path)
    entry = DatasetEntry(name="video", directory="", image_key="video", control_hz=rate)
    shard = SourceShard("file", 0, storage.basename(path))
    try:
        with storage.open_read(path) as file:
            items = _episodes(file, entry, FrameForm("jpeg"), shard, max_frames or EPISODE_FRAMES)
            episode = next(items)
            if isinstance(episode, Episode) and episode.num_frames < (max_frames or EPISODE_FRAMES):
                follows = next(items, episode)
                episode = follows if isinstance(follows, BadEpisode) else episode
    except OSError as error:
        raise SourceError(f"{path} can't be opened: {error}") from error
    except BadEpisodeError as error:
        raise SourceError(f"{path} can't be used as a video: {error}") from error
    if isinstance(episode, BadEpisode):
        raise SourceError(f"{path} can't be used as a video: {episode.reason}")
    return episode


class VideoSource(Source):
    """A folder with video files at any depth, sorted by name; all of them belong to the split `train`.

    Attributes:
        episode_frames: Longer videos are cut into episodes of this many frames.
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
        """Accept videos at any depth. See `Source.is_data`."""
        return name.lower().endswith(ENDINGS)

    def is_metadata(self, name: str) -> bool:
        """See `Source.is_metadata`."""
        return name in METADATA_FILES

    def plan(self) -> list[SourceShard]:
        """Return all files. See `Source.plan`."""
        names = list(self.list_data())
        texts = read_captions(self.folder, set(names))
        return [SourceShard("train", None, name, text=texts.get(name, "")) for name in names]

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """Yield the episodes of a file. See `Source.read`."""
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
    """Return file -> caption from `metadata.csv` or `metadata.jsonl`; empty if neither exists.

    Args:
        folder: Folder of the videos.
        videos: Names of the existing files; other names are never used as paths.

    Raises:
        SourceError: The file is damaged, or names a missing video; the message gives the line.
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
                raise SourceError(f"{path}, line {line} names {file[:200]!r}, but {folder} has no such video; remove the line")
            captions[file] = text[:MAX_TEXT]
    return captions


def _metadata_rows(data: bytes, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a metadata file with their line numbers; for several lines, the number of the last."""
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
        raise SourceError(f"{path} is not valid UTF-8 CSV or JSON lines: {error}. Correct it, or remove it") from error


class _EpisodeBuilder:
    """Collects the frames of one episode."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.kept: list[KeptFrame] = []
        self.bytes = 0
        self.untimed = 0

    def add(self, time: float, frame: KeptFrame) -> None:
        """Add a frame.

        Raises:
            BadEpisodeError: The frames exceed the size limit of an episode.
        """
        self.times.append(time)
        self.kept.append(frame)
        self.bytes += len(frame[0])
        if self.bytes > MAX_EPISODE_BYTES:
            raise BadEpisodeError(
                f"its first {len(self.kept)} frames take more than {MAX_EPISODE_BYTES} bytes; pass a smaller --episode_frames"
            )

    def episode(self, entry: DatasetEntry, shard: SourceShard, record: int) -> Episode | BadEpisode:
        """Return the episode with the position `record` in the file."""
        if self.untimed > max(_FEW, _FEW_SHARE * len(self.kept)):
            return BadEpisode(f"{self.untimed} of its frames have no usable time, {len(self.kept)} have one")
        untimed = {UNTIMED: self.untimed} if self.untimed else {}
        if not self.kept:
            return BadEpisode("its frames have no usable time", ignored=untimed)
        rate = _rate(self.times, entry.control_hz)
        return make_episode(entry, shard, record, self.kept, rate=rate, language=shard.text, ignored=untimed)


def _episodes(
    file: IO[bytes], entry: DatasetEntry, form: FrameForm, shard: SourceShard, length: int
) -> Iterator[Episode | BadEpisode]:
    """Yield a video as episodes of at most `length` frames; a new one begins after a jump, a fault or a change of size."""
    record = 0
    builder = _EpisodeBuilder()
    for item in pictures(file, entry.control_hz, form.short_side):
        done: list[Episode | BadEpisode] = []
        if isinstance(item, Gap):
            if (builder.kept or builder.untimed) and not item.cut:
                done.append(builder.episode(entry, shard, record))
            if item.reason:
                lost = _episodes_lost(item, entry.control_hz, length, len(builder.kept) if item.cut else 0)
                done.append(BadEpisode(item.reason, DamagedEpisodeError.kind, episodes=lost))
            builder = _EpisodeBuilder()
        elif item.pixels is None or item.time is None:
            builder.untimed += 1
        else:
            frame = form.keep_pixels(item.pixels)
            if builder.kept and (len(builder.kept) == length or builder.kept[-1][1] != frame[1]):
                done.append(builder.episode(entry, shard, record))
                builder = _EpisodeBuilder()
            builder.add(item.time, frame)
        yield from done
        record += len(done)
        # Free the episode before the next one is read: it may be large.
        del done
    if builder.kept or builder.untimed:
        yield builder.episode(entry, shard, record)
    elif record == 0:
        raise BadEpisodeError("no frames")


def _episodes_lost(gap: Gap, sampled_rate: float | None, length: int, unfinished: int) -> float:
    """Return the number of episodes that a gap would have held; it may be a fraction.

    Args:
        gap: Gap of the video.
        sampled_rate: Frames per second to sample; None takes all.
        length: Frames per episode; a short video has fewer.
        unfinished: Number of frames of the unfinished episode that are lost too.
    """
    rate = min(1 / gap.step, sampled_rate or float("inf"))
    total = gap.total * rate
    return round(min(gap.seconds * rate + unfinished, total) / min(length, total), 4) if total >= 1 else 1.0


def _rate(times: list[float], sampled_rate: float | None) -> float | None:
    """Return the frames per second: the sampling rate, or else the measured rate, corrected for times in milliseconds."""
    if len(times) < 2:
        return sampled_rate
    measured = (len(times) - 1) / (times[-1] - times[0])
    if sampled_rate is not None and measured > 0.9 * sampled_rate:
        return sampled_rate
    whole = round(measured)
    return min(
        (rate for rate in (whole, whole / 1.001) if abs(rate - measured) < _RATE_ROUNDING * measured),
        key=lambda rate: abs(rate - measured),
        default=measured,
    )


class Picture(NamedTuple):
    """Pixels (H, W, 3) uint8 RGB and their time in seconds; both are None for a frame without a usable time."""

    time: float | None
    pixels: np.ndarray | None


def pictures(file: IO[bytes], rate: float | None = None, short_side: int | None = None) -> Iterator[Picture | Gap]:
    """Yield the upright frames of a video, with increasing times in each run, and the gaps between the runs.

    Args:
        file: A file in any container that FFmpeg reads.
        rate: Frames per second to sample; None takes all frames.
        short_side: Shrink pictures to this short side in pixels; None, or a smaller picture, keeps the size.

    Raises:
        BadEpisodeError: The file is no video, can't be opened, needs too much memory, or holds a frame that can't become RGB.
    """
    scaler = VideoReformatter()
    transform = DisplayTransform()

    def size_of(height: int, width: int) -> tuple[int, int]:
        return (height, width) if short_side is None else shrunk_size(height, width, short_side)

    for item in sample_frames(presented_frames(file, lambda *size: _COPIED * math.prod(size_of(*size))), rate):
        if isinstance(item, Gap):
            yield item
            continue
        time, frame = item
        if time is None:
            yield Picture(None, None)
            continue
        height, width = size = size_of(frame.height, frame.width)
        scaling = _KEEPING_SIZE if size == (frame.height, frame.width) else SHRINKING
        try:
            # The planes are freed after packing.
            pixels = scaler.reformat(frame, width, height, SHRUNK_TO, interpolation=scaling, threads=1).to_ndarray()
        except av.error.FFmpegError as error:
            raise BadEpisodeError(f"a frame can't be converted to RGB: {error.strerror}") from error
        yield Picture(time, transform(pixels, frame))


def decoded(file: IO[bytes], rate: float | None = None, short_side: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the pictures of an intact video with their times; see `pictures`.

    Raises:
        BadEpisodeError: The file is not a video, or a part of it is damaged or missing.
    """
    for item in pictures(file, rate, short_side):
        if isinstance(item, Gap):
            if item.reason:
                raise DamagedEpisodeError(item.reason)
        elif item.time is None or item.pixels is None:
            raise BadEpisodeError("a frame has no usable time")
        else:
            yield item.time, item.pixels
