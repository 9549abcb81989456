import torch
from hypothesis import given
from hypothesis import strategies as st

from training.inference.speculative_decoding import BLOCK_LENGTHS, accepted, block_length


def test_one_id_is_accepted_and_one_more_for_each_right_proposal_before_it():
    fed = torch.tensor([[7, 1, 2, 3], [7, 1, 2, 3], [7, 1, 2, 3], [7, 1, 2, 3]])
    sampled = torch.tensor([[9, 2, 3, 4], [1, 9, 3, 4], [1, 2, 9, 4], [1, 2, 3, 4]])
    assert accepted(sampled, fed).tolist() == [1, 2, 3, 4]


def test_a_right_proposal_after_a_wrong_one_does_not_count():
    assert accepted(torch.tensor([[5, 2, 3]]), torch.tensor([[7, 1, 2]])).tolist() == [1]


@given(ids=st.lists(st.integers(0, 2), min_size=36, max_size=36), length=st.integers(1, 18))
def test_accepted_ids_equal_those_sampled_one_by_one(ids, length):
    # The model always follows a fixed list: the result is the list for any proposal.
    true, proposal = torch.tensor([0, *ids[:18]]), torch.tensor([0, *ids[18:], *[0] * 18])
    fed = 0
    while fed < 18:
        block, sampled = proposal[fed : fed + length], true[(torch.arange(fed, fed + length) + 1).clamp(max=18)]
        right = int(accepted(sampled[None], block[None])[0])
        proposal[fed + right] = sampled[right - 1]
        fed += right
    assert torch.equal(proposal[:19], true)


@given(st.floats(0, 1), st.integers(1, 100), st.integers(1, 18), st.booleans())
def test_block_length_is_one_of_the_fixed_lengths(agreement, rows, remaining, on_cpu):
    assert block_length(agreement, rows, remaining, on_cpu) in BLOCK_LENGTHS


def test_proposals_that_never_hold_are_not_fed_and_those_that_always_hold_are_fed_together():
    for on_cpu in (False, True):
        assert block_length(0.0, 1, 17, on_cpu) == 1
        assert block_length(1.0, 1, 17, on_cpu) == 18
        assert block_length(1.0, 1, 1, on_cpu) == 1
