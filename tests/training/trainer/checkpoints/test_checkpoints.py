"""Only whole checkpoints are loaded; damaged ones are neither counted nor removed."""

import dataclasses
import json
import shutil
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.common.errors import ConflictError
from training.trainer.checkpoints.files import mark_complete, newest_checkpoint, mark_damaged, staging_folder, prune, publish_checkpoint
from training.trainer.checkpoints.states import COMPLETE_NAME, DAMAGED_NAME, RunProgress, State, check_content, check_checkpoint, tag


def _write(folder, step, marked=True):
    path = folder / tag(step)
    (path / "deep").mkdir(parents=True)
    (path / "model.pt").write_bytes(bytes(step))
    (path / "deep" / "optimizer.pt").write_bytes(bytes(2 * step))
    if marked:
        mark_complete(path, RunProgress(step, 2, [0.5, 1.5], 3, "f" * 16))
    return path


def test_the_newest_whole_checkpoint_is_found_with_its_progress(tmp_path):
    for step in (900, 1000, 20, 123456789):
        _write(tmp_path, step)
    found = newest_checkpoint(tmp_path)
    assert found.folder.name == "step-123456789"
    assert found.progress == RunProgress(123456789, 2, [0.5, 1.5], 3, "f" * 16)


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None


DAMAGES = {
    "no marker": (State.UNFINISHED, "it has no complete.json"),
    "no marker but notes": (State.DAMAGED, "it has no complete.json, but files that no save leaves behind"),
    "empty marker": (State.DAMAGED, "complete.json is invalid"),
    "torn marker": (State.DAMAGED, "complete.json is invalid"),
    "marker of a list": (State.DAMAGED, "complete.json is invalid"),
    "marker of another": (State.DAMAGED, "it belongs to step-00000010"),
    "short file": (State.DAMAGED, "deep/optimizer.pt has 39 bytes of 40"),
    "long file": (State.DAMAGED, "deep/optimizer.pt has 41 bytes of 40"),
    "missing file": (State.DAMAGED, "deep/optimizer.pt is missing"),
    "file in place of a folder": (State.DAMAGED, "deep/optimizer.pt is missing"),
    "a file": (State.DAMAGED, "it is not a folder"),
    "broken link": (State.DAMAGED, "it is a broken link"),
    "unreadable marker": (State.UNREADABLE, "complete.json: Too many levels of symbolic links"),
    "unreadable file": (State.UNREADABLE, "deep/optimizer.pt: Too many levels of symbolic links"),
    "recorded damage": (State.DAMAGED, "damaged.json says: rotten"),
}


def _damage(folder, damage):
    marker, file = folder / COMPLETE_NAME, folder / "deep" / "optimizer.pt"
    if damage == "no marker":
        marker.unlink()
    elif damage == "no marker but notes":
        marker.rename(folder / "notes.txt")
    elif damage == "empty marker":
        marker.write_bytes(b"")
    elif damage == "torn marker":
        marker.write_bytes(marker.read_bytes()[:-20])
    elif damage == "marker of a list":
        marker.write_text("[]")
    elif damage == "marker of another":
        marker.write_bytes((folder.with_name(tag(10)) / COMPLETE_NAME).read_bytes())
    elif damage == "short file":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "long file":
        file.write_bytes(file.read_bytes() + b"x")
    elif damage == "missing file":
        file.unlink()
    elif damage == "file in place of a folder":
        shutil.rmtree(file.parent)
        file.parent.touch()
    elif damage == "a file":
        shutil.rmtree(folder)
        folder.touch()
    elif damage == "broken link":
        shutil.rmtree(folder)
        folder.symlink_to("nowhere")
    elif damage.startswith("unreadable"):
        path = marker if damage.endswith("marker") else file
        path.unlink()
        path.symlink_to(path.name)
    else:
        mark_damaged(dataclasses.replace(check_checkpoint(folder), state=State.DAMAGED, reason="rotten"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_the_real_reason(tmp_path, damage):
    _write(tmp_path, 10)
    newer = _write(tmp_path, 20)
    assert check_checkpoint(newer).state is State.WHOLE
    _damage(newer, damage)
    verdict = check_checkpoint(newer)
    state, reason = DAMAGES[damage]
    assert verdict.state is state and reason in verdict.reason and verdict.checkpoint is None
    assert newest_checkpoint(tmp_path).progress.step == 10


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"no marker"}))
def test_damaged_checkpoints_are_neither_counted_nor_removed(tmp_path, damage):
    for step in (10, 20, 30, 40):
        _write(tmp_path, step)
    for step in (20, 40):
        _damage(tmp_path / tag(step), damage)
    prune(tmp_path, 2, written=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [tag(step) for step in (10, 20, 30, 40)]
    _write(tmp_path, 50)
    prune(tmp_path, 2, written=50)
    assert sorted(path.name for path in tmp_path.iterdir()) == [tag(step) for step in (20, 30, 40, 50)]


@given(
    whole=st.sets(st.integers(1, 12), min_size=1), damaged=st.sets(st.integers(1, 12)), keep=st.integers(1, 3), data=st.data()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_pruning_keeps_the_newest_and_enough_whole_checkpoints(tmp_path, whole, damaged, keep, data):
    written = data.draw(st.sampled_from(sorted(whole)))
    shutil.rmtree(tmp_path)
    for step in whole | damaged:
        _write(tmp_path, step)
    for step in damaged - whole:
        (tmp_path / tag(step) / "model.pt").write_bytes(b"")
    prune(tmp_path, keep, written=written)
    there = {int(path.name[5:]) for path in tmp_path.iterdir()}
    assert written in there and damaged - whole <= there
    assert there & whole == {*sorted(step for step in whole if step <= written)[-keep:], *(s for s in whole if s > written)}


def test_a_new_checkpoint_replaces_a_damaged_one_which_is_moved_aside(tmp_path, caplog):
    for _ in range(2):
        _write(tmp_path, 10)
        _damage(tmp_path / tag(10), "empty marker")
        made = _write(tmp_path, 20)
        mark_complete(made, RunProgress(10, 1, [0.0], 0, "f" * 16))
        made = made.rename(staging_folder(tmp_path / tag(10)))
        publish_checkpoint(made, tmp_path / tag(10))
        assert check_checkpoint(tmp_path / tag(10)).state is State.WHOLE
        shutil.rmtree(tmp_path / tag(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"damaged-{tag(10)}", f"damaged-{tag(10)}-2"]
    assert f"the old one is now {tmp_path}/damaged-{tag(10)}: remove it" in caplog.text


def test_removing_a_linked_checkpoint_removes_only_the_link(tmp_path):
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    _write(elsewhere, 10)
    _write(folder, 20)
    (folder / tag(10)).symlink_to(elsewhere / tag(10))
    assert newest_checkpoint(folder, 10).progress.step == 10
    prune(folder, 1, written=20)
    assert [path.name for path in folder.iterdir()] == [tag(20)]
    assert check_checkpoint(elsewhere / tag(10)).state is State.WHOLE


def test_a_broken_link_to_the_checkpoints_is_an_error(tmp_path):
    (tmp_path / "checkpoints").symlink_to("unmounted")
    with pytest.raises(ConflictError, match=r"checkpoints is a broken link"):
        newest_checkpoint(tmp_path / "checkpoints")


def _archived(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("data/0", content)


def _corrupt(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize("with_digests", [True, False])
def test_a_changed_byte_is_found_by_the_digest_or_by_the_archives_checksum(tmp_path, with_digests):
    path = _write(tmp_path, 10, marked=False)
    _archived(path / "deep" / "optimizer.pt", b"moments" * 20)
    mark_complete(path, RunProgress(10, 1, [0.0], 0, "f" * 16))
    if not with_digests:
        marker = json.loads((path / COMPLETE_NAME).read_bytes())
        del marker["sha256"]
        (path / COMPLETE_NAME).write_text(json.dumps(marker))
    name = "deep/optimizer.pt"
    assert check_content(newest_checkpoint(tmp_path), name) is None
    _corrupt(path / name, b"momentsmoments", b"momentsmomentz")
    fault = check_content(newest_checkpoint(tmp_path), name)
    assert fault.state is State.DAMAGED and fault.folder == path and name in fault.reason
    (path / name).unlink()
    checkpoint = dataclasses.replace(check_checkpoint(_write(tmp_path, 20)).checkpoint, folder=path)
    assert check_content(checkpoint, name).reason == f"{name} is missing"


def test_a_failing_disk_is_not_reported_as_damage(tmp_path):
    path = _write(tmp_path, 10, marked=False)
    (path / "model.pt").write_bytes(b"")
    mark_complete(path, RunProgress(10, 1, [0.0], 0, "f" * 16))
    (path / "model.pt").unlink()
    # Its size is 0, and reading it is an input/output error.
    (path / "model.pt").symlink_to("/proc/self/mem")
    fault = check_content(newest_checkpoint(tmp_path), "model.pt")
    assert (fault.state, fault.reason) == (State.UNREADABLE, "model.pt: Input/output error")


def test_a_checkpoint_marked_as_damaged_stays_damaged(tmp_path):
    _write(tmp_path, 10)
    mark_damaged(dataclasses.replace(check_checkpoint(_write(tmp_path, 20)), state=State.DAMAGED, reason="model.pt is rotten"))
    assert (tmp_path / tag(20) / DAMAGED_NAME).exists()
    assert newest_checkpoint(tmp_path).progress.step == 10
    prune(tmp_path, 1, written=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [tag(10), tag(20)]


def test_the_newest_whole_checkpoints_stay_and_leftovers_are_removed(tmp_path):
    for step in (1, 2, 3, 4):
        _write(tmp_path, step)
    _write(tmp_path, 5, marked=False)
    (tmp_path / f"universal-{tag(3)}").mkdir()
    (tmp_path / "latest").write_text(tag(4))
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", tag(3), tag(4)]


def test_every_mth_checkpoint_and_the_newest_stay(tmp_path):
    for step in (10, 20, 25, 30, 40, 50, 53):
        _write(tmp_path, step)
    prune(tmp_path, 2, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [tag(step) for step in (20, 40, 50, 53)]


def test_the_newest_checkpoint_up_to_a_step_is_found(tmp_path):
    for step in (10, 20, 30):
        _write(tmp_path, step)
    assert [newest_checkpoint(tmp_path, most).progress.step for most in (30, 29, 20)] == [30, 20, 20]
    assert newest_checkpoint(tmp_path, 9) is None


def test_an_interrupted_removal_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    for step in (1, 2):
        _write(tmp_path, step)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1)
    shutil.move(tmp_path / tag(2), tmp_path / "elsewhere")
    assert newest_checkpoint(tmp_path) is None


def test_results_are_read_from_a_checkpoint_and_are_empty_in_old_ones(tmp_path):
    results = {"loss": 1.5, "held_out_loss_by_dataset": {"alpha": 2.0}, "mfu": None}
    path = _write(tmp_path, 10, marked=False)
    mark_complete(path, RunProgress(10, 1, [0.0], 0, "f" * 16, results=results))
    assert newest_checkpoint(tmp_path).progress.results == results
    marker = json.loads((path / COMPLETE_NAME).read_bytes())
    del marker["progress"]["results"]
    (path / COMPLETE_NAME).write_text(json.dumps(marker))
    assert newest_checkpoint(tmp_path).progress.results == {}


def test_a_running_loss_continues_on_the_same_ranks_and_is_split_among_others():
    progress = RunProgress(10, 2, [1.0, 3.0], 4, "f" * 16)
    assert [progress.loss_total(rank, 2) for rank in range(2)] == [1.0, 3.0]
    assert [progress.loss_total(rank, 3) for rank in range(3)] == [2.0, 2.0, 2.0]
