"""Checks whether a clip fits into an episode, and suggests options that fit. It counts frames and reads none."""

import dataclasses

from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.sampling import EpisodeShape, frame_indices, stride_of

_ENDLESS = 1 << 62


def frames_needed(clips: ClipsConfig, start: int, stride: float) -> int:
    """Returns the number of frames an episode needs for a clip from frame `start`; `clips.length` must be set."""
    # Indices stop at the last frame of an episode, so use an endless episode to see which are needed.
    return max(frame_indices(clips, start, stride, _ENDLESS)[int(clips.goal) :]) + 1


def what_fits(clips: ClipsConfig, start: int, shape: EpisodeShape, context: int, free: bool = True) -> str:
    """Returns options that fit, as text, for a clip that is too long for an episode; each of them fits alone.

    Args:
        clips: Clips section with `length` set.
        start: First frame of the clip.
        shape: Shape of the episode.
        context: Number of context frames, the goal frame included.
        free: Whether the user may choose start, steps and stride; a protocol sets them.
    """
    if not free:
        return "use longer episodes, or leave out --protocol"
    ways = []
    if 0 <= (last := shape.num_frames - frames_needed(clips, 0, stride_of(clips, shape))) < start:
        ways.append(f"use --start {last} or less")
    if steps := _most_steps(clips, start, shape, context):
        ways.append(f"use --steps {steps}")
    gaps = (clips.length or 0) - int(clips.goal) - 1
    if gaps and 1 <= (smaller := (shape.num_frames - 1 - start) // gaps) < stride_of(clips, shape):
        ways.append(f"use --clips.stride {smaller}")
    return ", or ".join(ways) or _all_at_once(clips, shape, context)


def _all_at_once(clips: ClipsConfig, shape: EpisodeShape, context: int) -> str:
    """Returns options that fit together, where no single option fits."""
    if steps := _most_steps(clips, 0, shape, context):
        return f"use --start 0 --steps {steps}"
    if steps := _most_steps(dataclasses.replace(clips, stride="1"), 0, shape, context):
        return f"use --start 0 --clips.stride 1 --steps {steps}"
    return f"a prediction needs {context} context frames and one more: use a longer episode"


def _most_steps(clips: ClipsConfig, start: int, shape: EpisodeShape, context: int) -> int:
    """Returns the largest number of future frames that fits; 0 if none fits."""
    goal = int(clips.goal)
    # The stride may depend on the length, so try each length. A clip has no more frames than its episode.
    for steps in range(min(clips.length or 0, shape.num_frames + goal) - context, 0, -1):
        shorter = dataclasses.replace(clips, length=context + steps)
        stride = stride_of(shorter, shape)
        # Same as `frames_needed`, but computes only the last index.
        if start + int((context + steps - goal - 1) * stride + 0.5) < shape.num_frames:
            return steps
    return 0
