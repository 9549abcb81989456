import torch
from hypothesis import given
from hypothesis import strategies as st

from training.inference.speculative_decoding import BLOCK_LENGTHS, accepted, block_length


def test_one_id_is_accepted_and_one_more_for_every_right_draft_before_it():
    fed = torch.tensor([[7, 1, 2, 3], [7, 1, 2, 3], [7, 1, 2, 3], [7, 1, 2, 3]])
    drawn = torch.tensor([[9, 2, 3, 4], [1, 9, 3, 4], [1, 2, 9, 4], [1, 2, 3, 4]])
    assert accepted(drawn, fed).tolist() == [1, 2, 3, 4]


def test_right_draft_after_a_wrong_one_does_not_count():
    assert accepted(torch.tensor([[5, 2, 3]]), torch.tensor([[7, 1, 2]])).tolist() == [1]


@given(ids=st.lists(st.integers(0, 2), min_size=36, max_size=36), length=st.integers(1, 18))
def test_ids_accepted_from_a_draft_are_those_drawn_one_by_one(ids, length):
    # A model whose next id is the one of a fixed list: whatever the draft, the outcome is the list.
    true, draft = torch.tensor([0, *ids[:18]]), torch.tensor([0, *ids[18:], *[0] * 18])
    fed = 0
    while fed < 18:
        block, drawn = draft[fed : fed + length], true[(torch.arange(fed, fed + length) + 1).clamp(max=18)]
        right = int(accepted(drawn[None], block[None])[0])
        draft[fed + right] = drawn[right - 1]
        fed += right
    assert torch.equal(draft[:19], true)


@given(st.floats(0, 1), st.integers(1, 100), st.integers(1, 18), st.booleans())
def test_block_is_one_of_few_lengths(agreement, rows, remaining, on_cpu):
    assert block_length(agreement, rows, remaining, on_cpu) in BLOCK_LENGTHS


def test_hopeless_drafts_are_not_fed_and_certain_ones_all_at_once():
    for on_cpu in (False, True):
        assert block_length(0.0, 1, 17, on_cpu) == 1
        assert block_length(1.0, 1, 17, on_cpu) == 18
        assert block_length(1.0, 1, 1, on_cpu) == 1
