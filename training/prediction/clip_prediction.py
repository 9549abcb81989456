"""Cuts a clip from an episode and predicts it. This module reads and writes no files; `predict` does."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.common.errors import BadEpisodeError, ConfigError, SourceError
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import decode
from tokenize_offline.clips.sampling import EpisodeShape, frame_indices, resolve_clips, stride_of
from tokenize_offline.clips.transforms import to_square
from training.inference.sampling import SamplingRule
from training.inference.session import WorldModel
from training.prediction.clip_fit import frames_needed, what_fits


@dataclass(frozen=True)
class Sampling:
    """Sampling options of `WorldModel.start`.

    Raises:
        ConfigError: An option is invalid.
    """

    samples: int = 1
    top_k: int | None = 100
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, not {self.samples}")
        SamplingRule(self.top_k, self.temperature)


@dataclass(frozen=True)
class Clip:
    """The true frames that a prediction starts from and is compared with.

    Attributes:
        key: Key of the episode.
        dataset: Data set of the episode.
        frames: (T, 3, S, S) fp32 in [0, 1]; the t context frames come first.
        action: (T, A) float32, action[i] taken at frame i; None for a model without actions.
        indices: T indices of the frames in the episode.
        stride: Distance of neighbouring frames in the episode, in frames.
        rate: Frame rate of the clip in Hz; None if unknown.
    """

    key: str
    dataset: str
    frames: torch.Tensor
    action: torch.Tensor | None
    indices: tuple[int, ...]
    stride: float
    rate: float | None


@dataclass(frozen=True)
class Prediction:
    """N predicted futures of a clip of T frames with t context frames.

    Attributes:
        clip: The true clip.
        context_length: Number of context frames t.
        frames: (N, T - t, 3, S, S) fp32 in [0, 1], predicted frames.
        reward: (N, T - t) predicted rewards; None for a model without a reward head.
        reconstruction: (T, 3, S, S), the clip encoded and decoded by the tokenizer.
    """

    clip: Clip
    context_length: int
    frames: torch.Tensor
    reward: torch.Tensor | None
    reconstruction: torch.Tensor


def clips_for(model: WorldModel, clips: ClipsConfig, steps: int | None) -> ClipsConfig:
    """Returns a recipe's clips section for a model and a number of steps; None keeps the recipe's clip length.

    Raises:
        ConfigError: The recipe does not match the model.
    """
    context = model.id_layout.context_length
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps must be at least 1, not {steps}")
    if clips.context_length not in (None, context):
        raise ConfigError(
            f"clips.context_length is {clips.context_length}, but the model was trained with {context}: leave it out"
        )
    length = clips.length if steps is None else context + steps
    return resolve_clips(dataclasses.replace(clips, length=length, context_length=context), context)


def cut_clip(episode: Episode, model: WorldModel, clips: ClipsConfig, start: int) -> Clip:
    """Returns the clip of an episode that starts at frame `start`.

    Args:
        episode: Episode with encoded frames.
        model: Model that sets the size of frames and the dimension of actions.
        clips: Clips section from `clips_for`.
        start: First frame of the clip, apart from a goal frame.

    Raises:
        SourceError: The episode is too short, a frame cannot be decoded, or an action is not finite.
        ConfigError: `start` is negative, or the episode's actions are missing or have another dimension.
    """
    if start < 0:
        raise ConfigError(f"--start must be at least 0, not {start}")
    stride = stride_for(episode, clips)
    needed = frames_needed(clips, start, stride)
    if needed > episode.num_frames:
        fits = what_fits(clips, start, EpisodeShape.of(episode), model.id_layout.context_length)
        raise SourceError(
            f"episode {episode.key} has {episode.num_frames} frames; {clips.length} frames at a stride of {stride:g} from "
            f"frame {start} need {needed}: {fits}"
        )
    indices = frame_indices(clips, start, stride, episode.num_frames)
    action = _actions(episode, indices, model.action_dim)
    rate = None if episode.rate is None else episode.rate / stride
    frames = decode_frames(episode, indices, model.tokenizer.config.resolution)
    return Clip(episode.key, episode.dataset, frames, action, indices, stride, rate)


def _actions(episode: Episode, indices: Sequence[int], action_dim: int) -> torch.Tensor | None:
    """Returns the actions (len(indices), A) at some frames; None for a model without actions."""
    if not action_dim:
        return None
    dimension = 0 if episode.action is None else episode.action.shape[1]
    if episode.action is None or dimension != action_dim:
        found = "no actions" if episode.action is None else f"actions of dimension {dimension}"
        raise ConfigError(
            f"the model needs actions of dimension {action_dim}, but episode {episode.key} has {found}: "
            "use an episode of a data set that the model was trained on"
        )
    action = torch.from_numpy(np.ascontiguousarray(episode.action[list(indices)], dtype=np.float32))
    if not torch.isfinite(action).all():
        raise SourceError(
            f"episode {episode.key} has actions that are not finite among frames {indices[0]} to {indices[-1]}: "
            "use another --start or episode"
        )
    return action


def stride_for(episode: Episode, clips: ClipsConfig) -> float:
    """Returns the distance of neighbouring frames of an episode's clips, in frames.

    Raises:
        ConfigError: The stride is a time and the frame rate of the episode is unknown.
    """
    return stride_of(clips, EpisodeShape.of(episode))


def decode_frames(episode: Episode, indices: Sequence[int], side: int) -> torch.Tensor:
    """Returns frames of an episode at the model's size: (len(indices), 3, side, side) fp32 in [0, 1].

    Raises:
        SourceError: A frame cannot be decoded.
    """
    try:
        return torch.cat([to_square(decode(episode.frames[index], episode.stray_bytes)[None], side) for index in indices])
    except BadEpisodeError as error:
        raise SourceError(f"a frame of episode {episode.key} cannot be decoded: {error}") from error


def predict_clip(
    model: WorldModel,
    clip: Clip,
    sampling: Sampling,
    on_frame: Callable[[], object] = lambda: None,
    first_sample: int = 0,
) -> Prediction:
    """Predicts all frames of a clip after its context.

    Args:
        model: World model.
        clip: Clip from `cut_clip`.
        sampling: Sampling options.
        on_frame: Function to call after each step.
        first_sample: Number of the first sample, for sampling one clip in several calls.
    """
    context, length = model.id_layout.context_length, len(clip.frames)
    session = model.start(clip.frames[:context], **dataclasses.asdict(sampling), first_sample=first_sample)

    def actions() -> Iterator[torch.Tensor | None]:
        for frame in range(context, length):
            yield None if clip.action is None else clip.action[frame - 1]
            on_frame()

    results = session.rollout(actions())
    rewards = [result.reward.cpu() for result in results if result.reward is not None]
    whole = clip.frames[None].to(model.device)
    reconstruction = model.tokenizer.detokenize(model.tokenizer.tokenize(whole))[0].clamp(0, 1)
    return Prediction(
        clip=clip,
        context_length=context,
        frames=torch.stack([result.frame.cpu() for result in results], dim=1),
        reward=torch.stack(rewards, dim=1) if rewards else None,
        reconstruction=reconstruction.cpu(),
    )
