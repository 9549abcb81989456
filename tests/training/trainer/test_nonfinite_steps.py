"""A non-finite step changes nothing on any rank, and its clips are recorded."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_tokens import write_shard
from worlds import run_world

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import Recipe
from training import SampleOrder, TokenStore
from training.trainer.checkpoints.files import tag
from training.trainer.nonfinite import SKIPPED_NAME, NonFiniteError, propagate_nonfinite
from training.trainer.replay import replay
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain
from training.trainer.verify_resume.compare import differing_tensors

BATCH = 4


def _recipe(**training):
    settings = {
        "global_batch": BATCH,
        "micro_batch": 1,
        "steps": 4,
        "learning_rate": 1e-2,
        "schedule": "constant",
        "warmup_steps": 0,
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
        **training,
    }
    model = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64, attention_dropout=0.1, actions=True)
    return Recipe(model=model, training=TrainingConfig(**settings))


def _write_tokens(root, bad_samples):
    """Token shards in which the clips of these sample numbers have non-finite actions."""
    write_shard(root, "alpha", 0, 40, action_dim=2)
    order = SampleOrder(TokenStore.open(root))
    rows = [order[sample][1] for sample in bad_samples]
    write_shard(root, "alpha", 0, 40, action_dim=2, bad_rows=rows)
    return rows


@given(value=st.floats(width=32), weight=st.floats(-10, 10, width=32))
def test_a_finite_loss_is_unchanged_and_a_non_finite_one_has_no_finite_gradient(value, weight):
    parameter = torch.tensor(1.0, requires_grad=True)
    # A gradient of `weight`, whatever the value.
    loss = weight * parameter + torch.tensor(value) - weight
    propagate_nonfinite(loss).backward()
    if math.isfinite(loss.item()):
        assert propagate_nonfinite(loss).item() == loss.item() and parameter.grad.item() == np.float32(weight)
    else:
        assert not math.isfinite(parameter.grad.item())


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [
        (0, "fp32"),
        (1, "bf16"),
        (2, "fp32"),
        (3, "bf16"),
        *(pytest.param(*other, marks=pytest.mark.soak) for other in ((1, "fp32"), (2, "bf16"), (3, "fp32"))),
    ],
)
def test_a_step_with_one_bad_clip_does_not_change_parameters_or_optimizer_on_any_rank(tmp_path, zero_stage, precision):
    # In the second of two micro steps of rank 1 in step 3.
    _write_tokens(tmp_path / "tokens", [2 * BATCH + 3])
    options = RunOptions([str(tmp_path / "tokens")], str(tmp_path / "run"))
    run_world(2, pretrain, _recipe(zero_stage=zero_stage, precision=precision), options)
    checkpoints = [tmp_path / "run" / "checkpoints" / tag(step) for step in (1, 2, 3, 4)]
    assert differing_tensors(checkpoints[0], checkpoints[1])
    assert differing_tensors(checkpoints[1], checkpoints[2]) == []
    assert differing_tensors(checkpoints[2], checkpoints[3])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [math.isfinite(line["loss"] or math.nan) for line in lines if "loss" in line] == [True, True, False, True]


def test_a_skipped_step_is_recorded_with_its_clips_and_replayed_clip_by_clip(tmp_path):
    (row,) = _write_tokens(tmp_path / "tokens", [BATCH + 2])
    options = RunOptions([str(tmp_path / "tokens")], str(tmp_path / "run"))
    pretrain(_recipe(), options)
    entry = json.loads((tmp_path / "run" / SKIPPED_NAME).read_text())
    assert (entry["step"], entry["in_row"]) == (2, 1)
    assert [clip["sample"] for clip in entry["clips"]] == [4, 5, 6, 7]
    assert [clip["loss"] for clip in entry["clips"] if isinstance(clip["loss"], str)] == ["nan"]
    bad = entry["clips"][2]
    assert bad | {"loss": 0} == {
        "sample": 6,
        "dataset": "alpha",
        "episode": f"train-00000-{row:06d}",
        "start": 0,
        "stride": 1.0,
        "view": 0,
        "loss": 0,
    }
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    seen = replay(_recipe(), options, 2)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert (seen["step"], seen["from_step"], seen["applied"]) == (2, 1, False)
    assert [clip["loss"] == "nan" for clip in seen["clips"]] == [False, False, True, False]
    good = replay(_recipe(), options, 4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [good["loss"], good["gradient_norm"]] == [lines[3]["loss"], pytest.approx(lines[3]["gradient_norm"])]


def test_replay_repeats_the_steps_from_the_nearest_checkpoint_on(tmp_path):
    write_shard(tmp_path / "tokens", "alpha", 0, 40, action_dim=2)
    options = RunOptions([str(tmp_path / "tokens")], str(tmp_path / "run"))
    pretrain(_recipe(checkpoint_every=2, steps=4), options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for step, start in ((2, 0), (4, 2)):
        seen = replay(_recipe(checkpoint_every=2, steps=4), options, step)
        assert (seen["from_step"], seen["loss"], seen["applied"]) == (start, lines[step - 1]["loss"], True)


def test_too_many_bad_steps_in_a_row_stop_the_run_also_across_a_resume(tmp_path):
    rows = _write_tokens(tmp_path / "tokens", range(BATCH, 4 * BATCH))
    options = RunOptions([str(tmp_path / "tokens")], str(tmp_path / "run"))
    pretrain(_recipe(nonfinite_limit=3, steps=3), options)
    with pytest.raises(NonFiniteError) as caught:
        pretrain(_recipe(nonfinite_limit=3), RunOptions(options.tokens, options.output))
    message = str(caught.value)
    assert "the loss was not finite in 3 steps in a row, up to step 4" in message
    for row in rows[-BATCH:]:
        assert f"alpha train-00000-{row:06d} from frame 0, view 0" in message
    assert "--replay 4" in message
    lines = [json.loads(line) for line in (tmp_path / "run" / SKIPPED_NAME).read_text().splitlines()]
    assert [(line["step"], line["in_row"]) for line in lines] == [(2, 1), (3, 2), (4, 3)]
