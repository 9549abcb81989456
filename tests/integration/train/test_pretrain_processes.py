"""Pre-training by several processes on gloo, started like a user starts it."""

import dataclasses
import json

import pytest
import torch
import warm
from launching import command, losses
from safetensors.torch import load_file
from synthetic_tokens import write_shard
from worlds import run_ranks

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import Recipe
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    write_shard(root, "alpha", 0, 40, views=2)
    write_shard(root, "beta", 0, 25, views=2, seed=3)
    write_shard(root, "alpha", 0, 8, split="train_heldout", seed=8)
    return root


def _train_by_two(tokens, output, **settings):
    done = run_ranks(2, command(1, tokens, output, **settings))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_processes_make_the_same_steps_as_one_also_when_they_alternate(tokens, tmp_path):
    recipe = Recipe(
        model=ModelConfig(layers=2, heads=2, width=32, mlp_width=64, positions=64, attention_dropout=0.0),
        training=TrainingConfig(
            global_batch=8,
            micro_batch=2,
            steps=9,
            learning_rate=0.003,
            schedule="constant",
            warmup_steps=2,
            precision="fp32",
            zero_stage=2,
            log_every=1,
        ),
    )
    pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "one")))
    settings = {"model__attention_dropout": 0.0, "training__schedule": "constant", "training__zero_stage": 2}
    two = _train_by_two(tokens, tmp_path / "turns", training__steps=3, **settings)
    assert (two["steps"], two["processes"]) == (3, 2)
    shorter = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=6))
    pretrain(shorter, RunOptions([str(tokens)], str(tmp_path / "turns")))
    _train_by_two(tokens, tmp_path / "turns", training__steps=9, resume="auto", **settings)
    one = {step: loss for step, loss, _ in losses(tmp_path / "one") if loss is not None}
    turns = {step: loss for step, loss, _ in losses(tmp_path / "turns") if loss is not None}
    assert turns == pytest.approx(one, abs=1e-5)
    weights = [load_file(tmp_path / name / "model" / "transformer" / "model.safetensors") for name in ("one", "turns")]
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], atol=2e-5), name


def test_input_errors_end_all_processes_with_the_reason_and_no_traceback(tokens, tmp_path):
    words = command(2, tokens, tmp_path / "run", training__global_batch=9)
    result = warm.run(words, capture_output=True, text=True)
    assert result.returncode != 0
    assert "error: training.global_batch 9 can't be divided by 2 processes" in result.stderr
    assert "pipeline.common.errors" not in result.stderr
    assert not (tmp_path / "run").exists()
