"""Measures the loss on held-out clips, by data set and by future frame, on the same clips every time.

The ranks share the clips in rounds of one micro batch each; the last round is padded with clips that don't count. So all ranks
run the same number of forward passes of the same shape, which ZeRO-3 and compiled code need, and any number of processes
measures the same clips.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from training.data.loader import as_batch
from training.data.token_dataset import TokenStore
from training.distributed import Processes
from training.model.world_model import WorldModelNetwork
from training.trainer.engine import Network


@dataclass(frozen=True)
class ValidationScores:
    """Losses in nats per target token. Any of them may be non-finite, if the model or a clip is broken.

    Attributes:
        loss: Mean of the data sets' losses, weighted by the mixture.
        by_dataset: Mean loss of the clips of each data set.
        by_frame: Mean loss of each future frame's tokens, counted from 1, weighted by the mixture.
    """

    loss: float
    by_dataset: dict[str, float]
    by_frame: dict[str, float]


def spread_rows(store: TokenStore, name: str, limit: int) -> np.ndarray:
    """Returns (n,) rows of at most `limit` clip positions, spread evenly over a data set, each in its unchanged view."""
    positions = store.positions(name)
    count = min(limit, positions)
    return np.arange(count) * positions // max(count, 1) * store.views(name)


def mixture_shares(store: TokenStore, weights: Mapping[str, Fraction]) -> dict[str, float]:
    """Returns each data set's share of the mixture within a store; equal shares if the mixture has none of them."""
    own = {name: weights.get(name, Fraction()) for name in store.datasets}
    total = sum(own.values())
    return {name: float(weight / total) if total else 1 / len(own) for name, weight in own.items()}


class ValidationLoss:
    """Measures the loss on held-out clips.

    Args:
        store: Held-out clips.
        network: Network that will be measured; tells which columns to read.
        weights: Mixture weight of each data set.
        limit: Maximum number of clips per data set.
        micro_batch: Clips in a forward pass.
    """

    def __init__(
        self, store: TokenStore, network: WorldModelNetwork, weights: Mapping[str, Fraction], limit: int, micro_batch: int
    ) -> None:
        self._store = store
        self._columns = (bool(network.action_dim), network.has_reward)
        self._shares = mixture_shares(store, weights)
        rows = [spread_rows(store, name, limit) for name in store.datasets]
        self._rows = np.concatenate(rows)
        self._dataset = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        self._micro_batch = min(micro_batch, len(self._rows))

    def measure(self, engine: Network, processes: Processes) -> ValidationScores:
        """Returns the losses, the same on every rank. Call it on all ranks."""
        layout = self._store.layout
        # The first future frame's start token is not a target.
        tokens_per_frame = np.full(layout.clip_length - layout.context_length, layout.tokens_per_future_frame)
        tokens_per_frame[0] -= 1
        totals = torch.zeros(len(self._store.datasets), len(tokens_per_frame), dtype=torch.float64, device=processes.device)
        rounds = -(-len(self._rows) // (self._micro_batch * processes.world_size))
        engine.eval()
        with torch.no_grad():
            for number in range(rounds):
                first = (number * processes.world_size + processes.rank) * self._micro_batch
                chosen = np.arange(first, first + self._micro_batch)
                counts = torch.from_numpy(chosen < len(self._rows)).to(processes.device)
                chosen %= len(self._rows)
                dataset = self._dataset[chosen]
                clips = self._store.read(self._store.datasets, dataset, self._rows[chosen], *self._columns)
                output = engine(*as_batch(clips).to(processes.device))
                losses = torch.nn.functional.pad(output.token_losses.double(), (1, 0)).unflatten(
                    1, (-1, layout.tokens_per_future_frame)
                )
                # Not a product with 0, which would spread one non-finite loss to other frames and clips.
                by_frame = losses.sum(dim=2).where(counts[:, None], 0.0)
                totals.index_add_(0, torch.from_numpy(dataset).to(processes.device), by_frame)
        engine.train()
        summed = torch.stack(processes.gather_tensor(totals.cpu())).sum(dim=0).numpy()
        return self._scores(summed, tokens_per_frame)

    def _scores(self, totals: np.ndarray, tokens_per_frame: np.ndarray) -> ValidationScores:
        """Returns mean losses from (data sets, future frames) loss sums and the (future frames,) target tokens of a clip."""
        clips = np.bincount(self._dataset, minlength=len(self._store.datasets))
        means = totals / (clips[:, None] * tokens_per_frame)
        by_dataset = totals.sum(axis=1) / (clips * tokens_per_frame.sum())
        shares = np.array([self._shares[name] for name in self._store.datasets])
        # A data set without a share must not matter, even if its loss is not finite.
        shares, means, own = shares[shares > 0], means[shares > 0], by_dataset[shares > 0]
        return ValidationScores(
            loss=float(shares @ own),
            by_dataset=dict(zip(self._store.datasets, by_dataset.tolist(), strict=True)),
            by_frame={str(number + 1): loss for number, loss in enumerate((shares @ means).tolist())},
        )
