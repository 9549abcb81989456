"""Computes the tokenizer's training loss as named, weighted terms; `discriminator` has the adversarial term."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config.model import TokenizerConfig
from tokenize_offline.tokenizer import TokenizerOutput
from training.metrics.lpips import LPIPS
from training.trainer.nonfinite import SkippedStep, json_number

# About 2 of 255 levels: the noise of JPEG in a static patch.
_NOISE = 0.01


def tokenizer_losses(
    frames: Tensor, output: TokenizerOutput, config: TokenizerConfig, lpips: LPIPS | None = None
) -> dict[str, Tensor]:
    """Returns the weighted loss terms; training minimises their sum. `configs/tokenizer-oxe-64.yaml` has the published weights.

    Args:
        frames: (B, T, 3, H, W) in [0, 1].
        output: Output of the tokenizer for these frames.
        config: Gives the weights; `balanced_loss` weighs context and future frames by their share of T.
        lpips: Computes the perceptual terms; None leaves them out.
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
    if config.static_patch_weight:
        terms["still"] = config.static_patch_weight * static_patch_loss(frames, output)
    return terms | {
        "context_commitment": config.commitment_weight * output.context_commitment,
        "future_commitment": config.commitment_weight * output.future_commitment,
    }


def skipped_terms(terms: Mapping[str, Tensor]) -> SkippedStep:
    """Describes a skipped step by the loss terms of this process that are not finite."""
    values = {name: json_number(float(term.detach())) for name, term in terms.items()}
    bad = ", ".join(f"{name} is {value}" for name, value in values.items() if isinstance(value, str))
    return SkippedStep(
        entry={"terms": values},
        what=bad or "its gradient is not finite",
        part="loss" if bad else "gradient",
        where=bad or "with finite loss terms",
        advice="Lower tokenizer.learning_rate or the weights of the losses, and start again in another --output.",
    )


def static_probability(frames: Tensor, context_length: int, patches: int) -> Tensor:
    """Returns how likely each patch of each future frame shows the same as in the last context frame.

    Args:
        frames: (B, T, 3, S, S) in [0, 1].
        context_length: Context frames among T.
        patches: Patches along one side of a frame.

    Returns:
        (B, T - context_length, patches^2) in [0, 1], row by row: exp of minus the mean squared difference over twice the
        square of the noise.
    """
    clips, side = len(frames), frames.shape[-1] // patches
    change = (frames[:, context_length:] - frames[:, context_length - 1 : context_length]).square()
    blocks = change.reshape(clips, -1, 3, patches, side, patches, side)
    return torch.exp(-blocks.mean(dim=(2, 4, 6)).flatten(2) / (2 * _NOISE**2))


def static_patch_loss(frames: Tensor, output: TokenizerOutput) -> Tensor:
    """Returns the mean squared distance of features from the most frequent code of static patches, weighted.

    Args:
        frames: (B, T, 3, S, S) in [0, 1].
        output: Output of the tokenizer for these frames.
    """
    patches = round(output.future_ids.shape[-1] ** 0.5)
    weights = static_probability(frames, output.context_reconstruction.shape[1], patches).reshape(-1)
    ids = output.future_ids.reshape(-1)
    votes = torch.zeros(int(ids.max()) + 1, device=ids.device).index_add_(0, ids, weights)
    chosen = output.future_codes[(ids == votes.argmax()).float().argmax()]
    return (weights * (output.future_vectors.float() - chosen).square().mean(dim=1)).mean()
