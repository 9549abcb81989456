"""How token shards use the codebooks: codes that occur, and the perplexity of their frequencies.

Counts of several shards add up, perplexities don't; so a data set's are computed from its ids, which are mapped and counted at
about a hundred million a second, and a record keeps its own shard's.
"""

from typing import Any

import numpy as np

from tokenize_offline.geometry import IdGeometry

_ROWS_AT_ONCE = 4096


def code_counts(ids: np.ndarray, geometry: IdGeometry) -> np.ndarray:
    """How often every id occurs, (vocabulary) int64, in rows of ids (N, L)."""
    counts = np.zeros(geometry.vocabulary, np.int64)
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        counts += np.bincount(ids[start : start + _ROWS_AT_ONCE].reshape(-1), minlength=geometry.vocabulary)
    return counts


def codebook_statistics(counts: np.ndarray, geometry: IdGeometry) -> dict[str, Any]:
    """Codes used and perplexity of both codebooks, from `code_counts`.

    Perplexity is exp of the entropy of the codes' frequencies: the number of codes that, used evenly, would say as much. It is
    0 where nothing was counted.
    """
    context, future = geometry.num_vq_embeddings, geometry.start_of_context
    statistics: dict[str, Any] = {}
    for name, part in (("context", counts[:context]), ("future", counts[context:future])):
        used = part[part > 0]
        frequencies = used / used.sum()
        perplexity = float(np.exp(-(frequencies * np.log(frequencies)).sum())) if len(used) else 0.0
        statistics[f"{name}_codes_used"] = len(used)
        statistics[f"{name}_perplexity"] = round(perplexity, 3)
    return statistics
