"""Later writers remove the staged files of killed writers, but not those of living ones."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.common import storage

WRITE = "from pipeline.common import storage; storage.write_bytes('memory://staging/a', b'x')"
HANG = """
import sys
from pipeline.common import storage
with storage.staged("memory://staging/a") as staging:
    staging.write_bytes(b"a" * 1000)
    print(staging.parent, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_only_files_of_dead_writers_are_removed(tmp_path, killed):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HANG], env=environment, **pipes) as writer:
        folder = writer.stdout.readline().strip()
        if killed:
            writer.kill()
            writer.wait()
        subprocess.run([sys.executable, "-c", WRITE], env=environment, check=True)
        assert [str(path) for path in tmp_path.iterdir()] == ([] if killed else [folder])
        if not killed:
            writer.communicate("")
            assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_writers_of_complete_files_can_be_removed(tmp_path):
    hang = HANG.replace("memory://staging/a", str(tmp_path / "a"))
    with subprocess.Popen([sys.executable, "-c", hang], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        writer.stdout.readline()
        storage.remove_leftovers(str(tmp_path))
        assert len(list(tmp_path.rglob("*"))) == 2
        writer.kill()
    (tmp_path / "a").write_bytes(b"complete")
    storage.remove_leftovers(str(tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_successful_writer_leaves_no_staged_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage.write_bytes("memory://staging/a", b"x")
    assert storage.read_bytes("memory://staging/a") == b"x" and not list(tmp_path.iterdir())


def test_a_writer_does_not_disturb_another_writer_of_the_same_file(tmp_path):
    path = tmp_path / "a"
    with storage.staged(str(path)) as slow:
        slow.write_bytes(b"slow")
        storage.write_bytes(str(path), b"quick")
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow" and list(tmp_path.iterdir()) == [path]


def test_many_writers_can_publish_one_file_at_the_same_time(tmp_path):
    path = tmp_path / "a"
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda number: storage.write_bytes(str(path), b"%04d" % number), range(200)):
            assert len(path.read_bytes()) == 4
    assert list(tmp_path.iterdir()) == [path]
