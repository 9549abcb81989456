"""Runs of one process: exact resume at every ZeRO stage, learning, export, metrics."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from synthetic_tokens import LAYOUT, write_shard
from transformers import AutoModelForCausalLM

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import DataConfig, Recipe
from training import TokenStore
from training.trainer.checkpoints.files import tag
from training.trainer.run import RunOptions
from training.trainer.trainer import Trainer, pretrain
from training.trainer.verify_resume.compare import differing_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    write_shard(root, "alpha", 0, 40, views=2, action_dim=2, has_reward=True)
    write_shard(root, "alpha", 1, 30, views=2, action_dim=2, has_reward=True)
    write_shard(root, "beta", 0, 25, views=2, action_dim=2, has_reward=True, seed=3)
    write_shard(root, "alpha", 0, 9, views=1, action_dim=2, has_reward=True, split="train_heldout", seed=8)
    return root


def _recipe(model=None, **training):
    settings = {
        "global_batch": 8,
        "micro_batch": 4,
        "steps": 6,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "precision": "fp32",
        "log_every": 4,
        "checkpoint_every": 100,
        **training,
    }
    shape = {"layers": 2, "heads": 2, "width": 32, "mlp_width": 64, "positions": 64, **(model or {})}
    return Recipe(
        data=DataConfig(weights={"alpha": 0.6, "beta": 0.4}), model=ModelConfig(**shape), training=TrainingConfig(**settings)
    )


def _losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("held_out_loss"), line.get("gradient_norm")) for line in lines]


def _weights(folder):
    return load_file(folder / "model" / "transformer" / "model.safetensors")


@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")], ids=lambda value: str(value)
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tokens, tmp_path, monkeypatch, zero_stage, precision
):
    recipe = _recipe(zero_stage=zero_stage, precision=precision)
    pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "whole")))
    step = Trainer._step

    def asked_to_stop_in_step_three(self, number, *arguments):
        step(self, number, *arguments)
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", asked_to_stop_in_step_three)
        first = pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "parts")))
    assert (first["steps"], first["finished"]) == (3, False)
    second = pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "parts")))
    assert (second["steps"], second["finished"]) == (6, True)
    assert [step for step, *_ in _losses(tmp_path / "whole")] == [4, 6, 6]
    assert _losses(tmp_path / "parts") == _losses(tmp_path / "whole")
    last = [tmp_path / name / "checkpoints" / tag(6) for name in ("parts", "whole")]
    assert differing_tensors(*last) == []
    parts, whole = _weights(tmp_path / "parts"), _weights(tmp_path / "whole")
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_offloading_to_the_host_trains_to_the_same_losses_and_resumes(tokens, tmp_path, zero_stage):
    recipe = _recipe(zero_stage=zero_stage, steps=4, log_every=1, schedule="constant")
    pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "plain")))
    offload = str(CONFIGS / "deepspeed" / f"zero{zero_stage}-offload.json")
    for steps in (2, 4):
        shorter = _recipe(zero_stage=zero_stage, steps=steps, log_every=1, schedule="constant", deepspeed=offload)
        pretrain(shorter, RunOptions([str(tokens)], str(tmp_path / "offloaded")))
    plain, offloaded = (
        [loss for _, loss, *_ in _losses(tmp_path / name) if loss is not None] for name in ("plain", "offloaded")
    )
    assert offloaded == pytest.approx(plain, abs=1e-5)


def test_a_finished_run_does_not_change(tokens, tmp_path):
    options = RunOptions([str(tokens)], str(tmp_path))
    first = pretrain(_recipe(steps=2), options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert pretrain(_recipe(steps=2), options) == {**first, "steps_made": 0}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_transformers_opens_the_exported_model_and_finds_the_same_held_out_loss(tokens, tmp_path):
    summary = pretrain(_recipe(), RunOptions([str(tokens)], str(tmp_path)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "transformer").eval()
    store = TokenStore.open(tokens, ("train_heldout",))
    ids = torch.from_numpy(store.rows("alpha", np.arange(9)).ids.astype(np.int64))
    labels = ids.clone()
    labels[:, : LAYOUT.prefix_length] = -100
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss.item()
    assert loss == pytest.approx(summary["held_out_loss"], abs=1e-5)


def test_the_model_learns_more_than_token_frequencies(tokens, tmp_path):
    recipe = _recipe(steps=60, global_batch=16, micro_batch=16, log_every=60, model={"attention_dropout": 0.0})
    summary = pretrain(recipe, RunOptions([str(tokens)], str(tmp_path)))
    assert summary["held_out_loss"] < 0.7 * summary["label_entropy"]


def test_a_model_with_actions_and_rewards_trains_on_them(tokens, tmp_path):
    recipe = _recipe(steps=3, model={"actions": True, "rewards": True})
    pretrain(recipe, RunOptions([str(tokens)], str(tmp_path)))
    weights = _weights(tmp_path)
    assert weights["action_linear.weight"].shape == (32, 2) and weights["action_linear.weight"].abs().sum() > 0
    assert weights["reward_linear.weight"].shape == (1, 32)


def test_metrics_count_samples_and_epochs_of_every_data_set(tokens, tmp_path):
    pretrain(_recipe(steps=5, log_every=5, global_batch=16, micro_batch=16), RunOptions([str(tokens)], str(tmp_path)))
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert sum(line["samples"].values()) == 80
    assert line["epochs"] == {"alpha": line["samples"]["alpha"] / 70, "beta": line["samples"]["beta"] / 25}
    assert 0 <= line["data_wait"] <= 1 and line["mfu"] == 0.0 and line["tokens_per_second"] > 0
    assert line["learning_rate"] == pytest.approx(1e-2 * 0.5 * (1 + np.cos(np.pi * 2 / 3)))
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert provenance["layout"]["tokenizer_sha256"] == LAYOUT.tokenizer_sha256
    assert provenance["datasets"]["beta"] == {"positions": 25, "views": 2, "weight": "2/5", "seconds_per_frame": None}
    assert provenance["record"] == [{"first_step": 0, "weights": {"alpha": "3/5", "beta": "2/5"}, "steps": 5}]


def test_only_the_newest_checkpoints_stay(tokens, tmp_path):
    pretrain(_recipe(steps=7, checkpoint_every=2, keep_checkpoints=2), RunOptions([str(tokens)], str(tmp_path)))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert names == ["step-00000006", "step-00000007"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000007"
