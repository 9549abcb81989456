"""Initializes cross-attention so that each position of a future frame attends to the same position of the context.

As published, position embeddings start at zero, so attention starts out uniform. A future frame mostly shows what the context
shows at the same position, but learning that takes long; a short training run on little data never learns it and ignores the
context. Equal positions and equal projections of queries and keys make each position attend to itself from the first step.
Names and shapes of the weights stay as published.
"""

import math

import torch
from torch import Tensor, nn

from tokenize_offline.tokenizer import CompressiveVQModel
from tokenize_offline.tokenizer.attention import CrossAttentionBlock

# Scale of positions relative to normalised features (mean square 1), and gain of the projections. With these, about half of
# the attention of a 16 x 16 grid starts at its own position and the rest near it.
_POSITION_SCALE = 2.0
_PROJECTION_GAIN = 1.2


def grid_positions(side: int, channels: int) -> Tensor:
    """Returns sines and cosines of row and column, with periods from two positions to twice the side (Vaswani et al., 2017).

    Returns:
        (side^2, channels) with a mean square of 1, row by row.
    """
    count = channels // 4
    frequencies = math.pi * side ** -(torch.arange(count) / max(count - 1, 1))
    angles = torch.arange(side)[:, None] * frequencies
    along = math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = along[:, None].expand(side, side, -1), along[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, -1)


@torch.no_grad()
def attend_locally(model: CompressiveVQModel) -> None:
    """Initializes all cross-attention of a tokenizer to attend to its own position; other weights stay unchanged."""
    for block in model.modules():
        if isinstance(block, CrossAttentionBlock):
            count, channels = block.q_pos_emb.shape
            positions = _POSITION_SCALE * grid_positions(math.isqrt(count), channels)
            block.q_pos_emb.copy_(positions)
            block.kv_pos_emb.copy_(positions.repeat(len(block.kv_pos_emb) // count, 1))
            projection = _PROJECTION_GAIN * nn.init.orthogonal_(torch.empty(channels, channels))
            queries, keys, values = block.att.in_proj_weight.split(channels)
            queries.copy_(projection)
            keys.copy_(projection)
            nn.init.xavier_uniform_(values)
            block.att.in_proj_bias.zero_()
            nn.init.xavier_uniform_(block.att.out_proj.weight, gain=0.5)
            block.att.out_proj.bias.zero_()
