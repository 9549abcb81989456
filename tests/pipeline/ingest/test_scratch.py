"""A local run removes its files in TMPDIR, or the next run does; only the log of a failure stays."""

import fcntl
import os
import socket
import tempfile
from pathlib import Path

import pytest

from pipeline.common.errors import SourceError
from pipeline.ingest.runners import beam
from pipeline.ingest.runners.scratch import scratch_folder
from pipeline.ingest.work_unit import UnitJob


@pytest.fixture
def parent(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_all_temporary_files_lie_in_one_folder_that_is_removed_with_the_run(parent):
    with pytest.raises(KeyboardInterrupt), scratch_folder() as folder:
        assert Path(tempfile.mkdtemp()).parent == folder == Path(os.environ["TMPDIR"])
        raise KeyboardInterrupt
    assert (tempfile.gettempdir(), os.environ["TMPDIR"], list(parent.iterdir())) == (str(parent), str(parent), [])


def test_folders_of_killed_runs_are_removed_and_those_of_live_runs_stay(parent):
    with scratch_folder() as living:
        pass
    killed = living.with_name(living.name + "killed")
    for folder in (living, killed):
        folder.mkdir()
        (folder / "file").touch()
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with scratch_folder():
            assert (living / "file").exists() and not killed.exists()
    finally:
        os.close(descriptor)


def test_a_folder_of_another_host_is_kept_because_its_lock_may_be_invisible_here(parent, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        with scratch_folder() as theirs:
            pass
    theirs.mkdir()
    with scratch_folder() as ours:
        assert theirs.exists() and theirs != ours


def test_the_log_of_beam_is_kept_only_on_failure(parent):
    beam.run([], ["--direct_running_mode=in_memory"])
    assert list(parent.iterdir()) == []
    with pytest.raises(SourceError, match="Its log is") as raised:
        beam.run([[UnitJob(unit=None, source=None, folder="")]], ["--direct_running_mode=in_memory"])
    (log,) = parent.iterdir()
    assert "'NoneType' object has no attribute 'shard'" in str(raised.value) and str(raised.value).endswith(str(log))
