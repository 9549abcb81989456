"""Every real clip gives the same pictures at the same times in every container, or is left out."""

from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from video_data import remux

from pipeline.common.errors import BadEpisodeError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm
from pipeline.sources.video.decoding import Gap, PresentedFrame, presented_frames
from pipeline.sources.video.frame_sampling import sample_frames
from pipeline.sources.video.source import VideoSource

ENDINGS = (".avi", ".mkv", ".ts", ".mpg", ".vob")


class Clip(NamedTuple):
    """What is read of a file.

    Attributes:
        times: Of its frames in seconds, from the first on.
        frames: The frames, small.
        flaws: Faults, jumps and frames without a time.
    """

    times: np.ndarray
    frames: list[bytes]
    flaws: list[str]

    @classmethod
    def of(cls, items: list[PresentedFrame | Gap]) -> "Clip":
        timed = [item for item in items if not isinstance(item, Gap) and item.time is not None]
        gaps = [item.reason or "time jumps" for item in items if isinstance(item, Gap)]
        times = np.array([item.time for item in timed], float)
        untimed = len(items) - len(gaps) - len(timed)
        return cls(times - times[:1].sum(), [item.frame for item in timed], gaps + ["no time"] * untimed)

    def without(self, count: int) -> "Clip":
        """Return the clip without its first frames."""
        return Clip(self.times[count:] - self.times[count], self.frames[count:], self.flaws)


def read(path: Path) -> list[PresentedFrame | Gap]:
    """Read a whole video, each frame as a few grey pixels without rotation; a gap with the reason if it is left out."""
    try:
        with path.open("rb") as file:
            return [
                item
                if isinstance(item, Gap)
                else PresentedFrame(item.time, item.frame.reformat(16, 16, "gray").to_ndarray().tobytes())
                for item in presented_frames(file, lambda *_: 0)
            ]
    except BadEpisodeError as error:
        return [Gap(str(error))]


def decodable(path: Path) -> int:
    """Return the number of frames that FFmpeg decodes."""
    count = 0
    try:
        with av.open(str(path)) as container:
            for _ in container.decode(video=0):
                count += 1
    except (av.error.FFmpegError, IndexError):
        pass
    return count


def differences(one: list[PresentedFrame | Gap], other: list[PresentedFrame | Gap], path: Path) -> list[str]:
    """Return the differences between a video and its copy in another container; times may differ by one frame."""
    wanted, found = Clip.of(one), Clip.of(other)
    if not found.frames and found.flaws:
        return [] if decodable(path) == 0 else [f"left out, though it can be decoded: {found.flaws}"]
    if (found.flaws, wanted.flaws) != ([], []):
        return [f"{found.flaws} in place of {wanted.flaws}"]
    # An edit list hides the first frames of one clip; other containers have none.
    hidden = len(found.frames) - len(wanted.frames)
    if hidden > 0 and decodable(path) == len(found.frames):
        found, other = found.without(hidden), other[hidden:]
    if found.frames != wanted.frames:
        return [f"other frames, or {len(found.frames)} in place of {len(wanted.frames)}"]
    step = wanted.times[-1] / max(1, len(wanted.times) - 1) or 1.0
    within = 1.001 * step
    if np.abs(found.times - wanted.times).max() > within:
        return [f"moments differ by {np.abs(found.times - wanted.times).max() / step:.1f} frames"]
    few, few_found = (Clip.of(list(sample_frames(iter(items), 10))) for items in (one, other))
    # A video that is longer by up to a frame may reach one moment more.
    longer = round((found.times[-1] - wanted.times[-1]) / step)
    both = min(len(few.times), len(few_found.times))
    if abs(len(few_found.times) - len(few.times)) > abs(longer):
        return [f"at 10 a second {len(few_found.times)} frames in place of {len(few.times)}"]
    if np.abs(few.times[:both] - few_found.times[:both]).max() > within:
        return ["at 10 a second other moments"]
    return []


@pytest.fixture(scope="module")
def clips(shared) -> dict[Path, list[PresentedFrame | Gap]]:
    """Read all real clips in their own containers."""
    folder = shared / "data" / "video"
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".mp4", ".mkv", ".webm", ".mpg", ".avi"))
    assert len(found) > 40
    return {path: read(path) for path in found}


@pytest.mark.parametrize(
    "ending", [pytest.param(one, marks=pytest.mark.soak) if one in (".mkv", ".vob") else one for one in ENDINGS]
)
def test_every_real_clip_keeps_its_frames_and_times_in_another_container_or_is_left_out(clips, tmp_path, ending):
    kept, wrong = set(), {}
    for path, items in clips.items():
        target = tmp_path / (path.stem + ending)
        try:
            remux(path, target)
        except (av.error.FFmpegError, ValueError):
            continue  # FFmpeg writes no such file.
        if found := differences(items, read(target), target):
            wrong[path.name] = found
        kept.add(path.stem)
        target.unlink()
    assert wrong == {}
    assert {"02_cups", "03_blocks", "04_coffee", "nasa_13013"} <= kept


@pytest.mark.parametrize("clip", ["02_cups", "04_coffee"])
def test_a_program_stream_with_repeated_times_is_one_episode_with_all_frames(shared, tmp_path, clip):
    remux(shared / "data" / "video" / "hands" / f"{clip}.mp4", tmp_path / "a.mpg")
    source = VideoSource(
        str(tmp_path), DatasetEntry("clips", "clips", "video", control_hz=None), FrameForm("jpeg", short_side=64)
    )
    (episode,) = [item for shard in source.plan() for _, item in source.read(shard)]
    assert isinstance(episode, Episode) and episode.ignored == {}
    assert (episode.num_frames, episode.rate) == ({"02_cups": 300, "04_coffee": 287}[clip], pytest.approx(30 / 1.001))
