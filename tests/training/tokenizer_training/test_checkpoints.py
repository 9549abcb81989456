"""Checkpoints of tokenizer training: one that is not whole is never begun over, and nothing but old checkpoints is removed."""

import json

import pytest
import torch
from accelerate import Accelerator

from pipeline.common.errors import ConflictError
from training.tokenizer_training.checkpoints import LATEST_NAME, find, load, publish
from training.trainer.checkpoints.states import tag


def written(folder, step):
    (folder / tag(step)).mkdir(parents=True)
    (folder / tag(step) / "model.safetensors").write_bytes(b"weights")
    publish(folder, tag(step), {"step": step, "results": {}})


def test_the_newest_is_found_with_its_state_and_older_ones_go_while_other_folders_stay(tmp_path):
    assert find(tmp_path) is None
    (tmp_path / "mine").mkdir()
    for step in (3, 6):
        written(tmp_path, step)
    folder, state = find(tmp_path)
    assert (folder.name, state["step"]) == (tag(6), 6)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [LATEST_NAME, "mine", tag(6)]


def test_what_a_run_left_that_was_killed_while_it_wrote_its_first_one_is_no_checkpoint(tmp_path):
    (tmp_path / tag(3)).mkdir()
    assert find(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / tag(6) / "model.safetensors").write_bytes(b"we"), "model.safetensors has 2 bytes of 7"),
        (lambda folder: (folder / tag(6) / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / tag(6)).rename(folder / "elsewhere"), "it is gone"),
        (lambda folder: (folder / LATEST_NAME).write_bytes(b'{"name": "step'), "latest.json is damaged"),
        (lambda folder: (folder / LATEST_NAME).write_bytes(b"[]"), "latest.json is damaged"),
        (lambda folder: (folder / LATEST_NAME).unlink(), "has step-00000003, step-00000006 but no latest.json"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_an_error_that_says_so_and_changes_nothing(tmp_path, damage, said):
    written(tmp_path, 6)
    (tmp_path / tag(3)).mkdir()
    damage(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ConflictError, match=said) as raised:
        find(tmp_path)
    assert "choose another --output" in str(raised.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_checkpoint_of_before_sizes_were_written_down_is_found(tmp_path):
    (tmp_path / tag(6)).mkdir()
    (tmp_path / LATEST_NAME).write_text(json.dumps({"name": tag(6), "step": 6}))
    assert find(tmp_path)[0].name == tag(6)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin"])
def test_rotten_bytes_of_the_right_size_are_an_error_that_names_the_checkpoint(tmp_path, name):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(str(tmp_path))
    load(accelerator, tmp_path)
    (tmp_path / name).write_bytes(bytes(len((tmp_path / name).read_bytes())))
    with pytest.raises(ConflictError, match=f"{tmp_path.name} can't be loaded"):
        load(accelerator, tmp_path)
