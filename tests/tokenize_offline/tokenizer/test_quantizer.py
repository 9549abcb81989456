"""The quantizer: nearest codes, straight-through gradients, commitment loss, replacement of codes."""

import pytest
import torch
from torch.nn import functional as F

from tokenize_offline.tokenizer import Quantizer


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    quantizer = Quantizer(50, 6)
    torch.nn.init.normal_(quantizer.embedding.weight)
    return quantizer


def test_nearest_is_the_euclidean_minimum_across_chunks(quantizer):
    vectors = torch.randn(10_000, 6)
    exact = torch.cdist(vectors.double(), quantizer.embedding.weight.double()).argmin(1)
    assert torch.equal(quantizer.nearest(vectors), exact)


def test_codes_are_their_own_nearest(quantizer):
    assert torch.equal(quantizer.nearest(quantizer.embedding.weight), torch.arange(50))


def test_half_precision_vectors_are_compared_in_full_precision(quantizer):
    vectors = torch.randn(200, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.nearest(vectors), quantizer.nearest(vectors.float()))


def test_gradients_pass_straight_through(quantizer):
    vectors = torch.randn(20, 6, requires_grad=True)
    weights = torch.randn(20, 6)
    quantized = quantizer(vectors)
    assert torch.allclose(quantized.vectors, quantizer.lookup(quantized.ids), atol=1e-6)
    (quantized.vectors * weights).sum().backward()
    assert torch.allclose(vectors.grad, weights)
    assert quantizer.embedding.weight.grad is None


def test_commitment_pulls_both_sides_with_equal_weight(quantizer):
    vectors = torch.randn(20, 6, requires_grad=True)
    quantized = quantizer(vectors)
    quantized.commitment.backward()
    codes = quantizer.lookup(quantized.ids).detach()
    assert torch.allclose(quantized.commitment, 2 * F.mse_loss(vectors, codes))
    pull = 2 * (vectors.detach() - codes) / vectors.numel()
    assert torch.allclose(vectors.grad, pull)
    expected = torch.zeros(50, 6).index_add(0, quantized.ids, -pull)
    assert torch.allclose(quantizer.embedding.weight.grad, expected, atol=1e-7)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_vectors_move_to_their_codes_by_the_strength_of_quantization(quantizer, strength):
    vectors = torch.randn(20, 6)
    quantizer.strength = strength
    quantized = quantizer(vectors)
    codes = quantizer.lookup(quantized.ids)
    torch.testing.assert_close(quantized.vectors, vectors + strength * (codes - vectors))
    torch.testing.assert_close(quantized.commitment, (1 + strength) * F.mse_loss(vectors, codes))


def test_replaced_codes_are_nearest_to_their_vectors(quantizer):
    vectors = torch.randn(3, 6) * 10
    quantizer.replace_codes(torch.tensor([7, 2, 49]), vectors)
    assert quantizer.nearest(vectors).tolist() == [7, 2, 49]
    assert quantizer.embedding.weight.requires_grad
