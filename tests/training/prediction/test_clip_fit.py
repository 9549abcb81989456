"""The options suggested for a clip that is too long for its episode work, each one alone."""

import dataclasses
import re

from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.sampling import EpisodeShape, stride_of
from training.prediction.clip_fit import frames_needed, what_fits


@given(
    length=st.integers(3, 40),
    goal=st.booleans(),
    stride=st.sampled_from(["reference", "1", "2", "7", "0.3s", "1.05s"]),
    start=st.integers(0, 60),
    frames=st.integers(1, 60),
    base_step=st.floats(1, 40),
)
def test_each_suggestion_fits_and_is_the_largest_that_fits(
    length: int, goal: bool, stride: str, start: int, frames: int, base_step: float
):
    clips = ClipsConfig(length=length, context_length=2, goal=goal, stride=stride)
    shape = EpisodeShape("made_up", "train-00000-000000", frames, 40, 40, 5.0, base_step)

    def fits(clips: ClipsConfig, start: int) -> bool:
        return frames_needed(clips, start, stride_of(clips, shape)) <= frames

    if fits(clips, start):
        return
    ways = [
        dict(re.findall(r"--(start|steps|clips.stride) (\d+)", way)) for way in what_fits(clips, start, shape, 2).split(", or ")
    ]
    for way in filter(None, ways):
        length = 2 + int(way["steps"]) if "steps" in way else clips.length
        followed = dataclasses.replace(clips, length=length, stride=way.get("clips.stride", clips.stride))
        begun = int(way.get("start", start))
        assert fits(followed, begun)
        if way.keys() == {"start"}:
            assert not fits(clips, begun + 1)
    alone = max((int(way["steps"]) for way in ways if way.keys() == {"steps"}), default=0)
    assert not any(fits(dataclasses.replace(clips, length=other), start) for other in range(3 + alone, clips.length))
    if not any(ways):
        assert not any(fits(dataclasses.replace(clips, stride="1", length=other), 0) for other in range(3, clips.length + 1))
