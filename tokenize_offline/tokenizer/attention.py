"""Cross-attention from the features of future frames to the context features of their clip.

The queries of all future frames of a clip form one sequence, so keys and values are projected once per clip. The result is the
same as with attention frame by frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.model import NORM_GROUPS

_HEADS = 4
_DROPOUT = 0.1


class CrossAttentionBlock(nn.Module):
    """One block: SiLU(z + attention(z, context)), with the constants of the published tokenizers."""

    def __init__(self, channels: int, grid: int, context_length: int) -> None:
        super().__init__()
        self.kv_norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.q_norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.kv_pos_emb = nn.Parameter(torch.zeros(context_length * grid * grid, channels))
        self.q_pos_emb = nn.Parameter(torch.zeros(grid * grid, channels))
        self.att = nn.MultiheadAttention(channels, _HEADS, dropout=_DROPOUT, batch_first=True)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Attend from future features (B f, C, H, W) to context features (B, C, t H, W); returns (B f, C, H, W)."""
        clips, (_, channels, height, width) = context.shape[0], features.shape
        queries = self.q_norm(features).flatten(2).transpose(1, 2) + self.q_pos_emb
        queries = queries.reshape(clips, -1, channels)
        keys = self.kv_norm(context).flatten(2).transpose(1, 2) + self.kv_pos_emb
        attended, _ = self.att(queries, keys, keys, need_weights=False)
        attended = attended.reshape(-1, height * width, channels).transpose(1, 2).reshape(features.shape)
        return F.silu(features + self.dropout(attended))

    def keep_last_context(self, context_length: int) -> None:
        """Reduce `kv_pos_emb` to the rows of the last `context_length` context frames."""
        rows = context_length * self.q_pos_emb.shape[0]
        self.kv_pos_emb = nn.Parameter(self.kv_pos_emb.detach()[-rows:].clone(), self.kv_pos_emb.requires_grad)


def stack_context(features: Tensor, clips: int) -> Tensor:
    """Stack the feature maps (B t, C, H, W) of each clip along height, in frame order: (B, C, t H, W)."""
    _, channels, height, width = features.shape
    return features.reshape(clips, -1, channels, height, width).transpose(1, 2).reshape(clips, channels, -1, width)
