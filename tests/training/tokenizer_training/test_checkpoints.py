"""Checkpoints of version 0.1 resume like today's; an incomplete one is an error, and nothing but old checkpoints is removed."""

import json

import pytest
import torch
from accelerate import Accelerator

from pipeline.common.errors import ConflictError, ShardError
from training.tokenizer_training.checkpoints import POINTER_NAME, mark_earlier
from training.trainer.checkpoints.files import newest_checkpoint
from training.trainer.checkpoints.intact import loading
from training.trainer.checkpoints.states import tag

RUN = "f" * 16


def written(folder, step, **state):
    """A checkpoint as version 0.1 wrote it."""
    (folder / tag(step)).mkdir(parents=True)
    for name in ("model.safetensors", "random_states_0.pkl", "random_states_1.pkl"):
        (folder / tag(step) / name).write_bytes(b"weights")
    files = {path.name: 7 for path in (folder / tag(step)).iterdir()}
    (folder / POINTER_NAME).write_text(json.dumps({"name": tag(step), "files": files, "step": step, "results": {}, **state}))


def test_the_complete_checkpoint_is_marked_with_its_state_and_others_go_while_other_folders_stay(tmp_path):
    mark_earlier(tmp_path / "absent", RUN)
    (tmp_path / "mine").mkdir()
    (tmp_path / tag(3)).mkdir()
    held_out = {"future_psnr": None, "not_finite": {"future_psnr": "nan"}}
    left_out = [{"dataset": "squares", "key": "train-0", "reason": "damaged"}]
    written(tmp_path, 6, skipped_steps=4, skipped_in_row=1, samples_replaced=2, left_out=left_out, results=held_out)
    for _ in range(2):
        mark_earlier(tmp_path, RUN)
        checkpoint = newest_checkpoint(tmp_path)
        progress = checkpoint.progress
        assert (checkpoint.folder.name, progress.step, progress.world_size, progress.run) == (tag(6), 6, 2, RUN)
        assert (progress.skipped, progress.results["skipped_steps"], progress.results["samples_replaced"]) == (1, 4, 2)
        assert progress.results["left_out"] == left_out
        assert progress.results["not_finite"] == {"held_out/future_psnr": "nan"}
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "mine", tag(6)]


def test_a_run_killed_while_it_wrote_its_first_checkpoint_has_none(tmp_path):
    (tmp_path / tag(3)).mkdir()
    mark_earlier(tmp_path, RUN)
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / tag(6) / "model.safetensors").write_bytes(b"we"), "model.safetensors has 2 bytes of 7"),
        (lambda folder: (folder / tag(6) / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / tag(6)).rename(folder / "elsewhere"), "it is gone"),
        (lambda folder: (folder / POINTER_NAME).write_bytes(b'{"name": "step'), "latest.json is damaged"),
        (lambda folder: (folder / POINTER_NAME).write_bytes(b"[]"), "latest.json is damaged"),
        (lambda folder: (folder / POINTER_NAME).unlink(), "has step-00000003, step-00000006 but no latest.json"),
    ],
)
def test_an_incomplete_checkpoint_is_an_error_that_says_so_and_changes_nothing(tmp_path, damage, said):
    written(tmp_path, 6)
    (tmp_path / tag(3)).mkdir()
    damage(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ConflictError, match=said) as raised:
        mark_earlier(tmp_path, RUN)
    assert "choose another --output" in str(raised.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_checkpoint_from_before_sizes_were_written_down_is_marked(tmp_path):
    (tmp_path / tag(6)).mkdir()
    (tmp_path / POINTER_NAME).write_text(json.dumps({"name": tag(6), "step": 6}))
    mark_earlier(tmp_path, RUN)
    assert newest_checkpoint(tmp_path).progress.step == 6


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin"])
def test_a_checkpoint_that_a_library_cannot_load_is_an_error_that_names_it(tmp_path, name):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(str(tmp_path))
    (tmp_path / name).write_bytes(bytes(len((tmp_path / name).read_bytes())))
    with pytest.raises(ShardError, match=f"{tmp_path.name} can't be loaded"), loading(tmp_path):
        accelerator.load_state(str(tmp_path))
