"""Only one process holds a lock, on a file or a folder; its end unlocks it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from pipeline.common.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from pipeline.common.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_is_held_until_its_process_is_killed(tmp_path, kind):
    path = tmp_path / kind
    path.touch() if kind == "file" else path.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(BlockingIOError), locked(path, wait=False):
                pass
            holder.send_signal(signal.SIGKILL)
            with locked(path):
                pass
        finally:
            holder.kill()


def test_a_file_system_without_locks_is_an_error_only_where_a_lock_is_required(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    with locked(tmp_path, required=False) as descriptor:
        assert os.fstat(descriptor).st_ino == tmp_path.stat().st_ino
    with pytest.raises(OSError, match="locks"), locked(tmp_path):
        pass


def test_a_missing_file_is_an_error_and_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError), locked(tmp_path / "absent"):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_in_the_block_comes_out_unchanged_and_unlocks(tmp_path):
    with pytest.raises(OSError, match="mine"), locked(tmp_path, required=False):
        raise OSError("mine")
    with locked(tmp_path, wait=False):
        pass
