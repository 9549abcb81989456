"""The parts of tokenizer training: frames of a clip, codebook use, loss terms."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from pipeline.config.model import TokenizerConfig
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training.tokenizer_training.codebooks import CodebookUse, distant_features
from training.tokenizer_training.data import StepBatches, training_frames
from training.tokenizer_training.losses import tokenizer_losses

CONFIG = TokenizerConfig(context_length=2, segment_length=5, horizon=9)


@given(frames=st.integers(1, 200), stride=st.floats(1, 7), seed=st.integers(0, 1 << 32))
def test_a_training_clip_is_its_context_one_stride_apart_then_sorted_distinct_futures(frames: int, stride: float, seed: int):
    chosen = training_frames(frames, stride, CONFIG, np.random.default_rng(seed))
    assert chosen.shape == (5,)
    assert chosen.min() >= 0
    assert chosen.max() < frames
    assert (np.diff(chosen) >= 0).all()
    if frames > 8 * stride + 1:
        assert (np.diff(chosen) >= 1).all()
        assert abs(chosen[1] - chosen[0] - stride) <= 1


def test_shuffled_clips_hold_the_same_frames_in_any_order():
    drawn = [np.random.default_rng(seed) for seed in range(200)]
    shuffled = np.stack([training_frames(30, 2, CONFIG, generator, shuffled=True) for generator in drawn])
    plain = np.stack([training_frames(30, 2, CONFIG, np.random.default_rng(seed)) for seed in range(200)])
    assert np.array_equal(np.sort(shuffled), plain)
    # The last frame comes first about as often as every other one.
    assert 20 <= (shuffled[:, 0] == plain[:, -1]).sum() <= 60


def test_training_clips_reach_every_start_and_every_horizon_step():
    drawn = np.stack([training_frames(12, 1, CONFIG, np.random.default_rng(seed)) for seed in range(300)])
    assert set(drawn[:, 0]) == {0, 1, 2, 3}
    assert set((drawn[:, 2:] - drawn[:, :1]).ravel()) == set(range(2, 9))


@given(processes=st.sampled_from([1, 2, 4]), first=st.integers(0, 5))
def test_processes_share_the_same_samples_of_each_step(processes: int, first: int):
    ranks = [list(StepBatches(first, 8, 8 // processes, rank, processes)) for rank in range(processes)]
    for offset, parts in enumerate(zip(*ranks, strict=True)):
        assert list(itertools.chain(*parts)) == list(range((first + offset) * 8, (first + offset + 1) * 8))


def test_codebook_use_counts_codes_and_perplexity():
    use = CodebookUse.empty(8, torch.device("cpu"))
    use.add(torch.tensor([[0, 1], [2, 3]]))
    assert use.share_used() == 0.5
    assert use.perplexity() == pytest.approx(4.0)
    assert use.rare().tolist() == [4, 5, 6, 7]


def test_a_code_chosen_far_less_than_others_is_rare():
    use = CodebookUse.empty(4, torch.device("cpu"))
    use.add(torch.tensor([0] * 300 + [1] * 300 + [2] * 300 + [3] * 2))
    assert use.rare().tolist() == [3]


def test_dead_codes_take_features_far_from_all_codes():
    torch.manual_seed(0)
    vectors = torch.cat([torch.zeros(1000, 2), torch.ones(2, 2)])
    distances = torch.cat([torch.full((1000,), 1e-6), torch.ones(2)])
    drawn = distant_features(vectors, distances, 50)
    assert drawn.shape == (50, 2)
    assert drawn.mean() > 0.9


def test_dead_codes_take_any_feature_if_every_feature_has_its_code():
    assert distant_features(torch.ones(3, 2), torch.zeros(3), 2).tolist() == [[1, 1], [1, 1]]


def test_a_perfect_reconstruction_costs_only_its_commitment_terms():
    shape = CompressiveVQConfig(32, 1, (32, 32), 1, 8, 16, 16, max_att_resolution=16)
    frames = torch.rand(2, 3, 3, 32, 32)
    output = CompressiveVQModel(shape)(frames)
    perfect = output._replace(context_reconstruction=frames[:, :1], future_reconstruction=frames[:, 1:])
    terms = tokenizer_losses(frames, perfect, TokenizerConfig(commitment_weight=0.5))
    assert terms["context_l1"] == terms["future_l1"] == 0
    assert terms["future_commitment"].item() == pytest.approx(0.5 * output.future_commitment.item())


def test_balanced_parts_weigh_every_frame_the_same():
    shape = CompressiveVQConfig(32, 1, (32, 32), 1, 8, 16, 16, max_att_resolution=16)
    frames = torch.rand(2, 4, 3, 32, 32)
    output = CompressiveVQModel(shape)(frames)
    terms = tokenizer_losses(frames, output, TokenizerConfig(balanced_loss=True))
    whole = torch.cat([output.context_reconstruction, output.future_reconstruction], dim=1)
    assert (terms["context_l1"] + terms["future_l1"]).item() == pytest.approx((whole - frames).abs().mean().item(), rel=1e-5)


def test_a_recipe_whose_clip_has_no_future_is_refused():
    with pytest.raises(ConfigError, match="segment_length"):
        TokenizerConfig(context_length=4, segment_length=4)
