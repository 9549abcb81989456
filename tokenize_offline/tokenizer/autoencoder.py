"""The encoder and the decoder, plain or conditional (with cross-attention to context features).

Parameter names are those of published checkpoints.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.model import NORM_GROUPS
from tokenize_offline.tokenizer.attention import CrossAttentionBlock
from tokenize_offline.tokenizer.blocks import EPS, DownBlock, MidBlock, UpBlock
from tokenize_offline.tokenizer.config import CompressiveVQConfig


class Encoder(nn.Module):
    """Encodes frames to latent maps. A conditional encoder attends to the features of a plain encoder."""

    def __init__(self, config: CompressiveVQConfig, conditional: bool) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        attention = nn.ModuleList()
        # Block number -> index in `cross_att_blocks`.
        self._attends_after: dict[int, int] = {}
        resolution = config.resolution
        for number, (inner, outer) in enumerate(zip((channels[0], *channels), channels, strict=False)):
            last = number == len(channels) - 1
            self.down_blocks.append(DownBlock(inner, outer, config.layers_per_block, last))
            resolution = resolution if last else resolution // 2
            if conditional and resolution <= config.max_att_resolution:
                self._attends_after[number] = len(attention)
                attention.append(CrossAttentionBlock(outer, resolution, config.context_length))
        self.mid_block = MidBlock(channels[-1], attention=conditional)
        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, channels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.latent_channels, 3, padding=1)
        if conditional:
            self.cross_att_blocks = attention

    @property
    def attended_features(self) -> list[int]:
        """Indices of the plain encoder's features that this one attends to: i + 1 after block i."""
        return [number + 1 for number in self._attends_after]

    def forward(self, frames: Tensor, context: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Encode frames.

        Args:
            frames: (N, 3, S, S) in [0, 1].
            context: Attended features, each (B, C, t H, W), in order; only for a conditional encoder.

        Returns:
            Latent maps (N, D, S', S'), and the features after `conv_in`, each down block and the mid block.
        """
        hidden = self.conv_in(frames)
        features = [hidden]
        for number, block in enumerate(self.down_blocks):
            hidden = block(hidden)
            if number in self._attends_after:
                place = self._attends_after[number]
                hidden = self.cross_att_blocks[place](hidden, context[place])
            features.append(hidden)
        hidden = self.mid_block(hidden)
        features.append(hidden)
        return self.conv_out(F.silu(self.conv_norm_out(hidden))), features


class Decoder(nn.Module):
    """Decodes latent maps to frames. A conditional decoder attends to the features of a plain decoder."""

    def __init__(self, config: CompressiveVQConfig, conditional: bool) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], attention=conditional)
        self.up_blocks = nn.ModuleList()
        attention = nn.ModuleList()
        self._attends_after: dict[int, int] = {}
        resolution = config.latent_grid
        if conditional:
            attention.append(CrossAttentionBlock(channels[0], resolution, config.context_length))
        for number, (inner, outer) in enumerate(zip((channels[0], *channels), channels, strict=False)):
            last = number == len(channels) - 1
            self.up_blocks.append(UpBlock(inner, outer, config.layers_per_block + 1, last))
            resolution = resolution if last else resolution * 2
            if conditional and resolution <= config.max_att_resolution:
                self._attends_after[number] = len(attention)
                attention.append(CrossAttentionBlock(outer, resolution, config.context_length))
        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, channels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)
        if conditional:
            self.cross_att_blocks = attention

    @property
    def attended_features(self) -> list[int]:
        """Indices of the plain decoder's features that this one attends to: 1 after the mid block, i + 2 after up block i."""
        return [1, *(number + 2 for number in self._attends_after)]

    def forward(self, latents: Tensor, context: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Decode latent maps.

        Args:
            latents: (N, D, S', S').
            context: Attended features, each (B, C, t H, W), in order; only for a conditional decoder.

        Returns:
            Frames (N, 3, S, S), and the features after `conv_in`, the mid block and each up block.
        """
        hidden = self.conv_in(latents)
        features = [hidden]
        hidden = self.mid_block(hidden)
        if context:
            hidden = self.cross_att_blocks[0](hidden, context[0])
        features.append(hidden)
        for number, block in enumerate(self.up_blocks):
            hidden = block(hidden)
            if number in self._attends_after:
                place = self._attends_after[number]
                hidden = self.cross_att_blocks[place](hidden, context[place])
            features.append(hidden)
        return self.conv_out(F.silu(self.conv_norm_out(hidden))), features
