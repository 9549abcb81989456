"""The tokenizer's training loss, as named terms with weights, and how well its codebooks are used.

Perceptual and adversarial terms belong here as further entries of `tokenizer_losses`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.recipe import TokenizerConfig
from tokenize_offline.tokenizer import TokenizerOutput


def tokenizer_losses(frames: Tensor, output: TokenizerOutput, config: TokenizerConfig) -> dict[str, Tensor]:
    """Weighted loss terms, whose sum is minimised. Weights and terms: `spec/compressive-tokenizer.md`.

    Args:
        frames: (B, T, 3, H, W) in [0, 1].
        output: Of the tokenizer on these frames.
        config: Its weights are used.
    """
    context_length = output.context_reconstruction.shape[1]
    errors = {
        "context": output.context_reconstruction.float() - frames[:, :context_length],
        "future": output.future_reconstruction.float() - frames[:, context_length:],
    }
    return {
        **{f"{part}_l1": config.l1_weight * error.abs().mean() for part, error in errors.items()},
        **{f"{part}_l2": config.l2_weight * error.square().mean() for part, error in errors.items() if config.l2_weight},
        "context_commitment": config.commitment_weight * output.context_commitment,
        "future_commitment": config.commitment_weight * output.future_commitment,
    }


@dataclass
class CodebookUse:
    """Counts of how often each code of a codebook was chosen.

    Attributes:
        counts: (codes,) float64.
    """

    counts: Tensor

    @classmethod
    def empty(cls, codes: int, device: torch.device) -> "CodebookUse":
        """No choices yet."""
        return cls(torch.zeros(codes, dtype=torch.float64, device=device))

    def state_dict(self) -> dict[str, Tensor]:
        """The counts, for a checkpoint."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take counts from a checkpoint."""
        self.counts = state["counts"].to(self.counts.device)

    def clear(self) -> None:
        """Forget all choices."""
        self.counts.zero_()

    def add(self, ids: Tensor) -> None:
        """Count choices; `ids` of any shape, from 0."""
        self.counts += torch.bincount(ids.reshape(-1), minlength=len(self.counts)).to(self.counts.dtype)

    def share_used(self) -> float:
        """Share of the codes that were chosen at least once."""
        return float((self.counts > 0).double().mean())

    def perplexity(self) -> float:
        """Exponential of the entropy of the choices: the number of codes that would be chosen if all were equally."""
        shares = self.counts / self.counts.sum().clamp(min=1)
        return float(torch.exp(-(shares * torch.log(shares.clamp(min=1e-12))).sum()))

    def unused(self) -> Tensor:
        """Numbers of the codes never chosen, int64."""
        return torch.nonzero(self.counts == 0).reshape(-1)
