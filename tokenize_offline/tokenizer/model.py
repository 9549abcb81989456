"""The compressive VQ tokenizer: converts clips to ids and back, and reconstructs clips for training.

The context frames of a clip are encoded once, and its future frames attend to them, so all methods work on whole clips. Frame
by frame prediction decodes the context once and reuses its features.
"""

import dataclasses
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.common.errors import ConfigError
from tokenize_offline.token_layout import IdLayout
from tokenize_offline.tokenizer import loading
from tokenize_offline.tokenizer.attention import CrossAttentionBlock, stack_context
from tokenize_offline.tokenizer.autoencoder import Decoder, Encoder
from tokenize_offline.tokenizer.config import CompressiveVQConfig
from tokenize_offline.tokenizer.quantizer import Quantizer

# Context features that the conditional decoder attends to, each (B, C, t H, W). Computed once, used for all future frames.
ContextFeatures = tuple[Tensor, ...]
IGNORED_LABEL = -100


class TokenizerOutput(NamedTuple):
    """Output of `forward` for B clips of t context and f future frames, with G and g codes per frame of width D.

    Attributes:
        context_reconstruction: (B, t, 3, S, S) context frames.
        future_reconstruction: (B, f, 3, S, S) future frames.
        context_commitment: Scalar commitment loss of `quantize`.
        future_commitment: Scalar commitment loss of `dynamics_quantize`.
        context_ids: (B, t, G) codes of `quantize`.
        future_ids: (B, f, g) codes of `dynamics_quantize`, from 0.
        context_vectors: (B t G, D) vectors before quantisation, without gradient; they replace dead codes.
        future_vectors: (B f g, D) vectors before quantisation, with gradient.
        future_codes: (B f g, D) codes of `future_vectors`, without gradient.
    """

    context_reconstruction: Tensor
    future_reconstruction: Tensor
    context_commitment: Tensor
    future_commitment: Tensor
    context_ids: Tensor
    future_ids: Tensor
    context_vectors: Tensor
    future_vectors: Tensor
    future_codes: Tensor


class CompressiveVQModel(nn.Module):
    """The tokenizer of iVideoGPT (arXiv 2405.15223), with the parameter names and shapes of published checkpoints.

    A new model is in training mode (dropout in cross-attention); `from_pretrained` returns it in evaluation mode.

    Attributes:
        config: Shape of the tokenizer.
        weights_sha256: SHA-256 of the loaded weights; None for a new model.
    """

    def __init__(self, config: CompressiveVQConfig) -> None:
        super().__init__()
        self.config = config
        self.weights_sha256: str | None = None
        width, patch = config.latent_channels, config.latent_channels * config.patch_size**2
        self.encoder = Encoder(config, conditional=False)
        self.quant_conv = nn.Conv2d(width, width, 1)
        self.quantize = Quantizer(config.num_vq_embeddings, width)
        self.post_quant_conv = nn.Conv2d(width, width, 1)
        self.decoder = Decoder(config, conditional=False)
        self.cond_encoder = Encoder(config, conditional=True)
        self.quant_linear = nn.Linear(patch, width)
        self.dynamics_quantize = Quantizer(config.num_dyn_embeddings, width)
        self.post_quant_linear = nn.Linear(width, patch)
        self.cond_decoder = Decoder(config, conditional=True)

    @classmethod
    def from_pretrained(cls, path: str, subfolder: str | None = None) -> Self:
        """Load a published or saved tokenizer on the CPU, in fp32 and evaluation mode.

        Args:
            path: Folder (or URL) with `config.json` and `diffusion_pytorch_model.safetensors`, or with a subfolder
                `tokenizer/` that holds them; or a Hugging Face hub id.
            subfolder: Subfolder of `path` that holds the files, if neither `path` nor `tokenizer/` does.

        Raises:
            ConfigError: `config.json` describes a network that this code can't build.
            SourceError: Files are missing, or the weights don't match the config; the message names the parameters.
        """
        return cls.from_files(loading.locate(str(path), subfolder))

    @classmethod
    def from_files(cls, files: loading.TokenizerFiles) -> Self:
        """Load a tokenizer from its files; see `from_pretrained`."""
        config = loading.read_config(files)
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(loading.read_weights(files, model.state_dict()), assign=True)
        model.weights_sha256 = loading.weights_sha256(files)
        return model.eval()

    def save_pretrained(self, path: str, precision: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `diffusion_pytorch_model.safetensors` to a folder.

        Args:
            path: Folder or URL.
            precision: Number type of the stored weights; `from_pretrained` always returns fp32.
        """
        loading.save(str(path), self.config, self.state_dict(), precision)

    @property
    def id_layout(self) -> IdLayout:
        """Id layout of this tokenizer."""
        return self.config.id_layout

    def set_context_length(self, context_length: int) -> None:
        """Reduce the number of context frames to `context_length`.

        Raises:
            ConfigError: The tokenizer was trained with fewer context frames.
        """
        if not 1 <= context_length <= self.config.context_length:
            raise ConfigError(
                f"this tokenizer has {self.config.context_length} context frames; "
                f"clips.context_length must be 1 to {self.config.context_length}, not {context_length}"
            )
        for module in self.modules():
            if isinstance(module, CrossAttentionBlock):
                module.keep_last_context(context_length)
        self.config = dataclasses.replace(self.config, context_length=context_length)

    @torch.no_grad()
    def tokenize(self, frames: Tensor) -> Tensor:
        """Ids (B, L) int64 of clips `frames` (B, T, 3, S, S) in [0, 1]; L = 257 t - 1 + 17 (T - t) at 64x64.

        T may equal t, because prediction needs only the context.
        """
        context, future = self._split(frames, least_future=0)
        id_layout = self.id_layout
        clips = frames.shape[0]
        vectors, features = self._encode_context(context)
        context_ids = self.quantize.nearest(vectors).reshape(clips, id_layout.context_length, -1)
        context_ids = nn.functional.pad(context_ids, (1, 0), value=id_layout.start_of_context).flatten(1)[:, 1:]
        if not future.shape[1]:
            return context_ids
        future_vectors = self._encode_future(future, features)
        future_ids = self.dynamics_quantize.nearest(future_vectors).reshape(clips, future.shape[1], -1)
        future_ids = future_ids + id_layout.num_vq_embeddings
        future_ids = nn.functional.pad(future_ids, (1, 0), value=id_layout.start_of_future).flatten(1)
        return torch.cat([context_ids, future_ids], dim=1)

    def labels(self, ids: Tensor) -> Tensor:
        """Labels (B, L) for `ids` (B, L): the ids, but ignored up to and including the first `start_of_future`."""
        labels = ids.clone()
        labels[:, : self.id_layout.prefix_length] = IGNORED_LABEL
        return labels

    @torch.no_grad()
    def detokenize(self, ids: Tensor) -> Tensor:
        """Decode `ids` (B, L) to frames (B, T, 3, S, S), roughly in [0, 1] but not clamped.

        Raises:
            ValueError: No clip has length L, or a context id is not a code.
        """
        future = self.id_layout.future_frames(ids.shape[1])
        context_frames, features = self.decode_context(ids)
        if not future:
            return context_frames
        start = self.id_layout.prefix_length - 1
        dynamics = ids[:, start:].reshape(ids.shape[0], future, self.id_layout.tokens_per_future_frame)[:, :, 1:]
        return torch.cat([context_frames, self.decode_future(dynamics, features)], dim=1)

    @torch.no_grad()
    def decode_context(self, ids: Tensor) -> tuple[Tensor, ContextFeatures]:
        """Decode the context frames.

        Args:
            ids: (B, at least 257 t - 1); ids after the context are ignored.

        Returns:
            Context frames (B, t, 3, S, S), and the features that `decode_future` needs.

        Raises:
            ValueError: There are too few ids, or a context id is not a code.
        """
        id_layout = self.id_layout
        clips, needed = ids.shape[0], id_layout.prefix_length - 1
        if ids.shape[1] < needed:
            raise ValueError(f"got {ids.shape[1]} ids, but {id_layout.context_length} context frames take {needed}")
        grid = nn.functional.pad(ids[:, :needed], (1, 0)).reshape(-1, id_layout.tokens_per_context_frame)[:, 1:]
        if grid.min() < 0 or grid.max() >= id_layout.num_vq_embeddings:
            raise ValueError(f"context ids must be 0 to {id_layout.num_vq_embeddings - 1}, not {grid.min()} to {grid.max()}")
        frames, features = self._decode_context(self.quantize.lookup(grid), clips)
        return frames, features

    @torch.no_grad()
    def decode_future(self, ids: Tensor, context: ContextFeatures) -> Tensor:
        """Decode future frames of clips whose context is decoded already.

        Args:
            ids: (B, n, g) ids of n future frames from the sequence, without special ids; ids outside the dynamics codebook
                are clamped.
            context: Features from `decode_context` of the same B clips.

        Returns:
            Frames (B, n, 3, S, S).
        """
        codes = (ids - self.id_layout.num_vq_embeddings).clamp(0, self.id_layout.num_dyn_embeddings - 1)
        return self._decode_future(self.dynamics_quantize.lookup(codes), context)

    def forward(self, frames: Tensor, still: Tensor | None = None) -> TokenizerOutput:
        """Reconstruct clips `frames` (B, T, 3, S, S) in [0, 1] with straight-through gradients, for training.

        Args:
            frames: The clips.
            still: (B, f, g) bool, patches that are decoded from their most common code instead of their own, so that the
                decoder must reconstruct them from the context.
        """
        context, future = self._split(frames)
        clips, codes = frames.shape[0], self.config.latent_channels
        vectors, features = self._encode_context(context)
        quantized = self.quantize(vectors)
        future_vectors = self._encode_future(future, features)
        future_quantized = self.dynamics_quantize(future_vectors)
        context_codes = quantized.vectors.reshape(clips * context.shape[1], -1, codes)
        context_frames, decoded_features = self._decode_context(context_codes, clips)
        decoded = future_quantized.vectors
        if still is not None and still.any():
            mask = still.reshape(-1)
            common = self.dynamics_quantize.lookup(future_quantized.ids[mask].mode().values)
            decoded = torch.where(mask[:, None], common.to(decoded.dtype), decoded)
        future_codes = decoded.reshape(clips, future.shape[1], -1, codes)
        return TokenizerOutput(
            context_reconstruction=context_frames,
            future_reconstruction=self._decode_future(future_codes, decoded_features),
            context_commitment=quantized.commitment,
            future_commitment=future_quantized.commitment,
            context_ids=quantized.ids.reshape(clips, context.shape[1], -1),
            future_ids=future_quantized.ids.reshape(clips, future.shape[1], -1),
            context_vectors=vectors.detach(),
            future_vectors=future_vectors,
            future_codes=self.dynamics_quantize.lookup(future_quantized.ids).detach(),
        )

    def _split(self, frames: Tensor, least_future: int = 1) -> tuple[Tensor, Tensor]:
        side, context = self.config.resolution, self.config.context_length
        least = context + least_future
        if frames.ndim != 5 or frames.shape[2:] != (3, side, side) or frames.shape[1] < least:
            raise ValueError(
                f"frames have shape {tuple(frames.shape)}, but this tokenizer needs (clips, {least} or more, 3, {side}, {side})"
            )
        return frames[:, :context], frames[:, context:]

    def _encode_context(self, frames: Tensor) -> tuple[Tensor, ContextFeatures]:
        latents, features = self.encoder(frames.flatten(0, 1))
        vectors = self.quant_conv(latents).permute(0, 2, 3, 1).reshape(-1, self.config.latent_channels)
        attended = (features[index] for index in self.cond_encoder.attended_features)
        return vectors, tuple(stack_context(feature, frames.shape[0]) for feature in attended)

    def _encode_future(self, frames: Tensor, context: ContextFeatures) -> Tensor:
        latents, _ = self.cond_encoder(frames.flatten(0, 1), context)
        return self.quant_linear(patchify(latents, self.config.patch_size)).flatten(0, 1)

    def _decode_context(self, codes: Tensor, clips: int) -> tuple[Tensor, ContextFeatures]:
        """Decode codes (B t, G, D) to frames (B, t, 3, S, S) and the features that the conditional decoder attends to."""
        grid = self.config.latent_grid
        latents = codes.transpose(1, 2).reshape(-1, self.config.latent_channels, grid, grid)
        frames, features = self.decoder(self.post_quant_conv(latents))
        attended = (features[index] for index in self.cond_decoder.attended_features)
        return frames.unflatten(0, (clips, -1)), tuple(stack_context(feature, clips) for feature in attended)

    def _decode_future(self, codes: Tensor, context: ContextFeatures) -> Tensor:
        """Decode codes (B, n, g, D) to frames (B, n, 3, S, S)."""
        joined = unpatchify(self.post_quant_linear(codes).flatten(0, 1), self.config.latent_grid, self.config.patch_size)
        frames, _ = self.cond_decoder(joined, context)
        return frames.unflatten(0, (codes.shape[0], -1))


def patchify(latents: Tensor, size: int) -> Tensor:
    """Cut maps (N, D, H, W) into patches (N, H/size W/size, size size D), row by row, each in (row, column, channel) order."""
    number, channels, height, width = latents.shape
    blocks = latents.reshape(number, channels, height // size, size, width // size, size)
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(number, -1, size * size * channels)


def unpatchify(patches: Tensor, side: int, size: int) -> Tensor:
    """Join patches (N, (side/size)^2, size size D) to square maps (N, D, side, side): the inverse of `patchify`."""
    number, across = patches.shape[0], side // size
    blocks = patches.reshape(number, across, across, size, size, -1)
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(number, -1, side, side)
