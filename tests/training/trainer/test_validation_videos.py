"""Evaluation during training doesn't change the training, and shows predictions of the current model."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file
from synthetic_tokens import write_shard
from worlds import run_world

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import DataConfig, Recipe
from training import WorldModel
from training.data.loader import Batch
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain
from training.trainer.validation_videos import predict_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of token shards and of their tokenizer."""
    root = tmp_path_factory.mktemp("data")
    layout = tiny_models.save_tokenizer(root / "tokenizer")
    write_shard(root / "tokens", "alpha", positions=20, layout=layout, action_dim=2)
    write_shard(root / "tokens", "beta", positions=10, layout=layout, action_dim=2, seed=3)
    for name, seed in (("alpha", 8), ("beta", 9)):
        write_shard(root / "tokens", name, positions=5, split="train_heldout", layout=layout, action_dim=2, seed=seed)
    return root


def _recipe(**training):
    settings = {
        "global_batch": 4,
        "micro_batch": 2,
        "steps": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 2,
        "evaluate_clips": 3,
        "evaluate_predictions": 3,
        **training,
    }
    model = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=192, actions=True)
    return Recipe(data=DataConfig(weights={"alpha": 0.25, "beta": 0.75}), model=model, training=TrainingConfig(**settings))


def _options(data, output, **more):
    return RunOptions([str(data / "tokens")], str(output), tokenizer=str(data / "tokenizer"), **more)


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _trained(folder):
    """Returns the results of training alone: losses and gradient norms of all steps, and the final weights."""
    steps = [(line["step"], line["loss"], line["gradient_norm"]) for line in _lines(folder) if "loss" in line]
    return steps, load_file(folder / "model" / "transformer" / "model.safetensors")


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_evaluation_does_not_change_the_training_interrupted_or_not(data, tmp_path, zero_stage):
    plain = _recipe(zero_stage=zero_stage, evaluate_every=1000, evaluate_predictions=0)
    often = _recipe(zero_stage=zero_stage, evaluate_every=1)
    half = dataclasses.replace(often.training, steps=2, schedule="constant")
    plain.training.schedule = often.training.schedule = "constant"
    run_world(2, pretrain, plain, _options(data, tmp_path / "plain"))
    run_world(2, pretrain, dataclasses.replace(often, training=half), _options(data, tmp_path / "often"))
    run_world(2, pretrain, often, _options(data, tmp_path / "often"))
    (steps, weights), (evaluated_steps, evaluated) = _trained(tmp_path / "plain"), _trained(tmp_path / "often")
    assert len(steps) == 4 and evaluated_steps == steps
    assert evaluated.keys() == weights.keys() and all(torch.equal(evaluated[name], weights[name]) for name in weights)
    assert [line["step"] for line in _lines(tmp_path / "plain") if "held_out_loss" in line] == [4]
    assert [line["step"] for line in _lines(tmp_path / "often") if "held_out_loss" in line] == [1, 2, 3, 4]
    _require_predictions(tmp_path / "often")


def _require_predictions(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = ["00-beta", "01-alpha", "02-beta"]
    steps = sorted(path.name for path in (folder / "predictions").iterdir())
    assert steps == [f"step-{step:08d}" for step in range(1, 5)]
    assert [path.stem for path in sorted((folder / "predictions" / steps[0]).iterdir())] == names
    with Image.open(folder / "predictions" / steps[-1] / "00-beta.gif") as picture:
        assert picture.n_frames == tiny_models.CLIP_LENGTH
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("predictions/01-alpha")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("held_out_loss_by_dataset/beta")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("held_out_loss_by_frame/3")] == [1, 2, 3, 4]


def test_the_last_videos_show_what_the_exported_model_predicts(data, tmp_path, monkeypatch):
    shown = []

    def remembering(model, batch):
        shown.append((batch, predict_clips(model, batch)))
        return shown[-1][1]

    monkeypatch.setattr("training.trainer.validation_videos.predict_clips", remembering)
    pretrain(_recipe(precision="bf16"), _options(data, tmp_path))
    batch, (truth, predicted) = shown[-1]
    again = predict_clips(WorldModel.from_pretrained(tmp_path / "model", "cpu"), batch)
    assert torch.equal(again[0], truth) and torch.equal(again[1], predicted)
    assert predicted.shape == (3, tiny_models.CLIP_LENGTH, 3, 32, 32)


def test_predictions_start_from_the_clips_own_context_and_follow_its_actions():
    model = tiny_models.world_model(actions=True)
    ids = tiny_models.clip_ids(2)
    actions = torch.from_numpy(np.random.default_rng(0).normal(size=(2, tiny_models.CLIP_LENGTH, tiny_models.ACTION_DIM)))
    batch = Batch(ids, actions.float(), None)
    truth, predicted = predict_clips(model, batch)
    assert torch.equal(truth, model.tokenizer.detokenize(ids).clamp(0, 1))
    assert torch.equal(predicted[:, :2], truth[:, :2]) and not torch.equal(predicted[:, 2:], truth[:, 2:])
    used = actions.clone()
    used[:, 0], used[:, -1] = 9.0, 9.0  # of frames that lead to no predicted one
    assert torch.equal(predict_clips(model, batch._replace(action=used.float()))[1], predicted)
    used[:, 1] = 9.0
    assert not torch.equal(predict_clips(model, batch._replace(action=used.float()))[1], predicted)


def test_without_a_tokenizer_only_losses_are_measured(data, tmp_path):
    pretrain(_recipe(steps=1), RunOptions([str(data / "tokens")], str(tmp_path)))
    assert "held_out_loss" in _lines(tmp_path)[-1]
    assert not (tmp_path / "predictions").exists()
