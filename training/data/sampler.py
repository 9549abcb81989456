"""Maps sample numbers to (data set, clip): mixture and shuffle as a pure function without state.

Samples come in blocks of 2048. The mixture's weights fill every block by exact integer quotas, the block's slots are shuffled
by (seed, block), and the n-th visit of a data set follows a keyed permutation of its clip positions, a new one every epoch. The
permutation is a Feistel network over the next power of two with cycle walking, so memory and time don't grow with the data.
The cost: a few hash rounds per sample instead of one look-up, about 1 µs.

Weights may change at given sample numbers. A change starts a new block and continues every data set's epoch, so the samples
before it stay the same. Only the number of changes takes memory.

A resume needs only the sample number. Processes, workers and batch sizes don't change the order.
"""

import bisect
import functools
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from pipeline.common.errors import ConfigError

BLOCK = 2048
_FEISTEL_ROUNDS = 8
_LARGEST = 1 << 48
# A few are enough: neighbouring batches share a block.
_CACHED_BLOCKS = 8


@dataclass(frozen=True)
class DatasetSize:
    """Size of a data set.

    Attributes:
        positions: Number of clip positions.
        views: Views of each position; row `position * views + view` holds one.
    """

    positions: int
    views: int = 1


class SizedStore(Protocol):
    """A store that knows the sizes of its data sets, in a fixed order."""

    @property
    def sizes(self) -> Mapping[str, DatasetSize]:
        """Size by data set name."""


@dataclass(frozen=True)
class _Segment:
    """A range of samples with the same weights.

    Attributes:
        start: Number of its first sample.
        active: (D,) indices in `SampleOrder.datasets` of the data sets with a weight.
        weights: Weight by data set name.
        cumulative: D + 1 cumulative weights as integers, so that quotas are exact.
        visits: Samples drawn from each data set of the order before the segment.
    """

    start: int
    active: np.ndarray
    weights: Mapping[str, Fraction]
    cumulative: Sequence[int]
    visits: np.ndarray


class SampleOrder:
    """Order of samples over a mixture of data sets. `order[n]` is (data set, clip) of sample number n.

    The V views of a position count as one: each epoch visits every position once, in another view than the epoch before.

    Args:
        store: A `TokenStore`, or data set sizes by name.
        weights: Weight above 0 by data set name; None weights data sets by their clip positions.
        seed: Seed of all shuffling.
        changes: New weights by the sample number from which they hold. Data sets may come and go.

    Attributes:
        datasets: All data sets that ever have a weight, in the store's order.
        weights: Exact weight by data set name, after the last change.

    Raises:
        ConfigError: A weight names an unknown data set, a data set has no weight, or one has no clips.
    """

    def __init__(
        self,
        store: SizedStore | Mapping[str, DatasetSize],
        weights: Mapping[str, float | Fraction] | None = None,
        seed: int = 0,
        changes: Mapping[int, Mapping[str, float | Fraction]] | None = None,
    ) -> None:
        sizes = store if isinstance(store, Mapping) else store.sizes
        mixtures: dict[int, Mapping[str, float | Fraction] | None] = {0: weights, **dict(sorted((changes or {}).items()))}
        if min(mixtures) < 0:
            raise IndexError(f"sample numbers start at 0, so weights can't change at {min(mixtures)}")
        for mixture in mixtures.values():
            _check_mixture(sizes, mixture)
        resolved = {start: _exact_weights(sizes, mixture) for start, mixture in mixtures.items()}
        self.datasets = tuple(name for name in sizes if any(name in mixture for mixture in resolved.values()))
        self.seed = seed
        self._positions = np.array([sizes[name].positions for name in self.datasets], np.uint64)
        self._views = np.array([sizes[name].views for name in self.datasets], np.uint64)
        self._keys = np.array([_key(seed, name) for name in self.datasets], np.uint64)
        bits = np.array([(sizes[name].positions - 1).bit_length() for name in self.datasets], np.uint64)
        self._low_bits = bits // np.uint64(2)
        self._high_bits = bits - self._low_bits
        self._block = functools.lru_cache(maxsize=_CACHED_BLOCKS)(self._shuffled_block)
        self._segments: list[_Segment] = []
        self._starts: list[int] = []
        for start, mixture in resolved.items():
            visits = self._drawn(start) if self._segments else np.zeros(len(self.datasets), np.int64)
            active = np.array([i for i, name in enumerate(self.datasets) if name in mixture])
            self._segments.append(_Segment(start, active, mixture, _cumulative_weights(list(mixture.values())), visits))
            self._starts.append(start)
        self.weights = self._segments[-1].weights

    def __getstate__(self) -> dict[str, Any]:
        """Returns everything but the cache of blocks, so that an order can be sent to worker processes."""
        return {name: value for name, value in self.__dict__.items() if name != "_block"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores an order with an empty cache."""
        self.__dict__.update(state)
        self._block = functools.lru_cache(maxsize=_CACHED_BLOCKS)(self._shuffled_block)

    def __getitem__(self, number: int) -> tuple[str, int]:
        """Returns (data set, row in that data set) of sample `number`."""
        dataset, row = self.samples(number, 1)
        return self.datasets[dataset[0]], int(row[0])

    def samples(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns samples `start .. start + count - 1`.

        Returns:
            (count,) int64 indices in `datasets`, and (count,) int64 rows within these data sets.
        """
        if start < 0:
            raise IndexError(f"sample numbers start at 0, not {start}")
        end, parts = start + count, [(np.empty(0, np.int64), np.empty(0, np.int64))]
        while start < end:
            segment, block, offset = self._locate(start)
            next_change = self._starts[segment + 1] if segment + 1 < len(self._starts) else end
            taken = min(BLOCK - offset, end - start, next_change - start)
            dataset, rows = self._block(segment, block)
            parts.append((dataset[offset : offset + taken], rows[offset : offset + taken]))
            start += taken
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def drawn(self, number: int) -> dict[str, int]:
        """Returns how many of the first `number` samples come from each data set."""
        return dict(zip(self.datasets, self._drawn(number).tolist(), strict=True))

    def _drawn(self, number: int) -> np.ndarray:
        """Returns `drawn` as an array, from the segments made so far."""
        # The first sample of a change isn't drawn yet, so the segment of the sample before it counts.
        segment, block, offset = self._locate(number - 1) if number else (0, 0, -1)
        dataset, _ = self._block(segment, block)
        rest = np.bincount(dataset[: offset + 1], minlength=len(self.datasets))
        return self._visits(self._segments[segment], block) + rest

    def _locate(self, number: int) -> tuple[int, int, int]:
        """Returns (segment, block within it, slot within that) of a sample."""
        segment = bisect.bisect_right(self._starts, number) - 1
        return segment, *divmod(number - self._starts[segment], BLOCK)

    def _visits(self, segment: _Segment, block: int) -> np.ndarray:
        """Returns the samples drawn from each data set before a block of a segment, counted from the start of the run."""
        visits = segment.visits.copy()
        visits[segment.active] += _quotas(segment.cumulative, block * BLOCK)
        return visits

    def _shuffled_block(self, number: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (data set, row) of every slot of a block of a segment, both (BLOCK,) int64."""
        segment = self._segments[number]
        first = self._visits(segment, block)
        counts = self._visits(segment, block + 1) - first
        slots = np.arange(BLOCK, dtype=np.uint64)
        key = _key(self.seed, "block", block) if number == 0 else _key(self.seed, "block", segment.start, block)
        shuffle = np.argsort(_mix(slots + np.uint64(key)), kind="stable")
        dataset = np.repeat(np.arange(len(counts)), counts)[shuffle]
        # Visits of a data set ascend along the block, so an epoch ends before the next one starts.
        by_dataset = np.argsort(dataset, kind="stable")
        starts = np.cumsum(counts) - counts
        visit = np.empty(BLOCK, np.int64)
        visit[by_dataset] = np.arange(BLOCK) + np.repeat(first - starts, counts)
        return dataset, self._rows(dataset, visit)

    def _rows(self, dataset: np.ndarray, visit: np.ndarray) -> np.ndarray:
        positions, views = self._positions[dataset], self._views[dataset]
        epoch, index = np.divmod(visit.astype(np.uint64), positions)
        key = _mix(self._keys[dataset] + _mix(epoch))
        position = _permute(index, positions, self._low_bits[dataset], self._high_bits[dataset], key)
        view = (_mix(position + self._keys[dataset]) + epoch) % views
        return (position * views + view).astype(np.int64)


def _exact_weights(sizes: Mapping[str, DatasetSize], weights: Mapping[str, float | Fraction] | None) -> dict[str, Fraction]:
    """Returns weights as exact numbers in the order of `sizes`; a weight counts as the decimal number that was written."""
    if weights is None:
        return {name: Fraction(size.positions) for name, size in sizes.items()}
    return {name: Fraction(str(weights[name])) for name in sizes if name in weights}


def _cumulative_weights(weights: Sequence[Fraction]) -> list[int]:
    denominator = math.lcm(*(weight.denominator for weight in weights))
    return [0, *itertools.accumulate(int(weight * denominator) for weight in weights)]


def _quotas(cumulative: Sequence[int], number: int) -> list[int]:
    """Returns the samples of each data set among the first `number` of a segment; `number` must be the start of a block.

    The list of data sets is halved recursively. The first half gets its exact share, rounded to nearest; the second half gets
    the rest. No share ever shrinks as `number` grows, so differences of quotas are counts. A quota is never further from its
    exact share than half the depth, ceil(log2(data sets)) / 2, however long the run.

    Args:
        cumulative: Cumulative weights of the data sets as integers, starting with 0.
        number: Total number of samples.
    """

    def share(number: int, first: int, last: int) -> list[int]:
        if last - first == 1:
            return [number]
        middle = (first + last) // 2
        part, whole = cumulative[middle] - cumulative[first], cumulative[last] - cumulative[first]
        taken = (2 * number * part + whole) // (2 * whole)
        return share(taken, first, middle) + share(number - taken, middle, last)

    return share(number, 0, len(cumulative) - 1)


def _check_mixture(sizes: Mapping[str, DatasetSize], weights: Mapping[str, float | Fraction] | None) -> None:
    if not sizes:
        raise ConfigError("no data set to draw samples from")
    for name, size in sizes.items():
        if not 1 <= size.positions <= _LARGEST or size.views < 1:
            raise ConfigError(f"data set {name} has {size.positions} clips in {size.views} views: no samples can be drawn")
    if weights is None:
        return
    absent = sorted(weights.keys() - sizes.keys())
    if absent:
        raise ConfigError(
            f"the mixture names data sets without token shards: {', '.join(absent)}. "
            f"Token shards exist for: {', '.join(sizes)}. Tokenize the missing ones, or set data.missing to skip."
        )
    unusable = [name for name, weight in weights.items() if not 0 < weight < float("inf")]
    if unusable or not weights:
        raise ConfigError(f"mixture weights must be finite and above 0: {dict(weights)}")


def _key(*parts: int | str) -> int:
    """Returns a 64-bit key of some values, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def _mix(value: np.ndarray) -> np.ndarray:
    """Returns a 64-bit hash of uint64 values: the finalizer of SplitMix64 (Steele, Lea, Flood 2014) with its increment."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _permute(index: np.ndarray, size: np.ndarray, low_bits: np.ndarray, high_bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Applies keyed permutations of `range(size)`, one per element: returns where each `index` goes. All (N,) uint64.

    A Feistel network permutes the next power of two, at most twice the size. Results outside the range go through it again
    until they are inside (cycle walking), so the result is a permutation.
    """
    # The keyed rotation makes every index equally likely to go anywhere; few rounds on few bits alone would not.
    result = _feistel((index + _mix(~key) % size) % size, low_bits, high_bits, key)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        result[outside] = _feistel(result[outside], low_bits[outside], high_bits[outside], key[outside])
        outside = outside[result[outside] >= size[outside]]
    return result


def _feistel(value: np.ndarray, low_bits: np.ndarray, high_bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    one = np.uint64(1)
    low_mask, high_mask = (one << low_bits) - one, (one << high_bits) - one
    low, high = value & low_mask, value >> low_bits
    for number in range(0, _FEISTEL_ROUNDS, 2):
        high = high ^ (_mix(low + _mix(key + np.uint64(number))) & high_mask)
        low = low ^ (_mix(high + _mix(key + np.uint64(number + 1))) & low_mask)
    return (high << low_bits) | low
