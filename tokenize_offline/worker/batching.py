"""Clips of many episodes and shards in full batches through the model, and their ids back to the shard they belong to.

The engine's ids of a clip don't depend on what shares its batch, so batches go across shards: small shards cost no half-empty
batches. The price is that the end of a shard waits for clips of the next.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from tokenize_offline.worker.encoder import BatchEncoder


@dataclass
class ShardTokens:
    """Ids of one shard's clips, in order, as they arrive.

    Attributes:
        parts: Arrays (n, L) uint16.
        asked: Clips that were handed in.
        arrived: Clips whose ids are in `parts`.
    """

    parts: list[np.ndarray] = field(default_factory=list)
    asked: int = 0
    arrived: int = 0

    @property
    def complete(self) -> bool:
        """Whether all ids that were asked for are there."""
        return self.arrived == self.asked

    def array(self) -> np.ndarray:
        """Ids (clips, L) uint16; (0, 0) without clips."""
        return np.concatenate(self.parts) if self.parts else np.empty((0, 0), np.uint16)


class Batcher:
    """Collects clips, and runs the model whenever a batch is full."""

    def __init__(self, engine: BatchEncoder) -> None:
        self._engine = engine
        self._clips: deque[Tensor] = deque()
        self._owners: deque[ShardTokens] = deque()
        # Ids that are still being computed, and whose they are.
        self._in_flight: tuple[Tensor, list[ShardTokens]] | None = None

    def add(self, clips: Sequence[Tensor], into: ShardTokens) -> None:
        """Hand in clips (T, 3, S, S) of one shard."""
        into.asked += len(clips)
        self._clips.extend(clips)
        self._owners.extend([into] * len(clips))
        while len(self._clips) >= self._engine.batch:
            self._launch(self._engine.batch)

    def flush(self) -> None:
        """Compute what waits for a full batch, so that all ids have arrived."""
        if self._clips:
            self._launch(len(self._clips))
        self._collect()

    def _launch(self, count: int) -> None:
        # The previous batch is fetched after this one is queued, so that the device goes from one to the next.
        ids = self._engine.tokenize([self._clips.popleft() for _ in range(count)])
        owners = [self._owners.popleft() for _ in range(count)]
        self._collect()
        self._in_flight = ids, owners

    def _collect(self) -> None:
        if self._in_flight is None:
            return
        ids, owners = self._in_flight
        self._in_flight = None
        array = ids.cpu().numpy().astype(np.uint16)
        start = 0
        while start < len(owners):
            owner, end = owners[start], start
            while end < len(owners) and owners[end] is owner:
                end += 1
            owner.parts.append(array[start:end])
            owner.arrived += end - start
            start = end
