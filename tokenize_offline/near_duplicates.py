"""Finds near duplicates among many hashes: exact, without comparing every pair.

If two hashes differ in at most r bits, they agree in at least one of any r + 1 bands of bits (pigeonhole principle; multi-index
hashing, Norouzi et al. 2012). So a hash is compared only with hashes that share a band with it. Bits are distributed over the
bands by information content. If a band is useless because nearly all hashes share it, a hash is compared with all hashes of a
similar number of ones instead, most informative bits first. Only the first of equal or near hashes is stored, so copies cost
nothing. Memory is at most about 700 bytes per hash at 24 bits of 568.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

_BLOCK = 4096
_SUBBLOCK = 512
# Number of levels of one size that merge into a level of the next size. A lower number searches fewer levels but sorts more.
_MERGED = 4
# Comparing a candidate from the bands costs as much as comparing this many hashes in a linear scan.
_COST_OF_CANDIDATE = 16
_PAIRS = 1 << 18
# Hashes compared together in a linear scan.
_QUERIES = 64
# Hashes that measure the information content of the bits.
_SAMPLE = 1 << 16
_ODD = np.uint64(0x9E3779B97F4A7C15)


def first_of_near_duplicates(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Whether each hash is kept: it differs in more than `bits` bits from all earlier hashes that are kept. (N,) bool.

    Args:
        hashes: (N, B) uint8.
        bits: Largest distance of near duplicates in bits.
    """
    first = _first_occurrences(hashes)
    if not bits or len(hashes) < 2:
        return first
    distinct = np.flatnonzero(first)
    order = _informative_bits(hashes[distinct[:: max(1, len(distinct) // _SAMPLE)]])
    index = _Index(bits)
    for start in range(0, len(distinct), _BLOCK):
        block = distinct[start : start + _BLOCK]
        ones = np.unpackbits(hashes[block], axis=1)[:, order]
        words, keys = _words(ones), _band_keys(ones, bits + 1)
        fresh = np.flatnonzero(~index.near(words, keys))
        fresh = fresh[_first_within(words[fresh], bits)]
        index.add(words[fresh], keys[:, fresh])
        first[block] = False
        first[block[fresh]] = True
    return first


def _first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """Whether each hash differs from all earlier hashes, (N,) bool."""
    if not len(hashes):
        return np.zeros(0, bool)
    data = pa.py_buffer(np.ascontiguousarray(hashes))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(hashes.shape[1]), len(hashes), [None, data])
    # Dictionary codes count up in order of first occurrence.
    codes = column.dictionary_encode().indices.to_numpy()
    return np.diff(np.maximum.accumulate(codes), prepend=-1) > 0


def _informative_bits(hashes: np.ndarray) -> np.ndarray:
    """Bit positions of hashes (N, B), sorted by information: bits that are set in about half of the hashes come first."""
    ones = np.unpackbits(hashes, axis=1)
    return np.argsort(np.abs(ones.mean(axis=0) - 0.5), kind="stable")


def _words(ones: np.ndarray) -> np.ndarray:
    """Pack bits (N, D) uint8 of 0 and 1 into words (N, W) uint64."""
    padded = np.pad(ones, ((0, 0), (0, -ones.shape[1] % 64)))
    return np.ascontiguousarray(np.packbits(padded, axis=1)).view(np.uint64)


def _band_keys(ones: np.ndarray, bands: int) -> np.ndarray:
    """Hash values of the bands of bits (N, D), (bands, N) uint32. Different bands rarely have equal values.

    Bits come sorted by information and are dealt back and forth, so that all bands are about equally informative.
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
    """`first_of_near_duplicates` for a few hashes (N, W), by comparing all pairs."""
    fresh = np.ones(len(words), bool)
    for start in range(0, len(words), _SUBBLOCK):
        block = words[start : start + _SUBBLOCK]
        kept = words[:start][fresh[:start]]
        block_fresh = np.logical_not(_distances(block, kept, bits).any(axis=1))
        near = np.tril(_distances(block, block, bits), -1)
        for row in np.flatnonzero(near.any(axis=1) & block_fresh):
            block_fresh[row] = not block_fresh[near[row]].any()
        fresh[start : start + _SUBBLOCK] = block_fresh
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
    """Index pairs (into `one`, into `other`) that differ in at most `bits` bits. Compares two words first, for all pairs."""
    differing = np.bitwise_count(one[:, None, 0] ^ other[None, :, 0])
    if one.shape[1] > 1:
        differing += np.bitwise_count(one[:, None, 1] ^ other[None, :, 1])
    # Few pairs pass, and numpy finds them several times faster in a flat array.
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
    """Stored hashes, sorted by their number of ones.

    Attributes:
        words: (K, W) hashes.
        weights: (K,) number of ones of each hash.
        keys: (bands, K) band values, sorted within each band.
        rows: (bands, K) row in `words` of each entry of `keys`.
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
        """Band values (bands, K) in the order of `words`."""
        keys = np.empty_like(self.keys)
        np.put_along_axis(keys, self.rows, self.keys, axis=1)
        return keys

    def near(self, words: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
        """Whether each hash (N, W) with band values (bands, N) is near a stored hash, (N,) bool."""
        weights = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
        first, last = np.empty((2, *keys.shape), np.int64)
        for band, (ours, theirs) in enumerate(zip(self.keys, keys, strict=True)):
            # Sorted queries are twice as fast.
            order = np.argsort(theirs)
            first[band, order] = np.searchsorted(ours, theirs[order])
            last[band, order] = np.searchsorted(ours, theirs[order], "right")
        candidates = (last - first).sum(axis=0)
        window = np.searchsorted(self.weights, weights + bits, "right") - np.searchsorted(self.weights, weights - bits)
        scanned = candidates * _COST_OF_CANDIDATE > window
        found = np.zeros(len(words), bool)
        found[scanned] = self._near_by_scan(words[scanned], weights[scanned], bits)
        for band in range(len(keys)):
            left = np.flatnonzero(~found & ~scanned & (last[band] > first[band]))
            counts = last[band, left] - first[band, left]
            # The indices first .. last - 1 of every hash, concatenated.
            steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            right = self.rows[band, np.repeat(first[band, left], counts) + steps]
            left = np.repeat(left, counts)
            found[left[_differ_little(words, self.words, left, right, bits)]] = True
        return found

    def _near_by_scan(self, words: np.ndarray, weights: np.ndarray, bits: int) -> np.ndarray:
        found = np.zeros(len(words), bool)
        order = np.argsort(weights, kind="stable")
        for start in range(0, len(order), _QUERIES):
            queries = order[start : start + _QUERIES]
            begin = np.searchsorted(self.weights, weights[queries[0]] - bits)
            end = np.searchsorted(self.weights, weights[queries[-1]] + bits, "right")
            for part in range(begin, end, _PAIRS // _QUERIES):
                left, _ = _close(words[queries], self.words[part : min(end, part + _PAIRS // _QUERIES)], bits)
                found[queries[left]] = True
                queries = queries[~found[queries]]
                if not len(queries):
                    break
        return found


class _Index:
    """Stored hashes in levels of growing size, so that adding hashes is cheap."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._levels: list[list[_Level]] = []

    def near(self, words: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether each hash is near a stored hash, (N,) bool."""
        found = np.zeros(len(words), bool)
        for level in (level for size in reversed(self._levels) for level in size):
            left = np.flatnonzero(~found)
            found[left] = level.near(words[left], keys[:, left], self._bits)
        return found

    def add(self, words: np.ndarray, keys: np.ndarray) -> None:
        """Store hashes."""
        level = _Level.of(words, keys)
        for size in self._levels:
            size.append(level)
            if len(size) < _MERGED:
                return
            all_keys = np.concatenate([level.unordered_keys() for level in size], axis=1)
            level = _Level.of(np.concatenate([level.words for level in size]), all_keys)
            size.clear()
        self._levels.append([level])
