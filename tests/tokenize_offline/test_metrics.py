"""PSNR and perplexity follow their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenize_offline.metrics import MAX_PSNR, entropy, perplexity, psnr

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=20).map(np.array)


@given(st.floats(-MAX_PSNR, 0))
def test_psnr_is_the_error_in_decibels(decibels):
    assert float(psnr(10 ** (decibels / 10))) == pytest.approx(-decibels)


@given(st.floats(0, 1), st.floats(0, 1))
def test_psnr_never_falls_with_a_smaller_error_and_never_exceeds_the_maximum(one, other):
    small, large = sorted((one, other))
    assert MAX_PSNR >= psnr(small) >= psnr(large)


def test_an_error_of_zero_gives_the_maximum_and_nan_gives_nan():
    assert psnr(np.array([0.0, 1e-12], np.float32)).tolist() == [MAX_PSNR, MAX_PSNR]
    assert np.isnan(psnr(np.float32("nan")))


@given(st.integers(1, 500), st.integers(1, 20), st.integers(0, 5))
def test_perplexity_is_the_number_of_evenly_used_values(count, used, unused):
    assert perplexity(np.array([count] * used + [0] * unused)) == pytest.approx(used)


@given(COUNTS, st.integers(1, 9))
def test_perplexity_depends_only_on_frequencies_and_is_at_most_the_number_of_used_values(counts, times):
    found = perplexity(counts)
    assert found == pytest.approx(perplexity(counts.astype(np.float64) * times))
    assert found <= (counts > 0).sum() * (1 + 1e-12)
    assert found == (pytest.approx(np.exp(entropy(counts))) if counts.any() else 0)
