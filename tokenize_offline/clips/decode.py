"""From an episode to the pixels and step arrays of its clips; runs in reader processes ahead of the model (`reader_pool`)."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.common.errors import BadEpisodeError
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import MAX_NUMBER, Episode
from pipeline.episodes.frames import decode
from tokenize_offline.clips.sampling import ClipPlan, EpisodeShape, is_held_out, plan_clips
from tokenize_offline.clips.transforms import augment, to_square


@dataclass(frozen=True)
class EpisodeClips:
    """The clips of one episode.

    Attributes:
        key: Of the episode.
        held_out: Whether it is held out.
        action_meaning: What the columns of its actions mean.
        plans: One per row, in order.
        pixels: Different clips, (T, 3, S, S) float32 in [0, 1]; short episodes repeat the same clip, which is read once.
        clip_index: Per plan, its place in `pixels`.
        action: (rows, T, A) float32 or None; action[:, i] is what the episode did at the clip's frame i.
        reward: (rows, T) float32 or None.
        seconds_per_frame: Between neighbouring frames of its clips; None where its rate is not known.
    """

    key: str
    held_out: bool
    action_meaning: str
    plans: list[ClipPlan]
    pixels: list[Tensor]
    clip_index: list[int]
    action: np.ndarray | None
    reward: np.ndarray | None
    seconds_per_frame: float | None = None


def read_clips(episode: Episode, clips: ClipsConfig, views: int, held_out_share: float, side: int) -> EpisodeClips:
    """Plan, decode, crop and resize the clips of an episode.

    Actions and rewards are taken at the clip's frame indices: with a stride above 1 the action at the frame itself, not a sum
    over the frames in between, as the published models were trained. Where the last frame is repeated, so are they.

    Args:
        episode: With encoded frames.
        clips: Resolved, see `clips.resolve_clips`.
        views: Views of every position if the episode is not held out; held-out episodes have the plain one.
        held_out_share: Share of the split's episodes that are held out.
        side: S in pixels.

    Raises:
        BadEpisodeError: It has no frames, a frame can't be decoded or has another size, or actions or rewards have another
            length or are not finite at some step, used by a clip or not.
        ConfigError: The stride is a time and the episode's rate is not known.
    """
    if not episode.num_frames:
        raise BadEpisodeError("no frames")
    held_out = is_held_out(episode.dataset, episode.key, held_out_share)
    shape = EpisodeShape.of(episode)
    plans = plan_clips(shape, clips, 1 if held_out else views)
    pixels, clip_index = _pixels(episode, plans, side)
    frames = np.array([plan.frames for plan in plans])
    return EpisodeClips(
        key=episode.key,
        held_out=held_out,
        action_meaning=episode.action_meaning,
        plans=plans,
        pixels=pixels,
        clip_index=clip_index,
        action=_at_frames("action", episode.action, frames, episode.num_frames),
        reward=_at_frames("reward", episode.reward, frames, episode.num_frames),
        seconds_per_frame=plans[0].stride / episode.rate if episode.rate else None,
    )


def _pixels(episode: Episode, plans: list[ClipPlan], side: int) -> tuple[list[Tensor], list[int]]:
    needed = sorted({index for plan in plans for index in plan.frames})
    place = {index: number for number, index in enumerate(needed)}
    decoded = np.stack([decode_frame(episode, index) for index in needed])
    plain = to_square(decoded, side)
    pixels: list[Tensor] = []
    clip_index: list[int] = []
    seen: dict[object, int] = {}
    for plan in plans:
        different = (plan.frames, plan.augmentation)
        if different not in seen:
            seen[different] = len(pixels)
            places = [place[index] for index in plan.frames]
            if plan.augmentation is None:
                pixels.append(plain[places])
            else:
                pixels.append(augment(decoded[places], side, plan.augmentation))
        clip_index.append(seen[different])
    return pixels, clip_index


def decode_frame(episode: Episode, index: int) -> np.ndarray:
    """(H, W, 3) uint8: one frame of an episode.

    Raises:
        BadEpisodeError: It is damaged, or of another size than the episode's.
    """
    pixels = decode(episode.frames[index], checksummed=episode.stray_bytes)
    if pixels.shape != (episode.height, episode.width, 3):
        raise BadEpisodeError(
            f"frame {index} has {pixels.shape[0]} x {pixels.shape[1]} pixels, the episode {episode.height} x {episode.width}"
        )
    return pixels


def _at_frames(name: str, values: np.ndarray | None, frames: np.ndarray, num_frames: int) -> np.ndarray | None:
    if values is None:
        return None
    if len(values) != num_frames:
        raise BadEpisodeError(f"{len(values)} values of {name} for {num_frames} frames")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    # No comparison with NaN is true.
    bad = np.flatnonzero(~(np.abs(values) <= MAX_NUMBER).reshape(num_frames, -1).all(axis=1))
    if len(bad):
        raise BadEpisodeError(f"{name} is NaN or infinite at {len(bad)} of {num_frames} steps, the first is step {bad[0]}")
    return values[frames]
