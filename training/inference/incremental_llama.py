"""Runs a Llama a few ids at a time with a key-value cache of fixed shape: the transformer of a session.

It computes what the Llama of `transformers` computes, with less work per call: rotary tables are made once, one matrix product
gives queries, keys and values, another gives gate and up, and attention reads the cache in place. The joined matrices replace
the model's own, which become views of them. So after moving the model to another device or type, make a new object of this
class. On a CPU a step is bound by reading the weights; `onednn_layers` reads them almost at memory speed, four ids at the cost
of one.

A compiled step is one graph over buffers with fixed addresses. A GPU replays it as a CUDA graph, since kernel launches bound a
step of one id there. On a CPU compiling saves little.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from training.inference.kv_cache import KeyValueCache
from training.inference.onednn_layers import OneDnnLinear

_SPAN = 128  # attention reads multiples of this many positions, to keep the number of shapes small


class IncrementalLlama:
    """Appends ids to a cache and returns their hidden states.

    Args:
        model: Model in evaluation mode, on its device; its projections become views of joined ones.
        spare: Additional positions after the model's own. They may be written, but no valid position attends to them.
        compiled: Use `torch.compile` for steps after the first.
    """

    def __init__(self, model: LlamaForCausalLM, spare: int, compiled: bool = False) -> None:
        llama, config = model.model, model.config
        self._capacity = config.max_position_embeddings + spare
        self._layers = len(llama.layers)
        self._stack = _Stack(llama, spare)
        self._head = OneDnnLinear(model.lm_head)
        self._compiled = torch.compile(self._stack, mode="reduce-overhead") if compiled else None

    def prefill(self, embedded: torch.Tensor) -> KeyValueCache:
        """Returns a new cache filled with the first n positions, from input embeddings (R, n, width)."""
        rows, count, _ = embedded.shape
        cache = KeyValueCache.zeros(self._layers, (rows, self._stack.heads, self._capacity, self._stack.head_width), embedded)
        positions = torch.arange(count, device=embedded.device).expand(rows, -1)
        self._stack(embedded, positions, cache.keys, cache.values, self._span(count))
        return cache

    def copied(self, cache: KeyValueCache, copies: int = 1) -> KeyValueCache:
        """Returns a separate cache in which each row is repeated `copies` times."""
        taken = cache.repeated(copies)
        if self._compiled is not None:
            for buffer in (*taken.keys, *taken.values):
                # Otherwise each replay of a CUDA graph would copy the buffer into the memory of the graph.
                torch._dynamo.mark_static_address(buffer, guard=False)
        return taken

    def step(self, embedded: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache, length: int) -> torch.Tensor:
        """Writes n positions of every row; each attends to all positions before it.

        Args:
            embedded: (R, n, width) input embeddings.
            positions: (R, n) int64, ascending in each row.
            cache: Cache with R rows, from `copied`.
            length: A number above all `positions`; given so that the device is not asked.

        Returns:
            (R, n, width) hidden states after the final normalisation.
        """
        if self._compiled is None:
            return self._stack(embedded, positions, cache.keys, cache.values, self._span(length))
        torch.compiler.cudagraph_mark_step_begin()
        # One span for all steps, because a new shape would be compiled again. Cloned, because the next replay overwrites it.
        return self._compiled(embedded, positions, cache.keys, cache.values, self._capacity).clone()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns (..., V) fp32 logits of the next id for hidden states (..., width)."""
        return self._head(hidden).float()

    def _span(self, length: int) -> int:
        return min(-(-length // _SPAN) * _SPAN, self._capacity)


class _Stack(nn.Module):
    """All layers, with joined projections."""

    cosines: torch.Tensor
    sines: torch.Tensor

    def __init__(self, llama: LlamaModel, spare: int) -> None:
        super().__init__()
        layers = [_Layer(layer) for layer in cast(Iterable[LlamaDecoderLayer], llama.layers)]
        self.layers = nn.ModuleList(layers)
        self.heads, self.head_width = layers[0].held_heads, layers[0].head_width
        self.norm = llama.norm
        weight = llama.embed_tokens.weight
        tables = llama.rotary_emb(weight, torch.arange(llama.config.max_position_embeddings, device=weight.device)[None])
        for name, table in zip(("cosines", "sines"), tables, strict=True):
            self.register_buffer(name, F.pad(table[0], (0, 0, 0, spare)), persistent=False)

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        span: int,
    ) -> torch.Tensor:
        """Returns hidden states (R, n, width) at `positions` (R, n); attention reads `span` positions of the cache."""
        rotation = (self.cosines[positions].unsqueeze(2), self.sines[positions].unsqueeze(2))
        masked = torch.arange(span, device=positions.device) > positions[:, None, :, None]
        # An additive mask, made once: attention would convert a boolean mask in every layer.
        mask = torch.zeros(masked.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(masked, -torch.inf)
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        for layer, held_keys, held_values in zip(self.layers, keys, values, strict=True):
            hidden = layer(hidden, rotation, (rows, positions), (held_keys, held_values), mask)
        return _normalised(hidden, self.norm)


class _Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, layer: LlamaDecoderLayer) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.before_attention, self.before_mlp = layer.input_layernorm, layer.post_attention_layernorm
        self.joined_attention = OneDnnLinear(_joined((attention.q_proj, attention.k_proj, attention.v_proj)))
        self.joined_mlp = OneDnnLinear(_joined((mlp.gate_proj, mlp.up_proj)))
        self.attention_out, self.mlp_out = OneDnnLinear(attention.o_proj), OneDnnLinear(mlp.down_proj)
        self.activation = mlp.act_fn
        self.head_width, self.scale = attention.head_dim, attention.scaling
        self.held_heads = attention.k_proj.out_features // attention.head_dim
        self.grouped = attention.num_key_value_groups > 1

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        place: tuple[torch.Tensor, torch.Tensor],
        held: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
    ) -> torch.Tensor:
        joined = self.joined_attention(_normalised(hidden, self.before_attention))
        joined = joined.unflatten(-1, (-1, self.head_width))
        turned, values = joined.split([joined.shape[2] - self.held_heads, self.held_heads], dim=2)
        queries, keys = _rotated(turned, rotation).split([turned.shape[2] - self.held_heads, self.held_heads], dim=2)
        for buffer, new in zip(held, (keys, values), strict=True):
            buffer.transpose(1, 2).index_put_(place, new)
        seen_keys, seen_values = (buffer[:, :, : mask.shape[-1]] for buffer in held)
        attended = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            seen_keys,
            seen_values,
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=self.grouped,
        )
        hidden = hidden + self.attention_out(attended.transpose(1, 2).flatten(2))
        gate, up = self.joined_mlp(_normalised(hidden, self.before_mlp)).chunk(2, dim=-1)
        return hidden + self.mlp_out(self.activation(gate) * up)


def _normalised(hidden: torch.Tensor, norm: LlamaRMSNorm) -> torch.Tensor:
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(heads: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Applies the rotary embedding to (R, n, heads, width)."""
    cosines, sines = rotation
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat([-second, first], dim=-1) * sines


def _joined(parts: Sequence[nn.Linear]) -> nn.Linear:
    """Returns one linear layer that computes several layers side by side; their parameters become views of its own."""
    rows = [part.out_features for part in parts]
    biased = parts[0].bias is not None
    whole = nn.Linear(parts[0].in_features, sum(rows), bias=biased, device="meta")
    for name in ("weight", "bias") if biased else ("weight",):
        joined = torch.cat([getattr(part, name).detach() for part in parts])
        setattr(whole, name, nn.Parameter(joined, requires_grad=False))
        for part, own in zip(parts, joined.split(rows), strict=True):
            getattr(part, name).data = own
    return whole
