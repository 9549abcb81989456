"""How ids are laid out in a clip's sequence: the one place for 257, 17, the special ids and the labels' start.

Pure arithmetic without torch, shared by the tokenizer, the token shards and the world model, so that none of them spells
a published constant.
"""

from dataclasses import dataclass

from pipeline.config.model import Precision, TokenizerShape

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class IdLayout:
    """Grids and codebooks that decide what an id means and where it stands (`docs/formats.md`).

    A sequence is the context frames' ids joined by `start_of_context`, then `start_of_future` and its ids for every
    future frame.

    Attributes:
        context_length: Context frames t.
        context_grid: Side of the grid of ids of a context frame.
        future_grid: Side of the grid of ids of a future frame.
        num_vq_embeddings: Codes for context frames.
        num_dyn_embeddings: Codes for future frames.
    """

    context_length: int
    context_grid: int
    future_grid: int
    num_vq_embeddings: int
    num_dyn_embeddings: int

    @property
    def tokens_per_context_frame(self) -> int:
        """Ids of one context frame with the special id before it: 257 for a 16 x 16 grid."""
        return self.context_grid**2 + 1

    @property
    def tokens_per_future_frame(self) -> int:
        """Ids of one future frame with the special id before it: 17 for a 4 x 4 grid."""
        return self.future_grid**2 + 1

    @property
    def prefix_length(self) -> int:
        """Ids up to and including the first start-of-future-frame: what prediction starts from, and carries no label."""
        return self.tokens_per_context_frame * self.context_length

    @property
    def start_of_context(self) -> int:
        """The special id between context frames."""
        return self.num_vq_embeddings + self.num_dyn_embeddings

    @property
    def start_of_future(self) -> int:
        """The special id before each future frame."""
        return self.start_of_context + 1

    @property
    def vocabulary(self) -> int:
        """Number of different ids."""
        return self.start_of_context + 2

    def tokens_per_clip(self, clip_length: int) -> int:
        """Ids of a clip of `clip_length` frames, L = 257 t - 1 + 17 f."""
        return self.prefix_length - 1 + self.tokens_per_future_frame * (clip_length - self.context_length)

    def future_frames(self, num_ids: int) -> int:
        """Future frames of a sequence of `num_ids` ids.

        Raises:
            ValueError: No clip of this layout has that many ids.
        """
        frames, rest = divmod(num_ids - self.prefix_length + 1, self.tokens_per_future_frame)
        if rest or frames < 0:
            raise ValueError(
                f"{num_ids} ids are no clip: {self.context_length} context frames take {self.prefix_length - 1}, "
                f"every future frame {self.tokens_per_future_frame}"
            )
        return frames


def latent_grid(shape: TokenizerShape) -> int:
    """Side of the latent map: 16 for both published tokenizers."""
    return shape.resolution >> (len(shape.block_out_channels) - 1)


def id_layout(shape: TokenizerShape, context_length: int) -> IdLayout:
    """Layout of the ids that a tokenizer of this shape makes of clips with so many context frames."""
    return IdLayout(
        context_length=context_length,
        context_grid=latent_grid(shape),
        future_grid=latent_grid(shape) // shape.patch_size,
        num_vq_embeddings=shape.num_vq_embeddings,
        num_dyn_embeddings=shape.num_dyn_embeddings,
    )


@dataclass(frozen=True, kw_only=True)
class TokenLayout(IdLayout):
    """What is frozen into the ids of a token shard, and the shape of its rows; grids and codebooks as in `IdLayout`.

    Attributes:
        clip_length: Frames T of a clip, context included.
        resolution: Side of the frames in pixels.
        goal: Whether the first context frame is the goal.
        precision: In which the tokenizer ran.
        tokenizer_sha256: Of the tokenizer's weights file.
        clips_fingerprint: Of the recipe's clips section.
    """

    clip_length: int
    resolution: int
    goal: bool
    precision: Precision
    tokenizer_sha256: str
    clips_fingerprint: str

    @property
    def sequence_length(self) -> int:
        """Ids of a clip, L = 257 t - 1 + 17 f."""
        return self.tokens_per_clip(self.clip_length)
