import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.model.loss import next_token_losses, squared_error


def _case(rows, positions, vocabulary, seed, width=5):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, positions, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows, positions), generator=generator)
    return hidden, weight, targets


def test_uniform_scores_cost_the_logarithm_of_the_vocabulary():
    losses = next_token_losses(lambda hidden: hidden, torch.zeros(2, 5, 7), torch.ones(2, 5, dtype=torch.int64))
    assert torch.allclose(losses, torch.full((2, 5), 7.0).log())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(2, 9), st.integers(1, 20), st.integers(0, 2**31))
def test_losses_and_gradients_equal_those_of_a_full_softmax_in_double_precision(rows, positions, vocabulary, chunk, seed):
    hidden, weight, targets = _case(rows, positions, vocabulary, seed)
    losses = next_token_losses(lambda states: nn.functional.linear(states, weight), hidden, targets, chunk)
    ours = torch.autograd.grad(losses.mean(), (hidden, weight))
    logits = hidden.double() @ weight.double().T
    chosen = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    naive = torch.autograd.grad(chosen.mean(), (hidden, weight))
    assert torch.allclose(losses.double(), chosen, atol=1e-5)
    for got, wanted in zip(ours, naive, strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)


def test_half_precision_logits_are_summed_in_full_precision():
    logits = torch.randn(1, 4, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(4)[None]
    losses = next_token_losses(nn.Identity(), logits, targets)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, next_token_losses(nn.Identity(), logits.float(), targets))


@pytest.mark.parametrize("backward", [False, True])
def test_logits_exist_for_one_chunk_only_and_are_recomputed_in_the_backward_pass(backward):
    hidden, weight, targets = _case(4, 25, 11, seed=1)
    shapes = []

    def head(states):
        shapes.append(tuple(states.shape))
        return nn.functional.linear(states, weight)

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved):
        loss = next_token_losses(head, hidden, targets, chunk=30).mean()
    assert shapes == [(30, 5), (30, 5), (30, 5), (10, 5)]
    assert max(kept, default=0) < 30 * 11, "logits or their softmax are kept for the backward pass"
    if backward:
        loss.backward()
        assert sorted(shapes) == sorted([(30, 5)] * 6 + [(10, 5)] * 2)


def test_chunks_compile_into_one_graph_with_the_same_gradients():
    hidden, weight, targets = _case(4, 25, 11, seed=2)

    def loss():
        return next_token_losses(lambda states: nn.functional.linear(states, weight), hidden, targets, chunk=30).mean()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(
        torch.autograd.grad(compiled(), (hidden, weight)), torch.autograd.grad(loss(), (hidden, weight)), strict=True
    ):
        assert torch.allclose(ours, eager, atol=1e-6)


def test_squared_error_is_the_mean_over_all_predictions():
    assert squared_error(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])) == 5.0
    assert squared_error(torch.ones(2, 3, 4, 2), torch.zeros(2, 3, 1, 2)) == 1.0
