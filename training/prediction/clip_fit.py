"""Whether a clip fits into an episode, and what would fit where it doesn't; frames are counted, none is read."""

import dataclasses

from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.sampling import EpisodeShape, frame_indices, stride_of

_ENDLESS = 1 << 62


def frames_needed(clips: ClipsConfig, start: int, stride: float) -> int:
    """Frames that an episode must have for a clip that begins at frame `start`; `clips` with length filled in."""
    # One frame more than there are would be repeated, so an episode that never ends shows how many are needed.
    return max(frame_indices(clips, start, stride, _ENDLESS)[int(clips.goal) :]) + 1


def what_fits(clips: ClipsConfig, start: int, shape: EpisodeShape, context: int, free: bool = True) -> str:
    """What to ask for in place of a clip that is too long for an episode, in words: each of the ways fits by itself.

    Args:
        clips: With length filled in.
        start: First frame of the clip.
        shape: Of the episode.
        context: Context frames, that of the goal included.
        free: Whether start, steps and stride may be chosen; a protocol sets them.
    """
    if not free:
        return "name episodes that are longer, or leave --protocol out"
    ways = []
    if 0 <= (last := shape.num_frames - frames_needed(clips, 0, stride_of(clips, shape))) < start:
        ways.append(f"--start {last} at most fits")
    if steps := _most_steps(clips, start, shape, context):
        ways.append(f"--steps {steps} fits")
    gaps = (clips.length or 0) - int(clips.goal) - 1
    if gaps and 1 <= (smaller := (shape.num_frames - 1 - start) // gaps) < stride_of(clips, shape):
        ways.append(f"--clips.stride {smaller} fits")
    return ", or ".join(ways) or _all_at_once(clips, shape, context)


def _all_at_once(clips: ClipsConfig, shape: EpisodeShape, context: int) -> str:
    """What fits where no single option does."""
    if steps := _most_steps(clips, 0, shape, context):
        return f"--start 0 --steps {steps} fits"
    if steps := _most_steps(dataclasses.replace(clips, stride="1"), 0, shape, context):
        return f"--start 0 --clips.stride 1 --steps {steps} fits"
    return f"a prediction takes {context} frames of context and one more: name a longer episode"


def _most_steps(clips: ClipsConfig, start: int, shape: EpisodeShape, context: int) -> int:
    """The most frames after the context with which a clip still fits; 0 where none does."""
    goal = int(clips.goal)
    # The stride may follow from the length, so each length is tried; no clip has more frames than the episode.
    for steps in range(min(clips.length or 0, shape.num_frames + goal) - context, 0, -1):
        shorter = dataclasses.replace(clips, length=context + steps)
        stride = stride_of(shorter, shape)
        # `frames_needed` without the frames between the first and the last.
        if start + int((context + steps - goal - 1) * stride + 0.5) < shape.num_frames:
            return steps
    return 0
