"""A run with damaged checkpoints resumes from the newest whole one or stops; nothing is destroyed."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import tiny_models
import torch
from synthetic_tokens import write_shard
from worlds import run_world

from pipeline.common.errors import ConflictError, ShardError
from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import Recipe
from tokenize_offline.tokenizer import CompressiveVQModel
from training.trainer.checkpoints.files import mark_complete
from training.trainer.checkpoints.states import COMPLETE_NAME, DAMAGED_NAME, State, check_checkpoint, tag
from training.trainer.replay import replay
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain
from training.trainer.verify_resume.compare import differing_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=192)
STEPS = 6
WEIGHTS = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tokenizer, matching token shards, and a run of `STEPS` steps with three checkpoints."""
    root = tmp_path_factory.mktemp("data")
    layout = tiny_models.save_tokenizer(root / "tokenizer")
    write_shard(root / "tokens", positions=20, layout=layout)
    write_shard(root / "tokens", positions=4, layout=layout, split="train_heldout", seed=5)
    pretrain(_recipe(), _options(root, root / "run"))
    return root


@pytest.fixture
def run(data, tmp_path):
    """A copy of the run that a test may damage."""
    return shutil.copytree(data / "run", tmp_path / "run")


def _recipe(steps=STEPS, **training):
    settings = {"global_batch": 4, "precision": "fp32", "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2}
    return Recipe(model=MODEL, training=TrainingConfig(steps=steps, schedule="constant", **{**settings, **training}))


def _options(data, run, **options):
    return RunOptions([str(data / "tokens")], str(run), **options)


def _content(folder):
    """Returns the content of every file and link in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if (path.is_file() or path.is_symlink()) and path.name != ".lock")
    return {
        str(path.relative_to(folder)): "link" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _checkpoint(run, step):
    return run / "checkpoints" / tag(step)


def _empty(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")


def _empty_all_but_marker(folder):
    for path in folder.iterdir():
        if path.name != COMPLETE_NAME:
            path.write_bytes(b"")


def _remove_files(folder):
    for path in folder.iterdir():
        path.unlink()


def _corrupt(folder):
    """Changes bytes in the middle of the weights; the file size stays."""
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
    path.write_bytes(content)


def _corrupt_before_digests(folder):
    """Does the same as `_corrupt` in a checkpoint of a release that wrote no digests."""
    marker = json.loads((folder / COMPLETE_NAME).read_bytes())
    del marker["sha256"], marker["progress"]["results"]
    (folder / COMPLETE_NAME).write_text(json.dumps(marker))
    _corrupt(folder)


def _replace(folder, content):
    """Replaces the weights by another file, with a matching marker."""
    progress = check_checkpoint(folder).checkpoint.progress
    (folder / COMPLETE_NAME).unlink()
    (folder / WEIGHTS).write_bytes(content) if isinstance(content, bytes) else torch.save(content, folder / WEIGHTS)
    mark_complete(folder, progress)


def _replace_by_noise(folder):
    _replace(folder, b"no pickle at all" * 100)


def _loop(folder):
    (folder / COMPLETE_NAME).unlink()
    (folder / COMPLETE_NAME).symlink_to(COMPLETE_NAME)


ALL_DAMAGES = [_empty, _empty_all_but_marker, _remove_files, _corrupt, _corrupt_before_digests, _replace_by_noise, _loop]


@pytest.mark.parametrize("damage", ALL_DAMAGES)
def test_a_run_with_only_damaged_checkpoints_is_an_error_that_names_each(data, run, damage):
    for step in (2, 4, 6):
        damage(_checkpoint(run, step))
    before = _content(run)
    with pytest.raises(ConflictError, match=r"holds a run, but none of its checkpoints can be loaded") as raised:
        pretrain(_recipe(8), _options(data, run))
    for step in (2, 4, 6):
        assert f"{tag(step)} is " in str(raised.value)
    assert "choose another --output" in str(raised.value)
    assert _content(run) == before


@pytest.mark.parametrize("damage", ALL_DAMAGES)
def test_a_damaged_newest_checkpoint_is_skipped_and_the_run_ends_like_an_undisturbed_one(data, run, damage, caplog):
    damage(_checkpoint(run, 6))
    summary = pretrain(_recipe(7, keep_checkpoints=2), _options(data, run))
    assert (summary["steps"], summary["finished"]) == (7, True)
    assert f"{tag(6)} is " in caplog.text and "skipped, resuming from step-00000004." in caplog.text
    states = {path.name: check_checkpoint(path).state for path in (run / "checkpoints").glob("step-*")}
    assert states == {tag(6): State.WHOLE, tag(7): State.WHOLE}
    assert differing_tensors(_checkpoint(run, 6), _checkpoint(data / "run", 6)) == []
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line] == [
        1, 2, 3, 4, 5, 6, 7,
    ]  # fmt: skip


def test_detected_damage_is_recorded_so_that_the_checkpoint_is_never_counted(data, run):
    _corrupt(_checkpoint(run, 6))
    assert check_checkpoint(_checkpoint(run, 6)).state is State.WHOLE
    for steps in (7, 8):
        pretrain(_recipe(steps, keep_checkpoints=2, checkpoint_every=5), _options(data, run))
        assert check_checkpoint(_checkpoint(run, 6)).state is State.DAMAGED and (_checkpoint(run, 6) / DAMAGED_NAME).exists()
    assert sorted(path.name for path in (run / "checkpoints").glob("*step-*")) == [tag(6), tag(7), tag(8)]


def test_nothing_changes_if_the_engine_can_not_load_a_checkpoint(data, run):
    _replace(_checkpoint(run, 6), {"module": {}})
    before = _content(run)
    with pytest.raises(ShardError, match=rf"{tag(6)} can't be loaded \(.*\): move it out of .*checkpoints and run the same"):
        pretrain(_recipe(8), _options(data, run))
    assert _content(run) == before
    shutil.rmtree(_checkpoint(run, 6))
    assert pretrain(_recipe(8), _options(data, run))["finished"]


def test_all_ranks_skip_a_checkpoint_if_one_ranks_part_is_damaged(data, tmp_path):
    options = _options(data, tmp_path / "run")
    run_world(2, pretrain, _recipe(4, zero_stage=1), options)
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    (part,) = _checkpoint(tmp_path / "run", 4).glob("*pp_rank_1_*optim_states.pt")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    summaries = run_world(2, pretrain, _recipe(5, zero_stage=1), options)
    assert summaries[0]["steps"] == 5
    assert differing_tensors(_checkpoint(tmp_path / "run", 4), _checkpoint(tmp_path / "whole", 4)) == []


def test_a_replay_skips_a_damaged_checkpoint_and_changes_nothing(data, run):
    wanted = replay(_recipe(), _options(data, run), 6)
    assert wanted["from_step"] == 4
    _corrupt(_checkpoint(run, 4))
    before = _content(run)
    again = replay(_recipe(), _options(data, run), 6)
    assert again["from_step"] == 2 and again["loss"] == wanted["loss"]
    assert _content(run) == before


def test_a_run_whose_checkpoints_are_gone_is_not_started_again(data, run):
    shutil.rmtree(run / "checkpoints")
    before = _content(run)
    with pytest.raises(ConflictError, match="holds a run, but its checkpoints are gone"):
        pretrain(_recipe(8), _options(data, run))
    assert _content(run) == before
    # What is finished needs none.
    assert pretrain(_recipe(), _options(data, run))["finished"]
    assert _content(run) == before


def test_a_run_killed_in_its_first_save_starts_again(data, run, tmp_path):
    shutil.rmtree(run / "checkpoints")
    for name in ("metrics.json", "model"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    for name in (f".{tag(2)}.partial", tag(2)):
        shutil.copytree(_checkpoint(data / "run", 2), run / "checkpoints" / name)
        (run / "checkpoints" / name / COMPLETE_NAME).unlink()
    assert pretrain(_recipe(), _options(data, run))["finished"]
    assert differing_tensors(_checkpoint(run, 6), _checkpoint(data / "run", 6)) == []
    assert not list((run / "checkpoints").glob(".*.partial"))


@pytest.mark.parametrize("steps", [1, 5, 6])
def test_a_run_with_fewer_steps_than_its_newest_checkpoint_is_finished_and_not_cut(data, run, steps):
    summary = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(summary | {"finished": False}))
    before = _content(run)
    answer = pretrain(_recipe(steps), _options(data, run))
    assert (answer["steps"], answer["finished"]) == (6, True)
    after = _content(run)
    assert after.pop("metrics.json") != before.pop("metrics.json") and after == before
    assert '"finished": true' in (run / "metrics.json").read_text()


def test_a_run_killed_before_its_export_is_exported_even_with_fewer_steps(data, run):
    wanted = _content(run / "model" / "transformer")
    shutil.rmtree(run / "model")
    (run / "metrics.json").unlink()
    kept = {name: digest for name, digest in _content(run).items() if not name.startswith("tensorboard")}
    summary = pretrain(_recipe(3), _options(data, run))
    assert (summary["steps"], summary["finished"]) == (6, True)
    assert _content(run / "model" / "transformer") == wanted
    after = _content(run)
    assert {name: after[name] for name in kept} == kept


def test_a_finished_run_is_exported_again_when_a_tokenizer_is_named(data, run, tmp_path):
    summary = json.loads((run / "metrics.json").read_text())
    summary |= {"output": str(run), "model": str(run / "model")}
    before = _content(run)
    assert not (run / "model" / "tokenizer").exists()
    tiny_models.tokenizer(seed=9).save_pretrained(str(tmp_path / "other"))
    with pytest.raises(ConflictError, match="is not the tokenizer that made the token shards"):
        pretrain(_recipe(), _options(data, run, tokenizer=str(tmp_path / "other")))
    assert _content(run) == before
    again = pretrain(_recipe(), _options(data, run, tokenizer=str(data / "tokenizer")))
    assert again == summary | {"steps_made": 0}
    found = CompressiveVQModel.from_pretrained(str(run / "model" / "tokenizer")).weights_sha256
    assert found == CompressiveVQModel.from_pretrained(str(data / "tokenizer")).weights_sha256
    exported = _content(run)
    assert exported["model/transformer/model.safetensors"] == before["model/transformer/model.safetensors"]
    assert pretrain(_recipe(), _options(data, run, tokenizer=str(data / "tokenizer"))) == summary | {"steps_made": 0}
    assert pretrain(_recipe(), _options(data, run)) == summary | {"steps_made": 0}
    assert _content(run) == exported


def test_a_run_without_checkpoints_can_not_get_a_tokenizer(data, run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConflictError, match="its checkpoints are gone, so its model can't be exported again"):
        pretrain(_recipe(), _options(data, run, tokenizer=str(data / "tokenizer")))


def test_ranks_with_different_shards_of_equal_size_are_refused(data, tmp_path):
    for rank in (0, 1):
        write_shard(tmp_path / f"tokens-{rank}", positions=8, seed=rank)
    with pytest.raises(AssertionError, match="ranks 1 see other token shards"):
        run_world(2, pretrain_on_own_shards, _recipe(2), RunOptions([str(tmp_path / "tokens")], str(tmp_path / "run")))
    assert not (tmp_path / "run" / "run.json").exists()


def pretrain_on_own_shards(recipe, options):
    """Pre-trains with different token shards on every rank, like nodes whose local copies differ."""
    import os

    return pretrain(recipe, dataclasses.replace(options, tokens=[f"{options.tokens[0]}-{os.environ['RANK']}"]))
