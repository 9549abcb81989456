"""Defines how a clip's tokens are laid out: tokens per frame (257 and 17), special ids, and where labels start.

The tokenizer, the token shards and the world model share this arithmetic, so none of them repeats a published constant.
"""

from dataclasses import dataclass

from pipeline.config.model import Precision, TokenizerShape

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class IdLayout:
    """Token grids and codebook sizes, which decide the meaning and position of each id (`docs/formats.md`).

    A sequence is the context frames' ids joined by `start_of_context`, then for each future frame `start_of_future` and the
    frame's ids.

    Attributes:
        context_length: Number of context frames t.
        context_grid: Side of the token grid of a context frame.
        future_grid: Side of the token grid of a future frame.
        num_vq_embeddings: Size of the codebook for context frames.
        num_dyn_embeddings: Size of the codebook for future frames.
    """

    context_length: int
    context_grid: int
    future_grid: int
    num_vq_embeddings: int
    num_dyn_embeddings: int

    @property
    def tokens_per_context_frame(self) -> int:
        """Tokens of a context frame, including the special id before it: 257 for a 16 x 16 grid."""
        return self.context_grid**2 + 1

    @property
    def tokens_per_future_frame(self) -> int:
        """Tokens of a future frame, including the special id before it: 17 for a 4 x 4 grid."""
        return self.future_grid**2 + 1

    @property
    def prefix_length(self) -> int:
        """Tokens up to and including the first `start_of_future`. Prediction starts after them, and they carry no label."""
        return self.tokens_per_context_frame * self.context_length

    @property
    def start_of_context(self) -> int:
        """Special id between context frames."""
        return self.num_vq_embeddings + self.num_dyn_embeddings

    @property
    def start_of_future(self) -> int:
        """Special id before each future frame."""
        return self.start_of_context + 1

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary, special ids included."""
        return self.start_of_context + 2

    def tokens_per_clip(self, clip_length: int) -> int:
        """Tokens of a clip of `clip_length` frames: L = 257 t - 1 + 17 f for 16 x 16 and 4 x 4 grids."""
        return self.prefix_length - 1 + self.tokens_per_future_frame * (clip_length - self.context_length)

    def future_frames(self, num_ids: int) -> int:
        """Number of future frames in a sequence of `num_ids` ids.

        Raises:
            ValueError: No clip of this layout has that many ids.
        """
        frames, rest = divmod(num_ids - self.prefix_length + 1, self.tokens_per_future_frame)
        if rest or frames < 0:
            raise ValueError(
                f"{num_ids} ids are not a whole clip: {self.context_length} context frames take {self.prefix_length - 1}, "
                f"each future frame {self.tokens_per_future_frame}"
            )
        return frames


def latent_grid(shape: TokenizerShape) -> int:
    """Side of a tokenizer's latent map: 16 for both published tokenizers."""
    return shape.resolution >> (len(shape.block_out_channels) - 1)


def id_layout(shape: TokenizerShape, context_length: int) -> IdLayout:
    """Id layout of a tokenizer of this shape with `context_length` context frames."""
    return IdLayout(
        context_length=context_length,
        context_grid=latent_grid(shape),
        future_grid=latent_grid(shape) // shape.patch_size,
        num_vq_embeddings=shape.num_vq_embeddings,
        num_dyn_embeddings=shape.num_dyn_embeddings,
    )


@dataclass(frozen=True, kw_only=True)
class TokenLayout(IdLayout):
    """Layout of a token shard: everything its ids depend on, and the shape of its rows. Extends `IdLayout`.

    Attributes:
        clip_length: Frames T of a clip, including the context.
        resolution: Side of the square frames in pixels.
        goal: Whether the first context frame is the goal.
        precision: Precision in which the tokenizer ran.
        tokenizer_sha256: SHA-256 of the tokenizer's weights.
        clips_fingerprint: Fingerprint of the recipe's section `clips`.
    """

    clip_length: int
    resolution: int
    goal: bool
    precision: Precision
    tokenizer_sha256: str
    clips_fingerprint: str

    @property
    def sequence_length(self) -> int:
        """Tokens L of a row."""
        return self.tokens_per_clip(self.clip_length)
