"""A checkpoint is whole or not there: cut short at any point it is never picked."""

import json
import shutil

import pytest

from training.checkpoints import COMPLETE_NAME, Progress, mark_complete, newest_checkpoint, prune, tag


def _write(folder, step, marked=True):
    path = folder / tag(step)
    (path / "deep").mkdir(parents=True)
    (path / "model.pt").write_bytes(bytes(step))
    (path / "deep" / "optimizer.pt").write_bytes(bytes(2 * step))
    if marked:
        mark_complete(path, Progress(step, 2, [0.5, 1.5], 3, "f" * 16))
    return path


def test_the_newest_whole_checkpoint_is_found_with_what_it_knows(tmp_path):
    for step in (900, 1000, 20, 123456789):
        _write(tmp_path, step)
    found = newest_checkpoint(tmp_path)
    assert found.folder.name == "step-123456789"
    assert found.progress == Progress(123456789, 2, [0.5, 1.5], 3, "f" * 16)


def test_there_is_none_in_an_empty_or_absent_folder(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["no marker", "empty marker", "torn marker", "short file", "long file", "missing file"])
def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path, damage):
    _write(tmp_path, 10)
    newer = _write(tmp_path, 20)
    marker, file = newer / COMPLETE_NAME, newer / "deep" / "optimizer.pt"
    if damage == "no marker":
        marker.unlink()
    elif damage == "empty marker":
        marker.write_bytes(b"")
    elif damage == "torn marker":
        marker.write_bytes(marker.read_bytes()[:-20])
    elif damage == "short file":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "long file":
        file.write_bytes(file.read_bytes() + b"x")
    else:
        file.unlink()
    assert newest_checkpoint(tmp_path).progress.step == 10


def test_the_newest_k_whole_ones_stay_and_remains_of_others_go(tmp_path):
    for step in (1, 2, 3, 4):
        _write(tmp_path, step)
    _write(tmp_path, 5, marked=False)
    (tmp_path / f"universal-{tag(3)}").mkdir()
    (tmp_path / "latest").write_text(tag(4))
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", tag(3), tag(4)]


def test_every_mth_stays_for_good_beside_the_newest(tmp_path):
    for step in (10, 20, 25, 30, 40, 50, 53):
        _write(tmp_path, step)
    prune(tmp_path, 2, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [tag(step) for step in (20, 40, 50, 53)]


def test_the_newest_of_no_more_than_so_many_steps_is_found(tmp_path):
    for step in (10, 20, 30):
        _write(tmp_path, step)
    assert [newest_checkpoint(tmp_path, most).progress.step for most in (30, 29, 20)] == [30, 20, 20]
    assert newest_checkpoint(tmp_path, 9) is None


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    for step in (1, 2):
        _write(tmp_path, step)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1)
    shutil.move(tmp_path / tag(2), tmp_path / "elsewhere")
    assert newest_checkpoint(tmp_path) is None


def test_results_come_back_from_a_checkpoint_and_one_written_without_any_has_none(tmp_path):
    results = {"loss": 1.5, "held_out_loss_by_dataset": {"alpha": 2.0}, "mfu": None}
    path = _write(tmp_path, 10, marked=False)
    mark_complete(path, Progress(10, 1, [0.0], 0, "f" * 16, results=results))
    assert newest_checkpoint(tmp_path).progress.results == results
    marker = json.loads((path / COMPLETE_NAME).read_bytes())
    del marker["progress"]["results"]
    (path / COMPLETE_NAME).write_text(json.dumps(marker))
    assert newest_checkpoint(tmp_path).progress.results == {}


def test_a_running_loss_goes_on_with_the_same_ranks_and_is_shared_out_among_others():
    progress = Progress(10, 2, [1.0, 3.0], 4, "f" * 16)
    assert [progress.loss_total(rank, 2) for rank in range(2)] == [1.0, 3.0]
    assert [progress.loss_total(rank, 3) for rank in range(3)] == [2.0, 2.0, 2.0]
