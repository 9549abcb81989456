"""The session's key-value cache: buffers for all positions from the start, written in place by position.

Nothing is ever moved or grown, so shapes and addresses stay the same for a compiled step, and rows may stand at different
positions. What lies beyond a row's position is stale or zero and must be masked. The price is memory for all positions.
"""

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of all layers.

    Attributes:
        keys: Per layer (R, heads, capacity, width of a head): what attention reads in one go lies together.
        values: Likewise.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @classmethod
    def zeros(cls, layers: int, shape: tuple[int, int, int, int], like: torch.Tensor) -> Self:
        """A cache of `layers` buffers of `shape`, of the type and on the device of `like`.

        Zero, not merely allocated: a masked position has no weight, but no weight of NaN is NaN.
        """
        keys, values = ([like.new_zeros(shape) for _ in range(layers)] for _ in range(2))
        return cls(keys, values)

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self.keys[0].shape[2]

    def repeated(self, copies: int) -> "KeyValueCache":
        """A copy in which every row became so many neighbouring rows."""
        keys, values = ([held.repeat_interleave(copies, dim=0) for held in side] for side in (self.keys, self.values))
        return KeyValueCache(keys, values)
