"""How token shards use the codebooks, and what a sample of their rows decodes to.

Counts of several shards add up, perplexities don't; so a data set's are computed from its ids, which are mapped and counted at
about a hundred million a second, and a record keeps its own shard's. Errors of decoded samples are measured only while
tokenizing, where the pixels are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tokenize_offline.metrics import perplexity, psnr
from tokenize_offline.token_layout import IdLayout

_ROWS_AT_ONCE = 4096


def code_counts(ids: np.ndarray, id_layout: IdLayout) -> np.ndarray:
    """How often every id occurs, (vocabulary) int64, in rows of ids (N, L)."""
    counts = np.zeros(id_layout.vocabulary, np.int64)
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        counts += np.bincount(ids[start : start + _ROWS_AT_ONCE].reshape(-1), minlength=id_layout.vocabulary)
    return counts


def codebook_statistics(counts: np.ndarray, id_layout: IdLayout) -> dict[str, Any]:
    """Codes used and perplexity of both codebooks, from `code_counts`."""
    context, future = id_layout.num_vq_embeddings, id_layout.start_of_context
    statistics: dict[str, Any] = {}
    for name, part in (("context", counts[:context]), ("future", counts[context:future])):
        statistics[f"{name}_codes_used"] = int((part > 0).sum())
        statistics[f"{name}_perplexity"] = round(perplexity(part), 3)
    return statistics


def weighted_median(values: Iterable[tuple[float | None, int]]) -> float | None:
    """The lower median of the values that are known, each with how often it occurs; None where none is.

    Seconds between frames: they differ within a data set where episodes are short, or recorded at several rates.
    """
    known = sorted((value, count) for value, count in values if value is not None)
    half, before = sum(count for _, count in known) / 2, 0
    for value, count in known:
        before += count
        if before >= half:
            return value
    return None


def reconstruction_statistics(errors: np.ndarray, context_length: int) -> dict[str, Any]:
    """PSNR in dB of context and of future frames of a sample, from the mean squared error over all its pixels.

    Args:
        errors: (clips, T) mean squared error of every frame, pixels in [0, 1].
        context_length: Context frames t.

    Returns:
        Empty without clips. Hundredths of a dB, which no order of summation changes.
    """
    if not len(errors):
        return {}
    return {
        "sampled_clips": len(errors),
        "context_psnr": _psnr(float(errors[:, :context_length].mean())),
        "future_psnr": _psnr(float(errors[:, context_length:].mean())),
    }


def merged_reconstruction(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `reconstruction_statistics` of several shards, from their records' statistics; those without count nothing."""
    sampled = [part for part in parts if part.get("sampled_clips")]
    clips = sum(part["sampled_clips"] for part in sampled)
    if not clips:
        return {}
    merged: dict[str, Any] = {"sampled_clips": clips}
    for name in ("context_psnr", "future_psnr"):
        merged[name] = _psnr(sum(part["sampled_clips"] * 10 ** (-part[name] / 10) for part in sampled) / clips)
    return merged


def _psnr(squared_error: float) -> float:
    return round(float(psnr(squared_error)), 2)
