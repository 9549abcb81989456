"""Drawing the next id: top-k and temperature, with noise that depends on (seed, sample, frame, id) and nothing else.

One uniform number an id, computed from a counter, drives an inverse-CDF draw. So a sample is the same however many samples
or clips share its batch, on whatever device; a generator's state would tie all of them together.
"""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch

from pipeline.common.errors import ConfigError


@dataclass(frozen=True)
class SamplingRule:
    """How an id is drawn from its scores.

    Attributes:
        top_k: Only the k best ids can be drawn; None or 0 allows all.
        temperature: Scores are divided by it; 0 takes the best id.
    """

    top_k: int | None = 100
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k is not None and (not isinstance(self.top_k, Integral) or self.top_k < 0):
            raise ConfigError(f"top_k must be a whole number from 1 on, or 0 or None for all ids, not {self.top_k!r}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or above, not {self.temperature}")

    def draw(self, logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """One id a row.

        Args:
            logits: (R, V) fp32.
            uniforms: (R,) float64 in [0, 1); not looked at with temperature 0.

        Returns:
            (R,) int64.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        kept, candidates = logits.topk(min(self.top_k or logits.shape[-1], logits.shape[-1]), dim=-1)
        # In double precision: the sum of 16 k rounded probabilities must not fall short of a uniform close to 1.
        cumulative = torch.softmax(kept.double() / self.temperature, dim=-1).cumsum(dim=-1)
        chosen = (cumulative[:, :-1] <= uniforms[:, None]).sum(dim=-1, keepdim=True)
        return candidates.gather(-1, chosen).squeeze(-1)


def uniforms(seed: int, samples: int, frame: int, count: int, first: int = 0) -> np.ndarray:
    """(samples, count) float64 in [0, 1): the noise for `count` ids of one frame, row r for sample `first` + r.

    Every entry is a Philox output keyed by (seed, sample) at the counter of its frame.
    """
    rows = []
    for sample in range(first, first + samples):
        stream = np.random.Philox(
            key=np.array([seed % 2**64, sample], np.uint64), counter=np.array([0, 0, frame, 0], np.uint64)
        )
        rows.append(np.random.Generator(stream).random(count))
    return np.stack(rows)
