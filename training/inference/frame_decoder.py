"""Decodes predicted frames one at a time and computes the context's features only once.

Only the context features that future frames attend to are decoded, not the context frames. On a CPU, these features are turned
into attention keys and values once, and layers come from `onednn_layers`. This costs a second copy of the decoders' weights.
Frames equal those of the tokenizer's `decode_future` up to rounding.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenize_offline.tokenizer import CompressiveVQModel
from tokenize_offline.tokenizer.attention import CrossAttentionBlock
from tokenize_offline.tokenizer.autoencoder import Decoder
from tokenize_offline.tokenizer.blocks import Upsample
from tokenize_offline.tokenizer.model import ContextFeatures
from training.inference.onednn_layers import OneDnnConvolution, OneDnnLinear, OneDnnUpsample, supports_onednn

Module = TypeVar("Module", bound=nn.Module)


class FrameDecoder:
    """The decoders of a tokenizer, set up for a session.

    Args:
        tokenizer: Tokenizer in evaluation mode, on its device. On a CPU, later changes of its weights have no effect here.
    """

    def __init__(self, tokenizer: CompressiveVQModel) -> None:
        decoders: dict[str, nn.Module] = {
            "decoder": _FeatureDecoder(tokenizer.decoder, tokenizer.cond_decoder.attended_features),
            "cond_decoder": tokenizer.cond_decoder,
            "post_quant_linear": tokenizer.post_quant_linear,
        }
        self._uses_onednn = supports_onednn(tokenizer.post_quant_linear.weight)
        if self._uses_onednn:
            decoders = {name: _with_onednn(module) for name, module in decoders.items()}
        self._tokenizer = _with_children(tokenizer, decoders)
        self._attention = [block for block in self._tokenizer.cond_decoder.modules() if isinstance(block, _CachedAttention)]

    @torch.no_grad()
    def context(self, ids: Tensor) -> ContextFeatures:
        """Returns the context features that `frames` needs; each tensor has one row per clip.

        Args:
            ids: (B, 257 t - 1 or more) for t context frames; ids after the context are ignored.

        Raises:
            ValueError: There are fewer ids than the context needs, or a context id is not in the codebook.
        """
        _, features = self._tokenizer.decode_context(ids)
        if not self._uses_onednn:
            return features
        return tuple(block.keys_and_values(feature) for block, feature in zip(self._attention, features, strict=True))

    def frames(self, ids: Tensor, context: ContextFeatures) -> Tensor:
        """Returns future frames (R, n, 3, S, S), roughly in [0, 1], decoded from ids (R, n, g) as `decode_future` does."""
        return self._tokenizer.decode_future(ids, context).contiguous()


class _FeatureDecoder(nn.Module):
    """A decoder cut off after the last feature that future frames attend to, so it makes no frames."""

    def __init__(self, decoder: Decoder, attended: list[int]) -> None:
        super().__init__()
        self.conv_in, self.mid_block = decoder.conv_in, decoder.mid_block
        # Up block i makes feature i + 2.
        self.up_blocks = nn.ModuleList(list(decoder.up_blocks)[: max(attended) - 1])

    def forward(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the last feature map, in the place of frames, and all features."""
        features = [self.conv_in(latents)]
        for block in (self.mid_block, *self.up_blocks):
            features.append(block(features[-1]))
        return features[-1], features


class _CachedAttention(nn.Module):
    """A cross-attention block whose context is given as keys and values (B, 2, heads, positions, head width)."""

    def __init__(self, block: CrossAttentionBlock) -> None:
        super().__init__()
        attention, channels = block.att, block.q_pos_emb.shape[1]
        self.kv_norm, self.q_norm = block.kv_norm, block.q_norm
        self.kv_pos_emb, self.q_pos_emb = block.kv_pos_emb, block.q_pos_emb
        self.heads = attention.num_heads
        weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
        self.queries = OneDnnLinear(_linear(weight[:channels], bias[:channels]))
        self.keys_values = OneDnnLinear(_linear(weight[channels:], bias[channels:]))
        self.out = OneDnnLinear(attention.out_proj)

    def keys_and_values(self, context: Tensor) -> Tensor:
        """Returns the keys and values of context features (B, C, t H, W)."""
        positions = self.kv_norm(context).flatten(2).transpose(1, 2) + self.kv_pos_emb
        # From (B, positions, 2, heads, width) to (B, 2, heads, positions, width).
        return self.keys_values(positions).unflatten(-1, (2, self.heads, -1)).permute(0, 2, 3, 1, 4).contiguous()

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Lets future features (B f, C, H, W) attend to the context; returns (B f, C, H, W)."""
        positions = self.q_norm(features).flatten(2).transpose(1, 2) + self.q_pos_emb
        queries = self.queries(positions).reshape(len(context), -1, self.heads, context.shape[-1]).transpose(1, 2)
        keys, values = context.unbind(1)
        attended = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(positions.shape)
        return F.silu(features + self.out(attended).transpose(1, 2).reshape(features.shape))


def _with_onednn(module: nn.Module) -> nn.Module:
    """Returns the same network with oneDNN layers; modules without such layers are shared."""
    match module:
        case Upsample():
            return OneDnnUpsample(module.conv)
        case nn.Conv2d():
            return OneDnnConvolution(module)
        case nn.Linear():
            return OneDnnLinear(module)
        case CrossAttentionBlock():
            return _CachedAttention(module)
    return _with_children(module, {name: _with_onednn(child) for name, child in module.named_children()})


def _with_children(module: Module, children: dict[str, nn.Module]) -> Module:
    """Returns a shallow copy of a module with these children replaced; everything else is shared."""
    clone = copy.copy(module)
    clone._modules = {**module._modules, **children}
    return clone


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Returns a linear layer that uses existing tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
    return layer
