"""Scores clips and summarises the scores.

Each metric has three rows: the prediction, repeating the last context frame (a model must be better), and the tokenizer's
reconstruction of the true frames (a model cannot be better). Context frames come from the tokenizer in all three rows, because
the published code also reports means over whole clips.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from tokenize_offline.clips.sampling import KeyedRandom
from training.evaluation.metrics import HIGHER_IS_BETTER, MetricSet
from training.inference.session import WorldModel
from training.metrics.fvd import frechet_distance
from training.prediction.clip_prediction import Clip, Sampling, predict_clip

ROWS = ("prediction", "repeat_last_frame", "reconstruction")


class MetricScores(TypedDict, total=False):
    """The scores of a row in one metric; see `summarise`. FVD has only `all`."""

    best: float
    mean: float
    best_with_context: float
    per_frame: list[float]
    all: float


Rows = dict[str, dict[str, MetricScores]]  # row -> metric -> scores


@dataclass(frozen=True)
class ClipScores:
    """Scores of clips with N samples, T frames and M frame metrics. Both baselines come after the samples.

    Attributes:
        frames: (clips, N + 2, M, T) float64.
        features: (clips, N + 3, 400) float64 with the truth after the baselines; (clips, N + 3, 0) without FVD.
    """

    frames: torch.Tensor
    features: torch.Tensor

    @classmethod
    def empty(cls, clips: int, samples: int, metrics: MetricSet, frames: int, features: int) -> "ClipScores":
        """Returns scores of `clips` clips, all NaN."""
        return cls(
            torch.full((clips, samples + 2, len(metrics.frame_metrics), frames), torch.nan, dtype=torch.float64),
            torch.full((clips, samples + 3, features if metrics.with_fvd else 0), torch.nan, dtype=torch.float64),
        )

    def put(self, place: int, scores: "ClipScores") -> None:
        """Sets the scores of one clip."""
        self.frames[place], self.features[place] = scores.frames[0], scores.features[0]


def score_clip(model: WorldModel, clip: Clip, sampling: Sampling, at_once: int, metrics: MetricSet) -> ClipScores:
    """Predicts a clip and scores all three rows.

    Args:
        model: World model.
        clip: Clip from `cut_clip`.
        sampling: Sampling options; the noise depends only on the seed and the episode.
        at_once: Samples per batch; bounds memory and changes nothing else.
        metrics: Metrics to compute.
    """
    context, videos = model.id_layout.context_length, []
    seed = KeyedRandom("evaluate", sampling.seed, clip.dataset, clip.key).below("noise", 1 << 53)
    for first in range(0, sampling.samples, at_once):
        batch = dataclasses.replace(sampling, samples=min(at_once, sampling.samples - first), seed=seed)
        prediction = predict_clip(model, clip, batch, first_sample=first)
        start = prediction.reconstruction[None, :context].expand(batch.samples, -1, -1, -1, -1)
        videos.append(torch.cat([start, prediction.frames], dim=1))
    reconstruction = prediction.reconstruction
    repeated = clip.frames[context - 1].expand_as(reconstruction[context:])
    baselines = torch.stack([torch.cat([reconstruction[:context], repeated]), reconstruction])
    rows = torch.cat([*videos, baselines])
    features = metrics.features(torch.cat([rows, clip.frames[None]])) if metrics.with_fvd else torch.empty(len(rows) + 1, 0)
    return ClipScores(metrics.frame_scores(rows, clip.frames)[None], features[None].double())


def summarise(scores: ClipScores, metrics: Sequence[str], context: int) -> Rows:
    """Returns means over clips, for each row and metric.

    `best`: the best sample of each clip, chosen per metric by the mean over future frames. `mean`: the mean of all samples.
    `per_frame`: the best samples, frame by frame. `best_with_context`: as in the published code, also counts the reconstructed
    context frames. FVD uses all samples.

    Args:
        scores: Scores of the clips of a data set.
        metrics: Names of the metrics in `scores.frames`.
        context: Number of context frames.
    """
    samples = scores.frames.shape[1] - 2
    places = {"prediction": slice(0, samples), "repeat_last_frame": slice(samples, samples + 1)}
    places["reconstruction"] = slice(samples + 1, samples + 2)
    rows: Rows = {}
    for row in ROWS:
        values = scores.frames[:, places[row]].numpy()
        rows[row] = {name: _means(values[:, :, number], name, context) for number, name in enumerate(metrics)}
        if scores.features.shape[-1]:
            found = scores.features[:, places[row]].flatten(0, 1).numpy()
            truth = scores.features[:, -1].numpy()
            # The distance is undefined for features that are not finite.
            finite = np.isfinite(found).all() and np.isfinite(truth).all()
            rows[row]["fvd"] = {"all": _rounded(frechet_distance(found, truth)) if finite else math.nan}
    return rows


def _means(values: np.ndarray, metric: str, context: int) -> MetricScores:
    """Returns the means of values (clips, samples, T)."""
    future = values[:, :, context:]
    best = _best(future.mean(axis=2), metric)
    chosen = future[np.arange(len(future)), best]
    whole = values.mean(axis=2)
    return {
        "best": _rounded(chosen.mean()),
        "mean": _rounded(future.mean()),
        "best_with_context": _rounded(whole[np.arange(len(whole)), _best(whole, metric)].mean()),
        "per_frame": [_rounded(value) for value in chosen.mean(axis=0)],
    }


def _best(means: np.ndarray, metric: str) -> np.ndarray:
    return means.argmax(axis=1) if metric in HIGHER_IS_BETTER else means.argmin(axis=1)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
