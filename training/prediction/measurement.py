"""Measures a prediction, compared with two baselines.

A model must be better than repeating the last context frame, and cannot be better than the tokenizer's reconstruction of the
true frames.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
import torch

from training.metrics.frame_metrics import psnr_per_frame, ssim_per_frame
from training.prediction.clip_prediction import Prediction


class MeanScores(TypedDict):
    """Scores averaged over the future frames: PSNR in dB and SSIM."""

    mean_psnr: float
    mean_ssim: float


class FrameScores(MeanScores):
    """Scores with one value per future frame."""

    psnr: list[float]
    ssim: list[float]


class MeanAndBest(TypedDict):
    """The mean of all samples, and the best sample of each metric."""

    mean: MeanScores
    best: MeanScores


class SampleScores(MeanAndBest):
    """The scores of all samples."""

    samples: list[FrameScores]


class Measurement(TypedDict):
    """The scores of a prediction and of both baselines."""

    prediction: SampleScores
    repeat_last_frame: FrameScores
    reconstruction: FrameScores


class Averages(TypedDict):
    """Scores averaged over episodes."""

    prediction: MeanAndBest
    repeat_last_frame: MeanScores
    reconstruction: MeanScores


class EpisodeMetrics(Measurement):
    """The content of an episode's `metrics.json`: how the prediction was made, and its scores."""

    dataset: str
    episode: str
    frame_indices: list[int]
    stride: float
    seconds_per_frame: float | None
    time_step: str
    trained_on: bool | None
    context_length: int
    resolution: int
    with_actions: bool
    sampling: dict[str, object]
    predicted_reward: NotRequired[list[list[float]]]


class Summary(Averages):
    """The content of `metrics.json` for several episodes."""

    episodes: list[EpisodeMetrics]


def measure(prediction: Prediction) -> Measurement:
    """Returns PSNR (dB) and SSIM of the future frames, for each sample and both baselines.

    `best` is the best sample of each metric separately, as in the published protocol.
    """
    context, truth = prediction.context_length, prediction.clip.frames[prediction.context_length :]
    samples = [_scores(sample, truth) for sample in prediction.frames]
    repeated = prediction.clip.frames[context - 1].expand_as(truth)
    return {
        "prediction": {
            "samples": samples,
            "mean": average(samples),
            "best": {
                "mean_psnr": max(sample["mean_psnr"] for sample in samples),
                "mean_ssim": max(sample["mean_ssim"] for sample in samples),
            },
        },
        "repeat_last_frame": _scores(repeated, truth),
        "reconstruction": _scores(prediction.reconstruction[context:], truth),
    }


def average_episodes(episodes: Sequence[Measurement]) -> Averages:
    """Returns the scores averaged over episodes."""
    return {
        "prediction": {
            "mean": average([each["prediction"]["mean"] for each in episodes]),
            "best": average([each["prediction"]["best"] for each in episodes]),
        },
        "repeat_last_frame": average([each["repeat_last_frame"] for each in episodes]),
        "reconstruction": average([each["reconstruction"] for each in episodes]),
    }


def average(scores: Sequence[MeanScores]) -> MeanScores:
    """Returns the mean of each score."""
    return {
        "mean_psnr": float(np.mean([score["mean_psnr"] for score in scores])),
        "mean_ssim": float(np.mean([score["mean_ssim"] for score in scores])),
    }


def _scores(predicted: torch.Tensor, truth: torch.Tensor) -> FrameScores:
    psnr, ssim = psnr_per_frame(predicted, truth), ssim_per_frame(predicted, truth)
    return {
        "mean_psnr": psnr.mean().item(),
        "mean_ssim": ssim.mean().item(),
        "psnr": [round(value, 4) for value in psnr.tolist()],
        "ssim": [round(value, 5) for value in ssim.tolist()],
    }
