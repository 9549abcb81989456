"""What writers that were killed leave in `TMPDIR` is cleared by the next process; what a living one holds is not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import storage

WRITE = "from pipeline import storage; storage.write_bytes('memory://staging/a', b'x')"
HANG = """
import sys
from pipeline import storage
with storage.staged("memory://staging/a") as staging:
    staging.write_bytes(b"a" * 1000)
    print(staging.parent, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("killed", "hours", "stays"), [(True, 2, False), (False, 2, True), (True, 0, True)])
def test_only_what_a_dead_writer_left_long_ago_is_cleared(tmp_path, killed, hours, stays):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HANG], env=environment, **pipes) as writer:
        folder = writer.stdout.readline().strip()
        if killed:
            writer.kill()
            writer.wait()
        then = time.time() - 3600 * hours
        os.utime(folder, (then, then))
        subprocess.run([sys.executable, "-c", WRITE], env=environment, check=True)
        left = [path.name for path in tmp_path.iterdir()]
        assert left == ([Path(folder).name] if stays else [])
        if not killed:
            writer.communicate("")
            assert not list(tmp_path.iterdir())


def test_a_writer_that_ends_well_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage.write_bytes("memory://staging/a", b"x")
    assert storage.read_bytes("memory://staging/a") == b"x" and not list(tmp_path.iterdir())
