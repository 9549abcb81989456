"""Counts how often each code of the tokenizer's codebooks is chosen, and resets codes that are rarely chosen.

A collapsed codebook looks fine in the loss, so its use is counted and reported. A code that all processes together have rarely
chosen takes the value of a current feature. Features are drawn in proportion to their squared distance from the nearest code
(as k-means++ seeds its centres: Arthur and Vassilvitskii, 2007): a uniform draw would rarely meet a small object that fills few
patches and has no code.
"""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from tokenize_offline.metrics import perplexity
from tokenize_offline.tokenizer import CompressiveVQModel, TokenizerOutput
from training.tokenizer_training.ema import ExponentialMovingAverage

# A code with less than this fraction of an even share of the choices is reset.
_RARE = 0.02
_LLOYD_STEPS = 20


@dataclass
class CodebookUse:
    """Counts of how often each code of a codebook was chosen.

    Attributes:
        counts: (codes,) float64.
    """

    counts: Tensor

    @classmethod
    def empty(cls, codes: int, device: torch.device) -> "CodebookUse":
        """Returns counts of zero."""
        return cls(torch.zeros(codes, dtype=torch.float64, device=device))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the counts, for a checkpoint."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the counts of a checkpoint."""
        self.counts = state["counts"].to(self.counts.device)

    def clear(self) -> None:
        """Resets all counts to zero."""
        self.counts.zero_()

    def add(self, ids: Tensor) -> None:
        """Counts ids of any shape."""
        self.counts += torch.bincount(ids.reshape(-1), minlength=len(self.counts)).to(self.counts.dtype)

    def share_used(self) -> float:
        """Returns the fraction of the codes that were chosen at least once."""
        return float((self.counts > 0).double().mean())

    def perplexity(self) -> float:
        """Returns the perplexity of the choices."""
        return perplexity(self.counts.cpu().numpy())

    def rare(self) -> Tensor:
        """Returns the ids of the codes with less than 2 % of an even share of the choices, int64."""
        return torch.nonzero(self.counts <= _RARE * self.counts.mean()).reshape(-1)


def distant_features(vectors: Tensor, distances: Tensor, count: int) -> Tensor:
    """Draws features in proportion to their squared distance from the nearest code; uniformly if all distances are 0.

    Args:
        vectors: (N, D) features.
        distances: (N,) squared distances of the features from their nearest codes.
        count: Features to draw, with replacement.

    Returns:
        (count, D) float32.
    """
    weights = distances if bool((distances > 0).any()) else torch.ones_like(distances)
    return vectors[torch.multinomial(weights, count, replacement=True)].float()


def cluster_centres(codes: Tensor, count: int) -> Tensor:
    """Returns a smaller codebook that covers what a trained one covers, by k-means (Lloyd's steps).

    It starts from codes that are far from each other (Gonzalez, 1985), so that rare codes stay. The result is deterministic.

    Args:
        codes: (N, D) codebook.
        count: Number of codes of the smaller codebook, at most N.

    Returns:
        (count, D), of the dtype of `codes`.
    """
    points = codes.float()
    centres = points[:1]
    nearest = torch.cdist(points, centres)[:, 0]
    while len(centres) < count:
        centres = torch.cat([centres, points[nearest.argmax()][None]])
        nearest = torch.minimum(nearest, torch.cdist(points, centres[-1:])[:, 0])
    for _ in range(_LLOYD_STEPS):
        owner = torch.cdist(points, centres).argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        sizes = torch.bincount(owner, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres.to(codes.dtype)


class CodebookKeeper:
    """Counts the use of both codebooks over all processes and resets rarely used codes.

    Attributes:
        uses: Counts of the codebooks `context` and `future`; checkpoints hold them.
    """

    def __init__(self, model: CompressiveVQModel, accelerator: Accelerator) -> None:
        self._model = model
        self._accelerator = accelerator
        device = accelerator.device
        self.uses = {
            "context": CodebookUse.empty(model.config.num_vq_embeddings, device),
            "future": CodebookUse.empty(model.config.num_dyn_embeddings, device),
        }

    def add(self, output: TokenizerOutput) -> None:
        """Counts the codes of one step."""
        self.uses["context"].add(output.context_ids)
        self.uses["future"].add(output.future_ids)

    def set_strength(self, strength: float) -> None:
        """Sets how far training moves vectors to their codes: 0 to 1; more counts as 1."""
        for quantizer in (self._model.quantize, self._model.dynamics_quantize):
            quantizer.strength = min(1.0, strength)

    def gather(self) -> None:
        """Adds the counts of all processes up on rank 0, whose counts go into checkpoints. Call it on all ranks."""
        for use in self.uses.values():
            total = self._accelerator.reduce(use.counts, "sum")
            use.counts = total if self._accelerator.is_main_process else torch.zeros_like(total)

    def describe(self) -> dict[str, float]:
        """Returns used fraction and perplexity of both codebooks since the last reset, by the counts of this process."""
        named: dict[str, float] = {}
        for name, use in self.uses.items():
            named |= {f"{name}_codes_used": use.share_used(), f"{name}_perplexity": use.perplexity()}
        return named

    def reset_dead_codes(
        self, clips: Tensor, optimizer: torch.optim.Optimizer, average: ExponentialMovingAverage | None
    ) -> None:
        """Replaces rarely used codes by features of `clips`, and starts counting again. Call it on all ranks."""
        model = self._model
        with torch.no_grad():
            output = model(clips)
        codebooks = (
            ("quantize", self.uses["context"], output.context_vectors),
            ("dynamics_quantize", self.uses["future"], output.future_vectors),
        )
        for name, use, vectors in codebooks:
            use.counts = self._accelerator.reduce(use.counts, "sum")
            rare, quantizer = use.rare(), getattr(model, name)
            if len(rare):
                distances = (vectors.float() - quantizer.lookup(quantizer.nearest(vectors)).float()).square().sum(dim=1)
                values = broadcast(distant_features(vectors, distances.detach(), len(rare)))
                quantizer.replace_codes(rare, values)
                # Moments and average belong to the old codes.
                state = optimizer.state.get(quantizer.embedding.weight, {})
                for moment in ("exp_avg", "exp_avg_sq"):
                    if moment in state:
                        state[moment][rare] = 0
                if average is not None:
                    average.values[f"{name}.embedding.weight"][rare] = values
            use.clear()
