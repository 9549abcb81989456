"""A run that is killed at any point of a save goes on from what was whole before or after it, to the same end."""

import os
import signal

import pytest
import torch
from synthetic_tokens import write_shard
from worlds import run_world

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import Recipe
from training.trainer.checkpoints import saving
from training.trainer.checkpoints.states import State, check_checkpoint, tag
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain
from training.trainer.verify_resume.compare import differing_tensors

RECIPE = Recipe(
    model=ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64),
    training=TrainingConfig(
        global_batch=4, steps=6, precision="fp32", warmup_steps=1, log_every=1, checkpoint_every=2, keep_checkpoints=1
    ),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Token shards, and an undisturbed run over them; one thread from here on, since so small a model only waits for more."""
    root = tmp_path_factory.mktemp("whole")
    write_shard(root / "tokens", positions=20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pretrain(RECIPE, RunOptions([str(root / "tokens")], str(root / "run")))
    yield root
    torch.set_num_threads(threads)


def killed_in_save(recipe, options, part, after, save):
    """Pre-train, and be killed before or after a part of save number `save`."""
    original, calls = getattr(saving, part), []

    def last(*arguments):
        calls.append(part)
        if len(calls) == save and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)
        if len(calls) == save and after:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(saving, part, last)
    return pretrain(recipe, options)


@pytest.mark.parametrize(
    ("part", "after", "whole_by_then", "save"),
    [
        ("mark_complete", False, False, 1),
        ("mark_complete", True, False, 2),
        ("publish_checkpoint", True, True, 1),
        ("publish_checkpoint", True, True, 2),
        ("prune", True, True, 2),
    ],
)
def test_a_run_killed_within_a_save_has_it_whole_or_not_at_all(whole, tmp_path, part, after, whole_by_then, save):
    options = RunOptions([str(whole / "tokens")], str(tmp_path / "run"))
    with pytest.raises(AssertionError, match="the process died"):
        run_world(1, killed_in_save, RECIPE, options, part, after, save)
    folder = tmp_path / "run" / "checkpoints"
    states = {path.name: check_checkpoint(path).state for path in folder.glob("step-*")}
    steps = [step for step in (2, 4) if step < 2 * save or (step == 2 * save and whole_by_then)]
    if part == "prune":
        steps = steps[-1:]
    assert states == {tag(step): State.WHOLE for step in steps}
    assert pretrain(RECIPE, options)["finished"]
    assert [path.name for path in folder.glob("*step-*")] == [tag(6)]
    assert differing_tensors(folder / tag(6), whole / "run" / "checkpoints" / tag(6)) == []
