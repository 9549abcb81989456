"""A run resumes bit for bit on the same number of processes, and to the same losses on another number."""

import dataclasses
import shutil

import pytest
from synthetic_tokens import write_shard
from worlds import pretrain_apart, pretrain_showing_groups, run_world

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import DataConfig, Recipe
from training.trainer.checkpoints.files import tag
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain
from training.trainer.verify_resume.compare import differing_steps, differing_tensors, loss_differences, read_lines
from training.trainer.verify_resume.verify import TOLERANCES


def _recipe(steps, zero_stage, precision):
    model = ModelConfig(layers=2, heads=2, width=32, mlp_width=64, positions=64, attention_dropout=0.0)
    training = TrainingConfig(
        global_batch=8,
        micro_batch=2,
        steps=2 * steps,
        learning_rate=2e-3,
        warmup_steps=min(10, steps),
        weight_decay=0.1,
        precision=precision,
        zero_stage=zero_stage,
        log_every=1,
        checkpoint_every=steps,
    )
    return Recipe(data=DataConfig(weights={"alpha": 0.7, "beta": 0.3}), model=model, training=training)


def _goes_on(tmp_path, recipe, numbers):
    """Runs two processes undisturbed, then resumes from half of the steps with each number of processes."""
    training = recipe.training
    steps = training.checkpoint_every
    write_shard(tmp_path / "tokens", "alpha", 0, 40, views=2)
    write_shard(tmp_path / "tokens", "beta", 0, 25, views=2, seed=3)
    whole = tmp_path / "whole"
    options = RunOptions([str(tmp_path / "tokens")], str(whole))
    fresh = run_world(2, pretrain_showing_groups, recipe, options)
    for number in numbers:
        part = tmp_path / f"on{number}"
        shutil.copytree(whole, part, ignore=shutil.ignore_patterns(tag(2 * steps), "model", "metrics.json"))
        groups = run_world(number, pretrain_showing_groups, recipe, dataclasses.replace(options, output=str(part)))
        lines = [read_lines(folder) for folder in (whole, part)]
        assert [line["samples"] for line in lines[0].values()] == [line["samples"] for line in lines[1].values()]
        for group in groups:
            assert [values["weight_decay"] for values in group] == [values["weight_decay"] for values in fresh[0]] == [0.1, 0.0]
            assert [values | {"lr": 0} for values in group] == [values | {"lr": 0} for values in fresh[0]]
        if number == 2:
            assert differing_steps(whole, part, 1) == []
            folders = [folder / "checkpoints" / tag(2 * steps) for folder in (whole, part)]
            assert differing_tensors(*folders) == []
        differences = loss_differences(whole, part, steps + 1)
        assert len(differences) == steps
        assert max(differences.values()) <= TOLERANCES[training.precision], differences


def test_two_processes_under_zero_3_resume_as_two_and_as_one(tmp_path):
    _goes_on(tmp_path, _recipe(3, 3, "bf16"), (2, 1))


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_two_processes_resume_as_two_as_one_and_as_four_for_fifty_steps(tmp_path, zero_stage, precision):
    _goes_on(tmp_path, _recipe(50, zero_stage, precision), (2, 1, 4))


def test_processes_with_different_run_folders_are_refused(tmp_path):
    recipe = _recipe(1, 1, "fp32")
    write_shard(tmp_path / "tokens", "alpha", 0, 40)
    write_shard(tmp_path / "tokens", "beta", 0, 40)
    options = RunOptions([str(tmp_path / "tokens")], str(tmp_path / "run"))
    pretrain(recipe, dataclasses.replace(options, output=f"{options.output}-1"))
    longer = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=4))
    with pytest.raises(AssertionError, match=r"ranks 1 see other token shards, another recipe or another run folder"):
        run_world(2, pretrain_apart, longer, options)


def test_differences_are_found(tmp_path):
    write_shard(tmp_path / "tokens", "alpha", 0, 40)
    write_shard(tmp_path / "tokens", "beta", 0, 40)
    recipe = _recipe(1, 1, "fp32")
    other = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, weight_decay=0.9))
    for name, chosen in (("one", recipe), ("other", other)):
        pretrain(chosen, RunOptions([str(tmp_path / "tokens")], str(tmp_path / name)))
    folders = [tmp_path / name / "checkpoints" for name in ("one", "other")]
    assert differing_tensors(*(folder / tag(1) for folder in folders))
    assert differing_tensors(folders[0] / tag(1), folders[0] / tag(1)) == []
    assert differing_tensors(folders[0] / tag(1), folders[0] / tag(2))
    assert differing_steps(tmp_path / "one", tmp_path / "other", 1) == [2]
    assert differing_steps(tmp_path / "one", tmp_path / "other", 3) == []
    assert set(loss_differences(tmp_path / "one", tmp_path / "other", 2)) == {2}
