"""Decoding predicted frames one at a time: what depends on the context alone is done once, and the rest is quick on a CPU.

Of the context only the features that later frames attend to are decoded, not its pictures. On a CPU the features become keys
and values at once, layers are packed (see `packed_layers`) and maps keep their channels last. It costs a second copy of the
decoders' weights, and frames differ from those of the tokenizer's own `decode_future` by rounding.
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
from training.inference.onednn_layers import OneDnnConvolution, OneDnnLinear, OneDnnUpsample, packable

Module = TypeVar("Module", bound=nn.Module)


class FrameDecoder:
    """The decoders of a tokenizer as a session uses them.

    Args:
        tokenizer: In evaluation mode and on its device. Later changes of its weights are not seen on a CPU.
    """

    def __init__(self, tokenizer: CompressiveVQModel) -> None:
        decoders: dict[str, nn.Module] = {
            "decoder": _FeatureDecoder(tokenizer.decoder, tokenizer.cond_decoder.attended_features),
            "cond_decoder": tokenizer.cond_decoder,
            "post_quant_linear": tokenizer.post_quant_linear,
        }
        self._packed = packable(tokenizer.post_quant_linear.weight)
        if self._packed:
            decoders = {name: _packed(module) for name, module in decoders.items()}
        self._tokenizer = _with_children(tokenizer, decoders)
        self._attention = [block for block in self._tokenizer.cond_decoder.modules() if isinstance(block, _KeptAttention)]

    @torch.no_grad()
    def context(self, ids: Tensor) -> ContextFeatures:
        """What `frames` needs of a context, a row a clip in each tensor: decoded once, kept for all future frames.

        Args:
            ids: (B, 257 t - 1 or more); what follows the context's ids is not looked at.

        Raises:
            ValueError: Fewer ids than the context takes, or a context id that is no code.
        """
        _, features = self._tokenizer.decode_context(ids)
        if not self._packed:
            return features
        return tuple(block.keys_and_values(feature) for block, feature in zip(self._attention, features, strict=True))

    def frames(self, ids: Tensor, context: ContextFeatures) -> Tensor:
        """Future frames (R, n, 3, S, S), about [0, 1], of their ids (R, n, g); see `decode_future` of the tokenizer."""
        return self._tokenizer.decode_future(ids, context).contiguous()


class _FeatureDecoder(nn.Module):
    """A plain decoder up to the last feature that is attended to; stands where a decoder stood that also made frames."""

    def __init__(self, decoder: Decoder, attended: list[int]) -> None:
        super().__init__()
        self.conv_in, self.mid_block = decoder.conv_in, decoder.mid_block
        # Feature i + 2 is that after up block i.
        self.up_blocks = nn.ModuleList(list(decoder.up_blocks)[: max(attended) - 1])

    def forward(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last map in place of frames, and the features so far."""
        features = [self.conv_in(latents)]
        for block in (self.mid_block, *self.up_blocks):
            features.append(block(features[-1]))
        return features[-1], features


class _KeptAttention(nn.Module):
    """A cross-attention block whose context comes as keys and values (B, 2, heads, positions, width of a head)."""

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
        """Of context features (B, C, t H, W)."""
        positions = self.kv_norm(context).flatten(2).transpose(1, 2) + self.kv_pos_emb
        # (B, positions, 2, heads, width), and positions last but one.
        return self.keys_values(positions).unflatten(-1, (2, self.heads, -1)).permute(0, 2, 3, 1, 4).contiguous()

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Attend from future features (B f, C, H, W); returns (B f, C, H, W)."""
        positions = self.q_norm(features).flatten(2).transpose(1, 2) + self.q_pos_emb
        queries = self.queries(positions).reshape(len(context), -1, self.heads, context.shape[-1]).transpose(1, 2)
        keys, values = context.unbind(1)
        attended = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(positions.shape)
        return F.silu(features + self.out(attended).transpose(1, 2).reshape(features.shape))


def _packed(module: nn.Module) -> nn.Module:
    """The same network with packed layers; what has none inside is shared."""
    match module:
        case Upsample():
            return OneDnnUpsample(module.conv)
        case nn.Conv2d():
            return OneDnnConvolution(module)
        case nn.Linear():
            return OneDnnLinear(module)
        case CrossAttentionBlock():
            return _KeptAttention(module)
    return _with_children(module, {name: _packed(child) for name, child in module.named_children()})


def _with_children(module: Module, children: dict[str, nn.Module]) -> Module:
    """A shallow copy of a module that has other children under these names; everything else is shared."""
    clone = copy.copy(module)
    clone._modules = {**module._modules, **children}
    return clone


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer over existing tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
    return layer
