"""The session's key-value cache: buffers of full length, written in place.

The cache that `transformers` grows by concatenation copies everything it holds for every id; here an id costs the write of
its own keys and values. The price is memory for all positions from the start.
"""

from typing import Any, cast

import torch
from transformers import Cache, DynamicCache, LlamaConfig
from transformers.cache_utils import DynamicLayer


class _BufferedLayer(DynamicLayer):
    """One attention layer's keys and values; `keys` and `values` are views of the used part of the buffers."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, capacity: int, copies: int) -> None:
        super().__init__()
        rows, heads, used, width = keys.shape
        self._buffers = [held.new_empty(rows * copies, heads, capacity, width) for held in (keys, values)]
        for buffer, held in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, :used] = held.repeat_interleave(copies, dim=0)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._use(used)

    def _use(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (R, heads, n, width) keys and values; returns all that are held."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self._use(end)
        return self.keys, self.values


def buffered(prefix: Cache, capacity: int, copies: int = 1) -> Cache:
    """A cache with room for `capacity` positions that begins as a copy of another.

    Args:
        prefix: Holds (B, heads, n, width) keys and values per layer.
        capacity: Positions, n included.
        copies: Every row becomes this many neighbouring rows.
    """
    layers = cast(list[DynamicLayer], prefix.layers)
    held = [(cast(torch.Tensor, layer.keys), cast(torch.Tensor, layer.values)) for layer in layers]
    return Cache(layers=[_BufferedLayer(keys, values, capacity, copies) for keys, values in held])


def empty(config: LlamaConfig) -> Cache:
    """A cache to prefill, for a model of configuration `config`."""
    return DynamicCache(config=config)
