"""A pull towards one code for what stands still, so that the ids of a future frame tell what changed.

Without it nothing keeps a tokenizer from spelling out again in every frame what its context shows already, in codes that
flicker with whatever moves near by; a transformer then spends itself on predicting ids that say nothing. The conditional
decoder can show what stands still by attending to the context, if attention learns to look at the same place in time
(`attention` starts it there). In training the decoder gets still patches from the one code in any case (`still` of the
tokenizer's forward), so that it learns to, and the pull on the encoder costs no picture.
"""

import torch
from torch import Tensor

from tokenize_offline.tokenizer import TokenizerOutput

# Two levels of 255: the noise that JPEG leaves in a patch where nothing moved.
_NOISE = 0.01


def stillness(frames: Tensor, context_length: int, patches: int) -> Tensor:
    """How surely each patch of each future frame shows what it shows in the last context frame.

    Args:
        frames: (B, T, 3, S, S) in [0, 1].
        context_length: Context frames among T.
        patches: Along one side of a frame.

    Returns:
        (B, T - context_length, patches^2) in [0, 1], row by row: exp of minus the mean squared difference over twice the
        square of the noise.
    """
    clips, side = len(frames), frames.shape[-1] // patches
    change = (frames[:, context_length:] - frames[:, context_length - 1 : context_length]).square()
    blocks = change.reshape(clips, -1, 3, patches, side, patches, side)
    return torch.exp(-blocks.mean(dim=(2, 4, 6)).flatten(2) / (2 * _NOISE**2))


def stillness_loss(frames: Tensor, output: TokenizerOutput) -> Tensor:
    """Mean squared distance of what is quantised from the code that most of the still patches have, weighed by stillness.

    Args:
        frames: (B, T, 3, S, S) in [0, 1].
        output: Of the tokenizer on these frames.
    """
    patches = round(output.future_ids.shape[-1] ** 0.5)
    weights = stillness(frames, output.context_reconstruction.shape[1], patches).reshape(-1)
    ids = output.future_ids.reshape(-1)
    votes = torch.zeros(int(ids.max()) + 1, device=ids.device).index_add_(0, ids, weights)
    chosen = output.future_codes[(ids == votes.argmax()).float().argmax()]
    return (weights * (output.future_vectors.float() - chosen).square().mean(dim=1)).mean()
