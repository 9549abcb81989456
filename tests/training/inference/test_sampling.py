import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from training.inference.sampling import SamplingRule, uniforms

SEEDS = st.integers(-(2**63), 2**64 - 1)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000), st.integers(1, 20))
def test_noise_of_a_sample_does_not_depend_on_the_number_of_samples(seed, few, more, frame, count):
    np.testing.assert_array_equal(uniforms(seed, few, frame, count), uniforms(seed, few + more, frame, count)[:few])


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(0, 1000))
def test_noise_differs_between_samples_frames_and_seeds(seed, frame):
    here = uniforms(seed, 2, frame, 4)
    assert len(np.unique(here)) == 8
    assert not np.isin(uniforms(seed, 2, frame + 1, 4), here).any()
    assert not np.isin(uniforms(seed + 1, 2, frame, 4), here).any()
    assert ((here >= 0) & (here < 1)).all()


def test_temperature_zero_takes_the_most_likely_id():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert SamplingRule(temperature=0.0).sample(logits, torch.tensor([0.99, 0.99], dtype=torch.float64)).tolist() == [1, 0]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.floats(0.1, 5.0), st.integers(0, 2**31))
def test_ids_outside_the_k_most_likely_are_never_sampled(top_k, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 12, generator=generator).expand(300, 12)
    noise = torch.rand(300, dtype=torch.float64, generator=generator)
    sampled = SamplingRule(top_k, temperature).sample(logits, noise)
    assert set(sampled.tolist()) <= set(logits[0].topk(top_k).indices.tolist())


@pytest.mark.parametrize("top_k", [None, 0, 3, np.int64(3)])
def test_ids_are_sampled_with_their_probabilities(top_k):
    logits = torch.tensor([[0.3, 1.5, -1.0, 0.8]])
    count = 20_000
    noise = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    sampled = SamplingRule(top_k, temperature=0.7).sample(logits.expand(count, 4), noise)
    allowed = logits[0].clone()
    if top_k:
        allowed[allowed.argmin()] = -torch.inf
    expected = (allowed.double() / 0.7).softmax(-1)
    np.testing.assert_allclose(torch.bincount(sampled, minlength=4) / count, expected, atol=2 / count)


def test_the_largest_noise_gives_a_valid_id():
    logits = torch.randn(1, 16386, generator=torch.Generator().manual_seed(0))
    noise = torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float64)
    sampled = SamplingRule(None).sample(logits, noise)
    assert 0 <= sampled.item() < 16386


@pytest.mark.parametrize("numbers", [{"top_k": -1}, {"top_k": 2.5}, {"temperature": -1.0}, {"temperature": float("nan")}])
def test_invalid_sampling_options_are_refused(numbers):
    with pytest.raises(ConfigError):
        SamplingRule(**numbers)
