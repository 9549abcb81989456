"""Which of many hashes are the first of their kind: exact, and without comparing every two of them.

Two hashes that differ in at most r bits agree in one at least of any r + 1 bands of bits (the pigeonhole principle; multi-index
hashing, Norouzi et al. 2012), so a hash is compared with those alone that share a band with it. Bits are dealt to bands by how
much they tell. Where bands tell too little, because nearly all hashes share them, a hash is compared with all whose number of
ones is near its own, by its most telling bits first. Equal hashes are counted once, and only hashes that stay are kept, so
copies cost nothing however many there are. Memory is at most about 700 bytes a hash at 24 bits of 568.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

_BLOCK = 4096
_WITHIN = 512
# Levels of one size before they become one of the next: fewer are searched, more is sorted.
_MERGED = 4
# A candidate of the bands costs as much as so many hashes that are compared in a row.
_COST_OF_CANDIDATE = 16
_PAIRS = 1 << 18
# Hashes that are compared in a row together.
_QUERIES = 64
# Hashes by which it is judged how much each bit tells.
_SAMPLE = 1 << 16
_ODD = np.uint64(0x9E3779B97F4A7C15)


def first_of_near_duplicates(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Whether each hash differs in more than `bits` bits from all before it that are first of their kind, (N,) bool.

    Args:
        hashes: (N, B) uint8.
        bits: Greatest distance of two that are of one kind.
    """
    first = _first_occurrences(hashes)
    if not bits or len(hashes) < 2:
        return first
    places = np.flatnonzero(first)
    order = _telling_bits(hashes[places[:: max(1, len(places) // _SAMPLE)]])
    index = _Index(bits)
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        ones = np.unpackbits(hashes[block], axis=1)[:, order]
        words, keys = _words(ones), _band_keys(ones, bits + 1)
        fresh = np.flatnonzero(~index.near(words, keys))
        fresh = fresh[_first_within(words[fresh], bits)]
        index.add(words[fresh], keys[:, fresh])
        first[block] = False
        first[block[fresh]] = True
    return first


def _first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """Whether no hash before equals it, (N,) bool."""
    if not len(hashes):
        return np.zeros(0, bool)
    data = pa.py_buffer(np.ascontiguousarray(hashes))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(hashes.shape[1]), len(hashes), [None, data])
    # Codes are given in order of appearance.
    codes = column.dictionary_encode().indices.to_numpy()
    return np.diff(np.maximum.accumulate(codes), prepend=-1) > 0


def _telling_bits(hashes: np.ndarray) -> np.ndarray:
    """The bits of hashes (N, B), those first that are nearest to one half ones."""
    ones = np.unpackbits(hashes, axis=1)
    return np.argsort(np.abs(ones.mean(axis=0) - 0.5), kind="stable")


def _words(ones: np.ndarray) -> np.ndarray:
    """Bits (N, D) uint8 of 0 and 1, packed into (N, W) uint64."""
    padded = np.pad(ones, ((0, 0), (0, -ones.shape[1] % 64)))
    return np.ascontiguousarray(np.packbits(padded, axis=1)).view(np.uint64)


def _band_keys(ones: np.ndarray, bands: int) -> np.ndarray:
    """(bands, N) uint32: equal wherever two hashes agree in a band; where they don't, equal by rare chance.

    Bits (N, D), in order of how much they tell, are dealt to and fro, so that each band tells about as much.
    """
    keys = np.empty((bands, len(ones)), np.uint32)
    period = np.arange(ones.shape[1]) % (2 * bands)
    band_of = np.minimum(period, 2 * bands - 1 - period)
    for band in range(bands):
        mixed = np.zeros(len(ones), np.uint64)
        for word in _words(ones[:, band_of == band]).T:
            mixed = (mixed ^ word) * _ODD
            mixed ^= mixed >> np.uint64(29)
        keys[band] = (mixed >> np.uint64(32)).astype(np.uint32)
    return keys


def _first_within(words: np.ndarray, bits: int) -> np.ndarray:
    """As `first_of_near_duplicates`, for a few hashes (N, W), each compared with all."""
    fresh = np.ones(len(words), bool)
    for start in range(0, len(words), _WITHIN):
        block = words[start : start + _WITHIN]
        kept = words[:start][fresh[:start]]
        block_fresh = np.logical_not(_distances(block, kept, bits).any(axis=1))
        near = np.tril(_distances(block, block, bits), -1)
        for place in np.flatnonzero(near.any(axis=1) & block_fresh):
            block_fresh[place] = not block_fresh[near[place]].any()
        fresh[start : start + _WITHIN] = block_fresh
    return fresh


def _distances(one: np.ndarray, other: np.ndarray, bits: int) -> np.ndarray:
    """Whether hashes (N, W) and (M, W) differ in at most `bits` bits, (N, M) bool."""
    near = np.zeros((len(one), len(other)), bool)
    rows = max(1, _PAIRS // max(1, len(other)))
    for start in range(0, len(one), rows):
        left, right = _close(one[start : start + rows], other, bits)
        near[start + left, right] = True
    return near


def _close(one: np.ndarray, other: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (places in `one`, places in `other`) that differ in at most `bits` bits; all are looked at, two words first."""
    differing = np.bitwise_count(one[:, None, 0] ^ other[None, :, 0])
    if one.shape[1] > 1:
        differing += np.bitwise_count(one[:, None, 1] ^ other[None, :, 1])
    # Few pairs pass, and numpy finds them several times faster in one row.
    left, right = np.divmod(np.flatnonzero((differing <= bits).ravel()), len(other))
    near = _differ_little(one, other, left, right, bits)
    return left[near], right[near]


def _differ_little(one: np.ndarray, other: np.ndarray, left: np.ndarray, right: np.ndarray, bits: int) -> np.ndarray:
    """Whether the pairs (left[i] of `one`, right[i] of `other`) differ in at most `bits` bits, (P,) bool."""
    near = np.empty(len(left), bool)
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        differing = np.bitwise_count(one[left[part]] ^ other[right[part]])
        near[part] = differing.sum(axis=1, dtype=np.uint16) <= bits
    return near


class _Level(NamedTuple):
    """Hashes that are kept, in order of their number of ones.

    Attributes:
        words: (K, W).
        weights: (K,) numbers of ones.
        keys: (bands, K), each band in order.
        rows: (bands, K) whose key it is.
    """

    words: np.ndarray
    weights: np.ndarray
    keys: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, words: np.ndarray, keys: np.ndarray) -> "_Level":
        weights = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
        order = np.argsort(weights, kind="stable")
        words, weights = words[order], weights[order]
        rows = np.empty(keys.shape, np.int32)
        ordered = np.empty_like(keys)
        for band in range(len(keys)):
            of_band = keys[band][order]
            rows[band] = np.argsort(of_band, kind="stable")
            ordered[band] = of_band[rows[band]]
        return cls(words, weights, ordered, rows)

    def unordered_keys(self) -> np.ndarray:
        """Keys (bands, K) in the order of `words`."""
        keys = np.empty_like(self.keys)
        np.put_along_axis(keys, self.rows, self.keys, axis=1)
        return keys

    def near(self, words: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
        """Whether each hash (N, W) with keys (bands, N) is near to one of these, (N,) bool."""
        weights = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
        first, last = np.empty((2, *keys.shape), np.int64)
        for band, (ours, theirs) in enumerate(zip(self.keys, keys, strict=True)):
            # Twice as fast in order.
            order = np.argsort(theirs)
            first[band, order] = np.searchsorted(ours, theirs[order])
            last[band, order] = np.searchsorted(ours, theirs[order], "right")
        candidates = (last - first).sum(axis=0)
        window = np.searchsorted(self.weights, weights + bits, "right") - np.searchsorted(self.weights, weights - bits)
        in_a_row = candidates * _COST_OF_CANDIDATE > window
        found = np.zeros(len(words), bool)
        found[in_a_row] = self._near_in_a_row(words[in_a_row], weights[in_a_row], bits)
        for band in range(len(keys)):
            left = np.flatnonzero(~found & ~in_a_row & (last[band] > first[band]))
            counts = last[band, left] - first[band, left]
            # The numbers first .. last - 1 of every hash, one after the other.
            steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            right = self.rows[band, np.repeat(first[band, left], counts) + steps]
            left = np.repeat(left, counts)
            found[left[_differ_little(words, self.words, left, right, bits)]] = True
        return found

    def _near_in_a_row(self, words: np.ndarray, weights: np.ndarray, bits: int) -> np.ndarray:
        found = np.zeros(len(words), bool)
        order = np.argsort(weights, kind="stable")
        for start in range(0, len(order), _QUERIES):
            mine = order[start : start + _QUERIES]
            begin = np.searchsorted(self.weights, weights[mine[0]] - bits)
            end = np.searchsorted(self.weights, weights[mine[-1]] + bits, "right")
            for part in range(begin, end, _PAIRS // _QUERIES):
                left, _ = _close(words[mine], self.words[part : min(end, part + _PAIRS // _QUERIES)], bits)
                found[mine[left]] = True
                mine = mine[~found[mine]]
                if not len(mine):
                    break
        return found


class _Index:
    """Hashes that are kept, in levels of growing size, so that adding one costs little."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._levels: list[list[_Level]] = []

    def near(self, words: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether each hash is near to one that is kept, (N,) bool."""
        found = np.zeros(len(words), bool)
        for level in (level for size in reversed(self._levels) for level in size):
            left = np.flatnonzero(~found)
            found[left] = level.near(words[left], keys[:, left], self._bits)
        return found

    def add(self, words: np.ndarray, keys: np.ndarray) -> None:
        """Keep hashes."""
        made = _Level.of(words, keys)
        for size in self._levels:
            size.append(made)
            if len(size) < _MERGED:
                return
            all_keys = np.concatenate([level.unordered_keys() for level in size], axis=1)
            made = _Level.of(np.concatenate([level.words for level in size]), all_keys)
            size.clear()
        self._levels.append([made])
