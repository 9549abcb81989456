"""File system errors on a user's path become one line with path, reason and remedy; bugs keep their traceback."""

import errno
import io
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common import path_errors
from pipeline.common.errors import StorageError
from pipeline.common.path_errors import explain_path_error, explained_write_errors, require_writable
from pipeline.config.cli import run_command


@given(number=st.sampled_from(sorted(errno.errorcode)), named=st.booleans(), folder=st.sampled_from([None, "/data/out"]))
def test_an_error_is_explained_with_path_and_remedy_or_not_at_all(number, named, folder):
    error = OSError(number, os.strerror(number), "/data/in/file") if named else OSError(number, os.strerror(number))
    told = explain_path_error(error, folder)
    if told is not None:
        assert told.startswith("/data/in/file: " if named else "/data/out: ")
        assert os.strerror(number) in told and "\n" not in told and len(told.split(". ")) == 2
    assert (told is not None) >= (named and number in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EIO))


def test_a_missing_file_of_the_project_or_of_python_is_a_bug():
    for path in (Path(path_errors.__file__).with_name("absent.json"), Path(os.__file__).with_name("absent.py")):
        assert explain_path_error(FileNotFoundError(errno.ENOENT, "", str(path))) is None
    assert "Check the path" in str(explain_path_error(FileNotFoundError(errno.ENOENT, "", "/data/absent.json")))


def test_a_command_prints_a_path_error_in_one_line_and_the_traceback_of_a_bug(tmp_path, capsys):
    def body(arguments):
        (tmp_path / "file").write_text("")
        (tmp_path / "file" / "below").write_text("")

    assert run_command(body) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/file/below: Not a directory. ")

    def bug(arguments):
        raise OSError(errno.EINVAL, "Invalid argument")

    with pytest.raises(OSError, match="Invalid argument"):
        run_command(bug)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (RuntimeError("basic_ios::clear: iostream error"), "iostream error"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"), "inline"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/elsewhere"), "/elsewhere: Read-only file system"),
    ],
)
def test_a_write_error_without_a_path_gets_the_folder(tmp_path, error, told):
    with pytest.raises(StorageError) as caught, explained_write_errors(tmp_path):
        raise error
    assert told in str(caught.value) and (str(tmp_path) in str(caught.value) or "/elsewhere" in told)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.EINVAL, "x"), io.UnsupportedOperation("x")])
def test_other_errors_pass_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as caught, explained_write_errors(tmp_path):
        raise error
    assert caught.value is error


def test_checking_an_output_folder_leaves_nothing_behind(tmp_path):
    require_writable(str(tmp_path / "a" / "b"))
    require_writable("memory://anywhere")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    require_writable(str(tmp_path / "a"))
    assert list((tmp_path / "a").iterdir()) == []


def test_an_output_folder_on_a_read_only_disk_is_refused(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        for path in (tmp_path, tmp_path / "new"):
            with pytest.raises(StorageError, match=f"--output {path}: Read-only file system"):
                require_writable(str(path))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
