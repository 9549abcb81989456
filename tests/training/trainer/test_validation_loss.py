"""The loss on held-out clips by data set and future frame, the same for any number of processes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from synthetic_tokens import LAYOUT, write_shard
from worlds import run_world

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import DataConfig, Recipe
from training import TokenStore
from training.distributed import Processes, find_rank_info
from training.model.world_model import build_network
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain
from training.trainer.validation_loss import ValidationLoss, mixture_shares, spread_rows

MODEL = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64)
WEIGHTS = {"alpha": Fraction(3, 4), "beta": Fraction(1, 4)}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    for name, seed in (("alpha", 1), ("beta", 2)):
        write_shard(root, name, positions=20, seed=seed)
    write_shard(root, "alpha", positions=9, split="train_heldout", seed=8)
    write_shard(root, "beta", positions=4, split="train_heldout", seed=9)
    return root


@pytest.fixture(scope="module")
def network():
    return build_network(MODEL, LAYOUT, 0, seed=0)


@pytest.fixture(scope="module")
def store(tokens):
    return TokenStore.open(tokens, ("train_heldout",))


def _measure(store, network, limit, micro_batch, weights=WEIGHTS):
    with Processes(find_rank_info({})) as processes:
        return ValidationLoss(store, network, weights, limit, micro_batch).measure(network, processes)


def _losses(network, ids):
    """Returns (N, targets) cross-entropy, computed from full logits."""
    ids = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        scores = network.eval().llm(input_ids=ids).logits[:, LAYOUT.prefix_length - 1 : -1].log_softmax(-1)
    return -scores.gather(-1, ids[:, LAYOUT.prefix_length :, None])[..., 0]


def test_held_out_clips_are_spread_over_a_data_set_in_their_plain_view(tmp_path):
    write_shard(tmp_path, "alpha", 0, 30, views=3)
    store = TokenStore.open(tmp_path)
    assert spread_rows(store, "alpha", 6).tolist() == [0, 15, 30, 45, 60, 75]
    assert spread_rows(store, "alpha", 100).tolist() == list(range(0, 90, 3))


def test_losses_are_means_over_clips_and_over_data_sets_weighted_by_the_mixture(store, network):
    scores = _measure(store, network, 100, 4)
    alpha, beta = (_losses(network, store.rows(name, np.arange(n)).ids) for name, n in (("alpha", 9), ("beta", 4)))
    assert scores.by_dataset == pytest.approx({"alpha": float(alpha.mean()), "beta": float(beta.mean())}, abs=1e-5)
    assert scores.loss == pytest.approx(0.75 * float(alpha.mean()) + 0.25 * float(beta.mean()), abs=1e-5)


def test_the_first_future_frames_start_token_does_not_count_but_later_ones_do(store, network):
    scores = _measure(store, network, 100, 13)
    pair = [_frame_means(network, store, name, clips) for name, clips in (("alpha", 9), ("beta", 4))]
    means = [0.75 * a + 0.25 * b for a, b in zip(*pair, strict=True)]
    assert list(scores.by_frame) == ["1", "2", "3"]
    assert list(scores.by_frame.values()) == pytest.approx(means, abs=1e-5)


def _frame_means(network, store, name, clips):
    losses = _losses(network, store.rows(name, np.arange(clips)).ids)
    assert LAYOUT.tokens_per_future_frame == 5 and losses.shape[1] == 14
    return [float(part.mean()) for part in losses.split([4, 5, 5], dim=1)]


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 64])
def test_the_size_of_a_forward_pass_does_not_change_losses(store, network, micro_batch):
    whole = _measure(store, network, 7, 11)
    parts = _measure(store, network, 7, micro_batch)
    assert parts.by_dataset == pytest.approx(whole.by_dataset, abs=1e-6)
    assert parts.by_frame == pytest.approx(whole.by_frame, abs=1e-6)


def test_data_sets_outside_the_mixture_count_only_if_no_other_has_held_out_clips(store):
    assert mixture_shares(store, {"alpha": Fraction(2), "gamma": Fraction(5)}) == {"alpha": 1.0, "beta": 0.0}
    assert mixture_shares(store, {"gamma": Fraction(1)}) == {"alpha": 0.5, "beta": 0.5}


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_processes_measure_the_same_as_one(tokens, tmp_path, zero_stage):
    training = TrainingConfig(
        global_batch=8, micro_batch=2, steps=1, precision="fp32", zero_stage=zero_stage, learning_rate=1e-9, evaluate_clips=7
    )
    recipe = Recipe(data=DataConfig(weights={"alpha": 0.75, "beta": 0.25}), model=MODEL, training=training)
    keys = ("held_out_loss", "held_out_loss_by_dataset", "held_out_loss_by_frame")
    two = run_world(2, pretrain, recipe, RunOptions([str(tokens)], str(tmp_path / "two")))[0]
    one = pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "one")))
    for key in keys:
        assert two[key] == pytest.approx(one[key], abs=1e-6)
