"""The tokenizer's training loss, as named terms with weights; the adversarial term is that of `adversary`."""

from torch import Tensor

from pipeline.config.model import TokenizerConfig
from tokenize_offline.tokenizer import TokenizerOutput
from training.metrics.lpips import LPIPS
from training.tokenizer_training.stillness import stillness_loss


def tokenizer_losses(
    frames: Tensor, output: TokenizerOutput, config: TokenizerConfig, lpips: LPIPS | None = None
) -> dict[str, Tensor]:
    """Weighted loss terms, whose sum is minimised; `configs/tokenizer-oxe-64.yaml` has the published weights.

    Args:
        frames: (B, T, 3, H, W) in [0, 1].
        output: Of the tokenizer on these frames.
        config: Its weights are used; with `balanced_loss` context and future frames count by their share of T.
        lpips: For the perceptual terms; None leaves them out.
    """
    length, context_length = frames.shape[1], output.context_reconstruction.shape[1]
    parts = {
        "context": (output.context_reconstruction, frames[:, :context_length], context_length / length),
        "future": (output.future_reconstruction, frames[:, context_length:], 1 - context_length / length),
    }
    terms = {}
    for part, (reconstruction, truth, share) in parts.items():
        weight = share if config.balanced_loss else 1.0
        error = reconstruction.float() - truth
        terms[f"{part}_l1"] = weight * config.l1_weight * error.abs().mean()
        if config.l2_weight:
            terms[f"{part}_l2"] = weight * config.l2_weight * error.square().mean()
        if lpips is not None:
            distance = lpips(reconstruction.flatten(0, 1), truth.flatten(0, 1))
            terms[f"{part}_lpips"] = weight * config.lpips_weight * distance.mean()
    if config.still_weight:
        terms["still"] = config.still_weight * stillness_loss(frames, output)
    return terms | {
        "context_commitment": config.commitment_weight * output.context_commitment,
        "future_commitment": config.commitment_weight * output.future_commitment,
    }
