"""After a full disk, a read-only folder or a changed source, the next run completes or says what to do."""

import functools
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ingest_runs import SHARDS, check_visible, failed, hashes, ingest, obey_permissions, summary, write_source
from rlds_data import NAME

SMALL_FILES = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (500_000, 500_000))
FILE = f"{NAME}-train.tfrecord-00003-of-000{SHARDS}"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("rlds"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("whole")
    assert summary(ingest(source, output))["made"] == SHARDS + 1
    return hashes(output)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Yield a function that mounts a file system of a given size, such as `5m`, or resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: str) -> Path:
        again = ["-o", f"remount,size={size}"] if folder.is_mount() else ["-o", f"size={size}"]
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *again, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# Sizes with room for no shard, for some shards, and for almost all shards.
@needs_root
@pytest.mark.parametrize("mib", [1, 5, 15])
def test_a_full_disk_is_named_and_with_more_room_the_next_run_completes(source, whole, small_disk, mib):
    output = small_disk(f"{mib}m")
    error = failed(ingest(source, output))
    assert "No space left on device" in error and str(output) in error and "same command again" in error
    published = check_visible(output, whole)
    assert published < SHARDS + 1
    small_disk("64m")
    assert summary(ingest(source, output))["made"] == SHARDS + 1 - published
    assert hashes(output) == whole


@needs_root
def test_a_disk_without_any_free_space_is_named(source, whole, small_disk):
    output = small_disk("1m")
    filler = os.open(output / "filler", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        while True:
            os.write(filler, bytes(4096))
    os.close(filler)
    error = failed(ingest(source, output))
    assert "No space left on device" in error and str(output) in error
    (output / "filler").unlink()
    small_disk("64m")
    assert ingest(source, output).returncode == 0
    assert hashes(output) == whole


def test_a_file_size_limit_is_reported_like_a_full_disk(source, whole, tmp_path):
    # A shard of this source takes 1.3 MB.
    error = failed(ingest(source, tmp_path, prepare=SMALL_FILES))
    assert "File too large" in error and "same command again" in error
    assert summary(ingest(source, tmp_path))["made"] == SHARDS + 1
    assert hashes(tmp_path) == whole


def test_a_folder_that_became_read_only_is_named_and_the_next_run_completes(source, whole, tmp_path):
    output = tmp_path / "out"
    output.mkdir(mode=0o555)
    error = failed(ingest(source, output, prepare=obey_permissions))
    assert "Permission denied" in error and str(output) in error and "Give this user permission" in error
    assert hashes(output) == {}
    output.chmod(0o755)
    assert ingest(source, output, "--splits", "val", prepare=obey_permissions).returncode == 0
    # Permission is lost when part of the work is done.
    (output / NAME).chmod(0o555)
    error = failed(ingest(source, output, prepare=obey_permissions))
    assert "Permission denied" in error and str(output / NAME) in error and "give this user permission" in error
    (output / NAME).chmod(0o755)
    assert ingest(source, output, prepare=obey_permissions).returncode == 0
    assert hashes(output) == whole


def test_a_source_file_without_read_permission_is_named(source, tmp_path):
    (source / FILE).chmod(0o000)
    try:
        error = failed(ingest(source, tmp_path, prepare=obey_permissions))
    finally:
        (source / FILE).chmod(0o644)
    assert FILE in error and "Permission denied" in error


def test_a_source_file_that_changed_between_runs_is_named_and_overwrite_accepts_it(source, whole, tmp_path):
    changed = tmp_path / "toy_set" / "0.1.0"
    shutil.copytree(source, changed)
    assert ingest(changed, tmp_path / "out").returncode == 0
    other = source / FILE.replace("00003", "00004")
    shutil.copyfile(other, changed / FILE)
    error = failed(ingest(changed, tmp_path / "out"))
    assert "rewritten in place" in error and FILE in error and "--overwrite" in error
    assert hashes(tmp_path / "out") == whole
    assert summary(ingest(changed, tmp_path / "out", "--overwrite"))["made"] == 1
    assert summary(ingest(changed, tmp_path / "fresh"))["made"] == SHARDS + 1
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh") != whole


def test_a_source_file_that_disappeared_between_runs_is_named(source, whole, tmp_path):
    changed = tmp_path / "toy_set" / "0.1.0"
    shutil.copytree(source, changed)
    assert ingest(changed, tmp_path / "out", "--splits", "val").returncode == 0
    (changed / FILE).unlink()
    done = ingest(changed, tmp_path / "out")
    assert FILE in failed(done)
    shutil.copyfile(source / FILE, changed / FILE)
    assert ingest(changed, tmp_path / "out").returncode == 0
    assert hashes(tmp_path / "out") == whole
