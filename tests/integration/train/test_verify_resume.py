"""`--verify_resume` really kills a run, and tells an exact resume from an inexact one."""

import dataclasses
import json
import subprocess

import pytest
from launching import command
from synthetic_tokens import write_shard

from pipeline.common.errors import ConfigError, ConflictError
from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import Recipe
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain
from training.trainer.verify_resume.verify import VERDICT_NAME, exactness, likeness, verify_resume

RECIPE = Recipe(
    model=ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64),
    training=TrainingConfig(global_batch=6, precision="fp32"),
)


def _refused(error, message, tmp_path, recipe=RECIPE, steps=5, processes=(2, 1)):
    write_shard(tmp_path / "tokens")
    with pytest.raises(error, match=message):
        verify_resume(recipe, RunOptions([str(tmp_path / "tokens")], str(tmp_path / "out")), steps, processes)
    assert not (tmp_path / "out" / "undisturbed").exists()


def test_invalid_input_is_refused_before_anything_starts(tmp_path, monkeypatch):
    _refused(ConfigError, "two different numbers above 0, not 2 and 2", tmp_path, processes=(2, 2))
    _refused(ConfigError, "global_batch 6 can't be divided by 4 processes", tmp_path, processes=(2, 4))
    _refused(ConfigError, "at least 1 step", tmp_path, steps=0)
    long = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, positions=8))
    _refused(ConfigError, "model.positions is 8", tmp_path, recipe=long)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    _refused(ConflictError, "is not empty: choose a new --output", tmp_path)
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    _refused(ConfigError, "start it without a launcher", tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize(("zero_stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_a_killed_run_passes_at_every_zero_stage(tmp_path, zero_stage, precision):
    write_shard(tmp_path / "tokens", "alpha", 0, 40, views=2)
    settings = {"training__zero_stage": zero_stage, "training__precision": precision, "verify_resume": 6}
    words = command(1, tmp_path / "tokens", tmp_path / "out", **settings)
    done = subprocess.run([*words, "--processes", "2", "1"], capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    verdict = json.loads(done.stdout)
    assert verdict == json.loads((tmp_path / "out" / VERDICT_NAME).read_text())
    assert verdict["passed"] and verdict["same_number"] == {"processes": 2, "bit_exact": True}
    assert verdict["other_number"]["same_samples"] and verdict["other_number"]["largest_loss_difference"] > 0
    assert "killed 2 processes after step" in done.stderr
    assert not (tmp_path / "out" / "killed").exists()


def test_runs_that_differ_fail_with_the_differences(tmp_path):
    write_shard(tmp_path / "tokens", "alpha", 0, 40, views=2)
    model = dataclasses.replace(RECIPE.model, attention_dropout=0.0)
    for name, rate in (("one", 1e-3), ("other", 2e-3)):
        training = TrainingConfig(
            global_batch=6, steps=4, checkpoint_every=2, precision="fp32", warmup_steps=0, log_every=1, learning_rate=rate
        )
        pretrain(Recipe(model=model, training=training), RunOptions([str(tmp_path / "tokens")], str(tmp_path / name)))
    one, other = tmp_path / "one", tmp_path / "other"
    assert exactness(one, one, 4) == {"bit_exact": True}
    found = exactness(one, other, 4)
    assert not found["bit_exact"] and found["differing_steps"][0] == 1 and found["differing_tensors"]
    alike, unlike = likeness(one, one, 2, 4, 1e-5), likeness(one, other, 2, 4, 1e-5)
    assert alike["same_samples"] and alike["within_tolerance"] and alike["largest_loss_difference"] == 0
    assert unlike["same_samples"] and not unlike["within_tolerance"] and unlike["largest_loss_difference"] > 1e-5
    assert not likeness(one, one, 2, 5, 1e-5)["within_tolerance"]
