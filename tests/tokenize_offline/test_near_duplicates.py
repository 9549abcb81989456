"""The search finds the same near duplicates as comparing all pairs, and copies cost little."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_offline import near_duplicates
from tokenize_offline.near_duplicates import first_of_near_duplicates


def by_comparing_all(hashes, bits):
    """The definition: compare each hash with all kept hashes."""
    first = np.zeros(len(hashes), bool)
    kept = np.empty_like(hashes)
    for place, one in enumerate(hashes):
        count = int(first.sum())
        if (np.bitwise_count(kept[:count] ^ one).sum(axis=1) > bits).all():
            kept[count] = one
            first[place] = True
    return first


@st.composite
def crowds(draw):
    """Hashes around a few centres, with some rarely set bits, and the largest near distance."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width, count = draw(st.integers(1, 20)), draw(st.integers(0, 150))
    share = draw(st.sampled_from([0.02, 0.1, 0.5])) * generator.random(8 * width)
    centres = generator.random((draw(st.integers(1, 30)), 8 * width)) < share
    flips = generator.random((count, 8 * width)) < draw(st.sampled_from([0.0, 0.01, 0.05, 0.3]))
    ones = centres[generator.integers(0, len(centres), count)] ^ flips
    return np.packbits(ones.reshape(count, 8 * width), axis=1), draw(st.integers(0, 40))


# Small blocks, so that a few hashes exercise the whole index.
SMALL = {"_BLOCK": 8, "_SUBBLOCK": 3, "_MERGED": 2, "_PAIRS": 16, "_QUERIES": 4, "_SAMPLE": 16}


@settings(deadline=None)
@given(crowds(), st.sampled_from([0, 1, 16, 1000]))
def test_the_search_finds_the_same_as_comparing_all_pairs(crowd, cost):
    hashes, bits = crowd
    # The cost chooses between bands (0: always) and a linear scan (1000: nearly always).
    with mock.patch.multiple(near_duplicates, **SMALL, _COST_OF_CANDIDATE=cost):
        assert np.array_equal(first_of_near_duplicates(hashes, bits), by_comparing_all(hashes, bits))


@pytest.mark.parametrize("share", [0.03, 0.25])
def test_the_default_block_sizes_find_the_same(share):
    generator = np.random.default_rng(0)
    hashes = np.packbits(generator.random((4500, 568)) < share, axis=1)
    near = generator.permutation(4500)[:1500]
    hashes[near] = hashes[generator.integers(0, 4500, 1500)]
    hashes[near, generator.integers(0, 71, 1500)] ^= 0x15
    assert np.array_equal(first_of_near_duplicates(hashes, 24), by_comparing_all(hashes, 24))


@pytest.fixture
def compared(monkeypatch):
    """The number of pairs compared in each linear scan."""
    counts = []
    real = near_duplicates._close

    def close(one, other, bits):
        counts.append(len(one) * len(other))
        return real(one, other, bits)

    monkeypatch.setattr(near_duplicates, "_close", close)
    return counts


def test_copies_are_never_compared(compared):
    hashes = np.zeros((200_000, 71), np.uint8)
    hashes[100_000:] = 0xF0
    assert np.flatnonzero(first_of_near_duplicates(hashes, 24)).tolist() == [0, 100_000]
    assert sum(compared) <= 4


def test_nearly_equal_hashes_are_compared_only_with_the_few_that_are_kept(compared):
    generator = np.random.default_rng(0)
    hashes = np.zeros((20_000, 71), np.uint8)
    for _ in range(3):
        hashes[np.arange(20_000), generator.integers(0, 71, 20_000)] ^= 1 << generator.integers(0, 8, 20_000, dtype=np.uint8)
    assert first_of_near_duplicates(hashes, 24).sum() == 1
    # All pairs would be 2e8.
    assert sum(compared) < 1e7
