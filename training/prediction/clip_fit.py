"""Whether a clip fits into an episode, and what would fit where it doesn't; frames are counted, none is read."""

from pipeline.recipe import ClipsConfig
from tokenize_offline.clips import frame_indices

_ENDLESS = 1 << 62


def frames_needed(clips: ClipsConfig, start: int, stride: float) -> int:
    """Frames that an episode must have for a clip that begins at frame `start`; `clips` with length filled in."""
    # One frame more than there are would be repeated, so an episode that never ends shows how many are needed.
    return max(frame_indices(clips, start, stride, _ENDLESS)[int(clips.goal) :]) + 1


def what_fits(clips: ClipsConfig, start: int, stride: float, num_frames: int, context: int, free: bool = True) -> str:
    """What to ask for in place of a clip that is too long for an episode, in words.

    Args:
        clips: With length filled in.
        start: First frame of the clip.
        stride: Frames between neighbours.
        num_frames: Of the episode.
        context: Context frames, that of the goal included.
        free: Whether start, steps and stride may be chosen; a protocol sets them.
    """
    if not free:
        return "name episodes that are longer, or leave --protocol out"
    ways = []
    if (last := num_frames - frames_needed(clips, 0, stride)) >= 0:
        ways.append(f"--start {last} at most fits")
    length = clips.length or 0
    after = num_frames - 1 - start
    # Frames of the clip that lie in the episode; the goal, its last frame, always does.
    fitting = sum(1 for step in range(length) if int(step * stride + 0.5) <= after) + int(clips.goal)
    if start < num_frames and fitting - context >= 1:
        ways.append(f"--steps {fitting - context} fits")
    gaps = length - int(clips.goal) - 1
    if gaps > 0 and (smaller := int(after // gaps)) >= 1 and smaller < stride:
        ways.append(f"--clips.stride {smaller} fits")
    return ", or ".join(ways) or f"a prediction takes {context} frames of context and one more: name a longer episode"
