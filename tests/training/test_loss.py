import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.loss import next_id_loss, reward_loss


def test_uniform_scores_cost_the_logarithm_of_the_vocabulary():
    logits = torch.zeros(2, 5, 7)
    assert torch.isclose(next_id_loss(logits, torch.ones(2, 5, dtype=torch.int64)), torch.tensor(7.0).log())


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**31))
def test_loss_is_the_mean_negative_log_probability_of_the_targets(rows, positions, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, positions, vocabulary, generator=generator)
    targets = torch.randint(0, vocabulary, (rows, positions), generator=generator)
    chosen = logits.double().log_softmax(-1).gather(-1, targets[..., None])
    assert torch.isclose(next_id_loss(logits, targets).double(), -chosen.mean(), atol=1e-5)


def test_half_precision_logits_are_summed_in_full_precision():
    logits = torch.randn(1, 4, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(4)[None]
    loss = next_id_loss(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.isclose(loss, next_id_loss(logits.float(), targets))


def test_reward_loss_is_the_mean_squared_error():
    assert reward_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])) == 5.0
