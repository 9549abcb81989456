"""Scoring clips and summing scores up: what an evaluation computes, apart from where clips come from and who computes.

Three rows share every metric: the prediction, repeating the last context frame (what a model must beat) and the tokenizer's
reconstruction of the true frames (what it can't). Context frames are the tokenizer's in all three, so that the means over
whole clips, which the published code reports, can be compared too.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenize_offline.clips.sampling import KeyedRandom
from training.evaluation.metrics import RISING, MetricSet
from training.inference.session import WorldModel
from training.metrics.fvd import frechet_distance
from training.prediction.clip_prediction import Clip, Sampling, predict_clip

ROWS = ("prediction", "repeat_last_frame", "reconstruction")


@dataclass(frozen=True)
class ClipScores:
    """What is kept of clips; N samples, T frames, M metrics of frames. The baselines come after the samples.

    Attributes:
        frames: (clips, N + 2, M, T) float64.
        features: (clips, N + 3, 400) float64, the truth after the baselines; (clips, N + 3, 0) without FVD.
    """

    frames: torch.Tensor
    features: torch.Tensor

    @classmethod
    def empty(cls, clips: int, samples: int, metrics: MetricSet, frames: int, features: int) -> "ClipScores":
        """Room for the scores of `clips` clips, not a number until they come."""
        return cls(
            torch.full((clips, samples + 2, len(metrics.frame_metrics), frames), torch.nan, dtype=torch.float64),
            torch.full((clips, samples + 3, features if metrics.with_fvd else 0), torch.nan, dtype=torch.float64),
        )

    def put(self, place: int, scores: "ClipScores") -> None:
        """Fill in the scores of one clip."""
        self.frames[place], self.features[place] = scores.frames[0], scores.features[0]


def score_clip(model: WorldModel, clip: Clip, sampling: Sampling, at_once: int, metrics: MetricSet) -> ClipScores:
    """Predict a clip and score all three rows.

    Args:
        model: To predict with.
        clip: From `cut_clip`.
        sampling: How futures are drawn; noise follows from its seed and the clip's episode alone.
        at_once: Samples in one batch; it bounds memory and changes nothing else.
        metrics: To score with.
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


def summarise(scores: ClipScores, metrics: Sequence[str], context: int) -> dict[str, Any]:
    """Means over clips, for each row and metric.

    `best` takes each clip's best sample, of each metric on its own, by its mean over future frames; `mean` is that over
    samples; `per_frame` is that of the best samples, frame by frame. `best_with_context` does as the published code: the
    reconstructed context frames count too. FVD is over all samples.

    Args:
        scores: Of the clips of a data set.
        metrics: Names of the metrics in `scores.frames`.
        context: Context frames of the clips.
    """
    samples = scores.frames.shape[1] - 2
    places = {"prediction": slice(0, samples), "repeat_last_frame": slice(samples, samples + 1)}
    places["reconstruction"] = slice(samples + 1, samples + 2)
    rows: dict[str, Any] = {}
    for row in ROWS:
        values = scores.frames[:, places[row]].numpy()
        rows[row] = {name: _of_metric(values[:, :, number], name, context) for number, name in enumerate(metrics)}
        if scores.features.shape[-1]:
            found = scores.features[:, places[row]].flatten(0, 1).numpy()
            truth = scores.features[:, -1].numpy()
            # Neither eigenvalues nor a mean are to be had of what is not finite.
            finite = np.isfinite(found).all() and np.isfinite(truth).all()
            rows[row]["fvd"] = {"all": _rounded(frechet_distance(found, truth)) if finite else math.nan}
    return rows


def _of_metric(values: np.ndarray, metric: str, context: int) -> dict[str, Any]:
    """(clips, samples, T) to means."""
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
    return means.argmax(axis=1) if metric in RISING else means.argmin(axis=1)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
