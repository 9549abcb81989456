"""Where a tokenizer's cross-attention looks when training starts: at its own place in the context.

As published, position embeddings start at zero and attention starts even over all places. It takes long to find out that a
future frame mostly shows, place by place, what the context shows; in a short training on few data it never does, and the
context is not used at all. Positions that agree between query and key, and projections that start equal, make it look at its
own place from the first step on. Names and shapes of the weights stay as published.
"""

import math

import torch
from torch import Tensor, nn

from tokenize_offline.tokenizer import CompressiveVQModel
from tokenize_offline.tokenizer.attention import CrossAttentionBlock

# How far positions outweigh normalised features (which have a mean square of 1), and the projections' size: with these about
# half of the attention of a 16 x 16 grid rests on its own place at the start, the rest near by.
_POSITION_SCALE = 2.0
_PROJECTION_GAIN = 1.2


def grid_positions(side: int, channels: int) -> Tensor:
    """Sines and cosines of row and column, with periods from two places to twice the side (Vaswani et al., 2017).

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
    """Start all cross-attention of a tokenizer anew, at the place that it looks from; all other weights stay."""
    for block in model.modules():
        if isinstance(block, CrossAttentionBlock):
            places, channels = block.q_pos_emb.shape
            positions = _POSITION_SCALE * grid_positions(math.isqrt(places), channels)
            block.q_pos_emb.copy_(positions)
            block.kv_pos_emb.copy_(positions.repeat(len(block.kv_pos_emb) // places, 1))
            projection = _PROJECTION_GAIN * nn.init.orthogonal_(torch.empty(channels, channels))
            queries, keys, values = block.att.in_proj_weight.split(channels)
            queries.copy_(projection)
            keys.copy_(projection)
            nn.init.xavier_uniform_(values)
            block.att.in_proj_bias.zero_()
            nn.init.xavier_uniform_(block.att.out_proj.weight, gain=0.5)
            block.att.out_proj.bias.zero_()
