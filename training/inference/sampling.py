"""Samples the next id with top-k and temperature; the noise depends only on (seed, sample, frame, id).

Each id uses one uniform number, computed from a counter, for inverse-CDF sampling. So a sample does not depend on how many
samples or clips share its batch, or on the device. The state of a random generator would depend on both.
"""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch

from pipeline.common.errors import ConfigError


@dataclass(frozen=True)
class SamplingRule:
    """How to sample an id from its logits.

    Attributes:
        top_k: Sample among the k most likely ids; None or 0 allows all.
        temperature: Logits are divided by it; 0 = greedy.
    """

    top_k: int | None = 100
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k is not None and (not isinstance(self.top_k, Integral) or self.top_k < 0):
            raise ConfigError(f"top_k must be a positive whole number, or 0 or None for all ids, not {self.top_k!r}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or above, not {self.temperature}")

    def sample(self, logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Samples one id per row.

        Args:
            logits: (R, V) fp32.
            uniforms: (R,) float64 in [0, 1); unused at temperature 0.

        Returns:
            (R,) int64.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        kept, candidates = logits.topk(min(self.top_k or logits.shape[-1], logits.shape[-1]), dim=-1)
        # Double precision, so that rounding of 16 k probabilities cannot keep their sum below a uniform close to 1.
        cumulative = torch.softmax(kept.double() / self.temperature, dim=-1).cumsum(dim=-1)
        chosen = (cumulative[:, :-1] <= uniforms[:, None]).sum(dim=-1, keepdim=True)
        return candidates.gather(-1, chosen).squeeze(-1)


def uniforms(seed: int, samples: int, frame: int, count: int, first: int = 0) -> np.ndarray:
    """Returns (samples, count) float64 in [0, 1): noise for `count` ids of one frame; row r is for sample `first` + r.

    Each entry is an output of Philox with the key (seed, sample) and the frame as counter.
    """
    rows = []
    for sample in range(first, first + samples):
        stream = np.random.Philox(
            key=np.array([seed % 2**64, sample], np.uint64), counter=np.array([0, 0, frame, 0], np.uint64)
        )
        rows.append(np.random.Generator(stream).random(count))
    return np.stack(rows)
