"""Computes statistics of token shards: codebook use, and reconstruction quality of a sample of clips.

A manifest holds the statistics of its shard. Perplexities of shards can't be merged, so those of a data set are computed from
all its ids, at about a hundred million per second. Reconstruction is measured only while tokenizing, when the pixels are
available.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tokenize_offline.metrics import perplexity, psnr, squared_error
from tokenize_offline.token_layout import IdLayout

_ROWS_AT_ONCE = 4096


def code_counts(ids: np.ndarray, id_layout: IdLayout) -> np.ndarray:
    """Count the occurrences of each id, (vocabulary) int64, in rows of ids (N, L)."""
    counts = np.zeros(id_layout.vocabulary, np.int64)
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        counts += np.bincount(ids[start : start + _ROWS_AT_ONCE].reshape(-1), minlength=id_layout.vocabulary)
    return counts


def codebook_statistics(counts: np.ndarray, id_layout: IdLayout) -> dict[str, float]:
    """Number of codes used and perplexity, for both codebooks, from `code_counts`."""
    context, future = id_layout.num_vq_embeddings, id_layout.start_of_context
    statistics: dict[str, float] = {}
    for name, part in (("context", counts[:context]), ("future", counts[context:future])):
        statistics[f"{name}_codes_used"] = int((part > 0).sum())
        statistics[f"{name}_perplexity"] = round(perplexity(part), 3)
    return statistics


def weighted_median(values: Iterable[tuple[float | None, int]]) -> float | None:
    """Lower median of (value, count) pairs, ignoring None; None if no value is known."""
    known = sorted((value, count) for value, count in values if value is not None)
    half, before = sum(count for _, count in known) / 2, 0
    for value, count in known:
        before += count
        if before >= half:
            return value
    return None


def reconstruction_statistics(errors: np.ndarray, context_length: int) -> dict[str, float]:
    """PSNR in dB of the context and future frames of a sample, from the mean squared error over all pixels.

    Args:
        errors: (clips, T) mean squared error of each frame, for pixels in [0, 1].
        context_length: Number of context frames t.

    Returns:
        PSNRs rounded to 0.01 dB, so that they don't depend on the order of summation. Empty without clips.
    """
    if not len(errors):
        return {}
    return {
        "sampled_clips": len(errors),
        "context_psnr": _rounded_psnr(float(errors[:, :context_length].mean())),
        "future_psnr": _rounded_psnr(float(errors[:, context_length:].mean())),
    }


def merged_reconstruction(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the `reconstruction_statistics` of several shards. Shards without a sample are ignored."""
    sampled = [part for part in parts if part.get("sampled_clips")]
    clips = sum(part["sampled_clips"] for part in sampled)
    if not clips:
        return {}
    merged: dict[str, float] = {"sampled_clips": clips}
    for name in ("context_psnr", "future_psnr"):
        merged[name] = _rounded_psnr(sum(part["sampled_clips"] * squared_error(part[name]) for part in sampled) / clips)
    return merged


def _rounded_psnr(mean_squared_error: float) -> float:
    return round(float(psnr(mean_squared_error)), 2)
