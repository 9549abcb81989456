"""Decodes an episode into the pixels, actions and rewards of its clips. Reader processes run it (`decode_pool`)."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.common.errors import BadEpisodeError
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import MAX_NUMBER, Episode
from pipeline.episodes.frames import decode
from tokenize_offline.clips.sampling import Augmentation, ClipPlan, EpisodeShape, is_held_out, plan_clips
from tokenize_offline.clips.transforms import augment, to_square


@dataclass(frozen=True)
class EpisodeClips:
    """The clips of one episode.

    Attributes:
        key: Key of the episode.
        held_out: Whether the episode is held out.
        action_meaning: Meaning of the action columns.
        plans: One plan per row, in order.
        pixels: Unique clips, each (T, 3, S, S) float32 in [0, 1]. Rows of a short episode may share a clip.
        clip_index: For each plan, the index of its clip in `pixels`.
        action: (rows, T, A) float32 or None; action[:, i] is the action at the clip's frame i.
        reward: (rows, T) float32 or None.
        seconds_per_frame: Seconds between neighbouring frames of a clip; None if the episode's rate is unknown.
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

    Actions and rewards are those at the clip's frames, as the published models were trained: a stride above 1 does not sum
    the actions in between. A repeated last frame repeats its action and reward.

    Args:
        episode: The episode, with encoded frames.
        clips: Clip settings with everything filled in (`resolve_clips`).
        views: Views of each clip position; held-out episodes get only the plain view.
        held_out_share: Share of the split's episodes that are held out.
        side: Side S of the square frames in pixels.

    Raises:
        BadEpisodeError: The episode has no frames, a frame is damaged or has another size, or actions or rewards have
            another length or a value that is not finite (at any step).
        ConfigError: The stride is in seconds and the episode's rate is unknown.
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
    needed = sorted({frame for plan in plans for frame in plan.frames})
    position = {frame: number for number, frame in enumerate(needed)}
    decoded = np.stack([decode_frame(episode, frame) for frame in needed])
    plain = to_square(decoded, side)
    pixels: list[Tensor] = []
    clip_index: list[int] = []
    seen: dict[tuple[tuple[int, ...], Augmentation | None], int] = {}
    for plan in plans:
        clip = (plan.frames, plan.augmentation)
        if clip not in seen:
            seen[clip] = len(pixels)
            positions = [position[frame] for frame in plan.frames]
            if plan.augmentation is None:
                pixels.append(plain[positions])
            else:
                pixels.append(augment(decoded[positions], side, plan.augmentation))
        clip_index.append(seen[clip])
    return pixels, clip_index


def decode_frame(episode: Episode, index: int) -> np.ndarray:
    """Decode one frame of an episode, (H, W, 3) uint8.

    Raises:
        BadEpisodeError: The frame is damaged, or its size differs from the episode's.
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
    # A comparison with NaN is false.
    bad = np.flatnonzero(~(np.abs(values) <= MAX_NUMBER).reshape(num_frames, -1).all(axis=1))
    if len(bad):
        raise BadEpisodeError(f"{name} is NaN or infinite at {len(bad)} of {num_frames} steps, the first is step {bad[0]}")
    return values[frames]
