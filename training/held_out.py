"""The loss on held-out clips, on the same clips every time."""

import numpy as np
import torch

from training.batches import as_batch
from training.processes import Processes
from training.token_store import TokenStore
from training.world_model import WorldModelNetwork


def spread_positions(store: TokenStore, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` clip positions, spread evenly over all data sets of a store, each in its plain view.

    Returns:
        (n,) position in `store.datasets`, and (n,) row in that data set.
    """
    sizes = [store.sizes[name] for name in store.datasets]
    starts = np.cumsum([0, *(size.positions for size in sizes)])
    count = min(limit, int(starts[-1]))
    chosen = np.arange(count) * int(starts[-1]) // max(count, 1)
    dataset = np.searchsorted(starts, chosen, side="right") - 1
    return dataset, (chosen - starts[dataset]) * np.array([size.views for size in sizes])[dataset]


class HeldOutLoss:
    """Measures the mean loss per label id over held-out clips.

    Every rank takes an equal share of the clips, since under ZeRO-3 all ranks must run the same forward passes; where there
    are fewer clips than ranks, each takes all of them.

    Args:
        store: Of held-out clips.
        network: Says which columns it takes.
        limit: Clips at most.
        micro_batch: Clips in a forward pass.
    """

    def __init__(self, store: TokenStore, network: WorldModelNetwork, limit: int, micro_batch: int) -> None:
        self._store = store
        self._columns = (bool(network.action_dim), network.has_reward)
        self._dataset, self._rows = spread_positions(store, limit)
        self._micro_batch = micro_batch

    def measure(self, engine: torch.nn.Module, processes: Processes) -> float:
        """Mean loss in nats per label id, the same on every rank. Call it on all ranks."""
        share = len(self._rows) // processes.place.world_size
        first, count = (processes.place.rank * share, share) if share else (0, len(self._rows))
        total = 0.0
        engine.eval()
        with torch.no_grad():
            for start in range(first, first + count, self._micro_batch):
                part = slice(start, min(start + self._micro_batch, first + count))
                clips = self._store.read(self._store.datasets, self._dataset[part], self._rows[part], *self._columns)
                output = engine(*as_batch(clips).to(processes.device))
                total += float(output.label_loss) * len(clips.ids)
        engine.train()
        return processes.sum(total) / processes.sum(count)
