"""Predicting one clip of an episode and measuring the outcome, beside two baselines that say what the numbers mean.

Repeating the last context frame is what a model must beat; the tokenizer's own reconstruction of the true frames is what it
can't beat. Everything here is data in, data out; files and pictures are made by `predict`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
from training.metrics.frame_metrics import psnr_per_frame, ssim_per_frame
from training.prediction.clip_fit import frames_needed, what_fits


@dataclass(frozen=True)
class Sampling:
    """How futures are drawn; see `WorldModel.start`.

    Raises:
        ConfigError: A number can't be.
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
        key: Of its episode.
        dataset: Of its episode.
        frames: (T, 3, S, S) fp32 in [0, 1], t context frames first.
        action: (T, A) float32, action[i] taken at frame i; None for a model without actions.
        indices: (T) where the frames lie in the episode.
        stride: Frames between neighbours.
        rate: Frames of the clip per second; None where nobody knows.
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
    """N futures of a clip of T frames, t of them context.

    Attributes:
        clip: What was to be predicted.
        context_length: t.
        frames: (N, T - t, 3, S, S) fp32 in [0, 1].
        reward: (N, T - t) or None.
        reconstruction: (T, 3, S, S), the clip through the tokenizer and back.
    """

    clip: Clip
    context_length: int
    frames: torch.Tensor
    reward: torch.Tensor | None
    reconstruction: torch.Tensor


def clips_for(model: WorldModel, clips: ClipsConfig, steps: int | None) -> ClipsConfig:
    """A recipe's clips, made fit for a model and a number of steps to predict; None takes the recipe's clip length.

    Raises:
        ConfigError: The recipe and the model don't go together.
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
    """The clip of an episode that starts at frame `start`.

    Args:
        episode: With encoded frames.
        model: Decides on the frames' size and whether actions are needed.
        clips: From `clips_for`.
        start: First frame (that of the goal not counted).

    Raises:
        SourceError: The episode is too short, a frame can't be decoded, or an action is no number.
        ConfigError: `start` is below 0, or the model wants actions that the episode doesn't have, or of another dimension.
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
    action = None
    if model.action_dim:
        dimension = 0 if episode.action is None else episode.action.shape[1]
        if episode.action is None or dimension != model.action_dim:
            found = "none" if episode.action is None else f"actions of {dimension}"
            raise ConfigError(
                f"the model is conditioned on actions of {model.action_dim} numbers, episode {episode.key} has {found}: "
                "predict an episode of the data set that the model was trained on"
            )
        action = torch.from_numpy(np.ascontiguousarray(episode.action[list(indices)], dtype=np.float32))
        if not torch.isfinite(action).all():
            raise SourceError(
                f"episode {episode.key} has actions that are no finite numbers among frames {indices[0]} to {indices[-1]}: "
                "choose another --start or episode"
            )
    rate = None if episode.rate is None else episode.rate / stride
    frames = decode_frames(episode, indices, model.tokenizer.config.resolution)
    return Clip(episode.key, episode.dataset, frames, action, indices, stride, rate)


def stride_for(episode: Episode, clips: ClipsConfig) -> float:
    """Frames between neighbours of an episode's clips.

    Raises:
        ConfigError: The stride is a time and the episode's rate is not known.
    """
    shape = EpisodeShape.of(episode)
    return stride_of(clips, shape)


def decode_frames(episode: Episode, indices: Sequence[int], side: int) -> torch.Tensor:
    """Frames of an episode as a model sees them: (len(indices), 3, side, side) fp32 in [0, 1].

    Raises:
        SourceError: One of them can't be decoded.
    """
    try:
        return torch.cat([to_square(decode(episode.frames[index], episode.stray_bytes)[None], side) for index in indices])
    except BadEpisodeError as error:
        raise SourceError(f"a frame of episode {episode.key} can't be decoded: {error}") from error


def predict_clip(
    model: WorldModel,
    clip: Clip,
    sampling: Sampling,
    on_frame: Callable[[], object] = lambda: None,
    first_sample: int = 0,
) -> Prediction:
    """Predict all frames of a clip after its context.

    Args:
        model: To predict with.
        clip: From `cut_clip`.
        sampling: How futures are drawn.
        on_frame: Called after every step.
        first_sample: Number of the first of the samples; see `WorldModel.start`.
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


def measure(prediction: Prediction) -> dict[str, Any]:
    """PSNR (dB) and SSIM of every future frame and their means, for each sample and for both baselines.

    `best` takes the best sample of each metric on its own, as the published protocol does.
    """
    context, truth = prediction.context_length, prediction.clip.frames[prediction.context_length :]
    samples = [_scores(sample, truth) for sample in prediction.frames]
    repeated = prediction.clip.frames[context - 1].expand_as(truth)
    return {
        "prediction": {
            "samples": samples,
            "mean": {name: float(np.mean([sample[name] for sample in samples])) for name in ("mean_psnr", "mean_ssim")},
            "best": {name: max(sample[name] for sample in samples) for name in ("mean_psnr", "mean_ssim")},
        },
        "repeat_last_frame": _scores(repeated, truth),
        "reconstruction": _scores(prediction.reconstruction[context:], truth),
    }


def _scores(predicted: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
    psnr, ssim = psnr_per_frame(predicted, truth), ssim_per_frame(predicted, truth)
    return {
        "mean_psnr": psnr.mean().item(),
        "mean_ssim": ssim.mean().item(),
        "psnr": [round(value, 4) for value in psnr.tolist()],
        "ssim": [round(value, 5) for value in ssim.tolist()],
    }
