"""Key-value cache of a session: buffers for all positions, allocated at the start and written by position.

Buffers never move or grow, so a compiled step sees fixed shapes and addresses, and rows may be at different positions. Entries
after a row's position are stale or zero and must be masked. The price is memory for all positions.
"""

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of all layers.

    Attributes:
        keys: One tensor (R, heads, capacity, head width) per layer.
        values: One tensor of the same shape per layer.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @classmethod
    def zeros(cls, layers: int, shape: tuple[int, int, int, int], like: torch.Tensor) -> Self:
        """Returns a cache of `layers` buffers of `shape`, with the type and device of `like`.

        Zeros, not uninitialised memory: a masked position has weight 0, but 0 times NaN is NaN.
        """
        keys, values = ([like.new_zeros(shape) for _ in range(layers)] for _ in range(2))
        return cls(keys, values)

    @property
    def capacity(self) -> int:
        """Number of positions that fit."""
        return self.keys[0].shape[2]

    def repeated(self, copies: int) -> "KeyValueCache":
        """Returns a copy in which each row is repeated `copies` times."""
        keys, values = ([held.repeat_interleave(copies, dim=0) for held in side] for side in (self.keys, self.values))
        return KeyValueCache(keys, values)
