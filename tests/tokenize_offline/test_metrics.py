"""PSNR and perplexity mean the same wherever they are reported."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenize_offline.metrics import MAX_PSNR, entropy, perplexity, psnr

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=20).map(np.array)


@given(st.floats(-MAX_PSNR, 0))
def test_psnr_is_the_decibels_of_the_error(decibels):
    assert float(psnr(10 ** (decibels / 10))) == pytest.approx(-decibels)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_error_never_has_a_smaller_psnr_and_none_has_more_than_the_most(one, other):
    small, large = sorted((one, other))
    assert MAX_PSNR >= psnr(small) >= psnr(large)


def test_a_perfect_picture_has_the_most_and_an_error_that_is_no_number_has_none():
    assert psnr(np.array([0.0, 1e-12], np.float32)).tolist() == [MAX_PSNR, MAX_PSNR]
    assert np.isnan(psnr(np.float32("nan")))


@given(st.integers(1, 500), st.integers(1, 20), st.integers(0, 5))
def test_perplexity_is_the_number_of_values_used_evenly(count, used, unused):
    assert perplexity(np.array([count] * used + [0] * unused)) == pytest.approx(used)


@given(COUNTS, st.integers(1, 9))
def test_perplexity_depends_on_shares_alone_and_is_at_most_the_number_of_values_used(counts, times):
    found = perplexity(counts)
    assert found == pytest.approx(perplexity(counts.astype(np.float64) * times))
    assert found <= (counts > 0).sum() * (1 + 1e-12)
    assert found == (pytest.approx(np.exp(entropy(counts))) if counts.any() else 0)
