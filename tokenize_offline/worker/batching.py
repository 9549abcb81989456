"""Groups clips of several shards into full batches, and returns the ids to the shards they belong to.

A clip's ids don't depend on the rest of its batch, so a batch may span shards, and small shards don't cause half-empty batches.
In return, the last clips of a shard wait for clips of the next one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from tokenize_offline.worker.encoder import BatchEncoder


@dataclass
class ShardTokens:
    """The ids of one shard's clips, in order, as they arrive.

    Attributes:
        parts: Arrays of ids, each (n, L) uint16.
        submitted: Number of clips submitted.
        received: Number of clips whose ids are in `parts`.
    """

    parts: list[np.ndarray] = field(default_factory=list)
    submitted: int = 0
    received: int = 0

    @property
    def complete(self) -> bool:
        """Whether the ids of all submitted clips have arrived."""
        return self.received == self.submitted

    def array(self) -> np.ndarray:
        """Ids (clips, L) uint16; (0, 0) without clips."""
        return np.concatenate(self.parts) if self.parts else np.empty((0, 0), np.uint16)


class Batcher:
    """Collects clips and encodes each full batch."""

    def __init__(self, encoder: BatchEncoder) -> None:
        self._encoder = encoder
        self._clips: deque[Tensor] = deque()
        self._owners: deque[ShardTokens] = deque()
        # Ids that the device still computes, and their shards.
        self._in_flight: tuple[Tensor, list[ShardTokens]] | None = None

    def add(self, clips: Sequence[Tensor], into: ShardTokens) -> None:
        """Submit clips (T, 3, S, S) of one shard."""
        into.submitted += len(clips)
        self._clips.extend(clips)
        self._owners.extend([into] * len(clips))
        while len(self._clips) >= self._encoder.batch:
            self._launch(self._encoder.batch)

    def flush(self) -> None:
        """Encode the remaining clips and wait for all ids."""
        if self._clips:
            self._launch(len(self._clips))
        self._collect()

    def _launch(self, count: int) -> None:
        # The previous batch is collected after this one is queued, so that the device is never idle.
        ids = self._encoder.tokenize([self._clips.popleft() for _ in range(count)])
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
            owner.received += end - start
            start = end
