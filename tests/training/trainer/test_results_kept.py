"""A run's results are in its files at the end, whatever they are and wherever the run was interrupted."""

import json
import logging
import math
import os
import signal

import pytest
import torch
import warm
from synthetic_tokens import write_shard

import training.trainer.trainer
from pipeline.common.json_files import parse_json
from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import DataConfig, Recipe
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")
BAD = 2


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Two data sets; a held-out clip and some training clips of beta have non-finite actions."""
    root = tmp_path_factory.mktemp("tokens")
    write_shard(root, "alpha", positions=20, action_dim=2)
    write_shard(root, "beta", positions=20, action_dim=2, seed=1, bad_rows=[7])
    write_shard(root, "alpha", positions=5, split="train_heldout", action_dim=2, seed=2)
    write_shard(root, "beta", positions=4, split="train_heldout", action_dim=2, seed=3, bad_rows=[BAD])
    return root


def _recipe(**training):
    settings = {"global_batch": 2, "steps": 20, "precision": "fp32", "warmup_steps": 1, "log_every": 5, **training}
    model = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64, actions=True)
    return Recipe(data=DataConfig(weights={"alpha": 0.5, "beta": 0.5}), model=model, training=TrainingConfig(**settings))


def _strict(path):
    """Reads a JSON file with a reader that refuses NaN."""
    return parse_json(path.read_bytes())


def test_non_finite_held_out_losses_are_reported_everywhere_and_the_model_is_exported(tokens, tmp_path, caplog):
    options = RunOptions([str(tokens)], str(tmp_path), resume="auto")
    with caplog.at_level(logging.WARNING):
        summary = pretrain(_recipe(), options)
    lines = [parse_json(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held_out = lines[-1]
    expected = {"held_out_loss": "nan", "held_out_loss_by_dataset/beta": "nan"}
    expected |= {f"held_out_loss_by_frame/{frame}": "nan" for frame in held_out["held_out_loss_by_frame"]}
    provenance = _strict(tmp_path / "model" / "provenance.json")
    for results in (held_out, provenance, _strict(tmp_path / "metrics.json"), summary):
        assert results["not_finite"] == expected
        assert results["held_out_loss"] is None and results["held_out_loss_by_dataset"]["beta"] is None
        assert math.isfinite(results["held_out_loss_by_dataset"]["alpha"])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "not finite (nan) on held-out clips" in card and "not measured" not in card
    assert "the held-out loss of beta nan is not finite" in caplog.text
    assert "some of its results are not finite: held_out_loss nan" in caplog.text
    assert pretrain(_recipe(), options) == summary | {"steps_made": 0}


def test_skipped_steps_are_logged_and_counted_in_every_file_also_across_a_resume(tokens, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for steps in (13, 20):
            summary = pretrain(_recipe(steps=steps), RunOptions([str(tokens)], str(tmp_path), resume="auto"))
    skipped = [json.loads(line)["step"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert skipped and min(skipped) <= 13
    for step in skipped:
        assert f"step {step} is skipped: a loss is nan among its clips" in caplog.text
    assert f"{len(skipped)} steps of the run were skipped" in caplog.text
    counts = [parse_json(line).get("skipped_steps") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [count for count in counts if count is not None] == [
        sum(step <= done for step in skipped) for done in (5, 10, 13, 15, 20)
    ]
    assert summary["skipped_steps"] == len(skipped) == _strict(tmp_path / "metrics.json")["skipped_steps"]
    assert _strict(tmp_path / "model" / "provenance.json")["skipped_steps"] == len(skipped)
    assert f"{len(skipped)} steps were skipped" in (tmp_path / "model" / "README.md").read_text()


def _killed_before_the_export(recipe, options):
    """Trains in this process and kills it before the export."""
    torch.set_num_threads(1)
    training.trainer.trainer.export_model = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    pretrain(recipe, options)


def test_a_run_killed_between_its_last_checkpoint_and_the_export_keeps_its_results(tokens, tmp_path):
    recipe = _recipe(steps=6, log_every=4, checkpoint_every=4)
    whole = pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "whole")))
    options = RunOptions([str(tokens)], str(tmp_path / "killed"), resume="auto")
    process = warm.run((_killed_before_the_export, recipe, options))
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "model").exists()
    done = pretrain(recipe, options)
    for key in ("loss", "held_out_loss", "held_out_loss_by_dataset", "held_out_loss_by_frame", "not_finite", "skipped_steps"):
        assert done[key] == whole[key]
    assert done["held_out_loss_by_dataset"]["alpha"] is not None and done["memory_bytes"] > 0
    assert done["tokens_per_second"] == done["ids_per_second"] > 0
    provenance = _strict(tmp_path / "killed" / "model" / "provenance.json")
    assert provenance["held_out_loss_by_dataset"] == whole["held_out_loss_by_dataset"]
    assert "not measured" not in (tmp_path / "killed" / "model" / "README.md").read_text()
