"""Training where a disk is full or can't be written, and outputs that can't be: told in a line; the next run completes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm
from synthetic_tokens import write_shard

import pipeline.__main__
import tokenize_offline.__main__
import training.__main__
import training.demo.run
import training.train_tokenizer

# Training alone needs the rights of root to pass over permissions, and to mount.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
MODEL = [
    "--model.layers",
    "1",
    "--model.heads",
    "2",
    "--model.width",
    "64",
    "--model.mlp_width",
    "128",
    "--model.positions",
    "64",
]
SETTINGS = ["--training.global_batch", "2", "--training.steps", "4", "--training.precision", "fp32"]
SETTINGS += ["--training.warmup_steps", "1", "--training.log_every", "1", "--training.checkpoint_every", "1"]
COMMANDS = {
    "ingest": (pipeline.__main__.main, ["--dataset", "made_up", "--source", "absent"]),
    "tokenize": (tokenize_offline.__main__.main, ["--shards", "absent", "--tokenizer", "absent"]),
    "train": (training.__main__.main, ["--tokens", "absent"]),
    "train-tokenizer": (training.train_tokenizer.main, ["--shards", "absent"]),
    "demo": (training.demo.run.main, []),
}


def _train(tokens: Path, output: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a run."""
    given = ["--tokens", str(tokens), "--output", str(output), "--resume", "auto", *MODEL, *SETTINGS]
    done = warm.run([sys.executable, "-m", "training", *given], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    write_shard(root, positions=8)
    return root


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own, mounted anew with other options at every call."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(options: str) -> Path:
        again = "remount," if folder.is_mount() else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)], check=False)
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# Full while the first checkpoint is written, and while a later one is.
@needs_root
@pytest.mark.parametrize("kib", [200, 2000])
def test_a_disk_that_is_full_is_told_in_a_line_and_with_more_room_the_run_goes_on(tokens, disk, kib):
    output = disk(f"size={kib}k") / "run"
    status, _, said = _train(tokens, output)
    assert status == 1 and "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert str(output) in line and "No space left on device" in line and "Free some space" in line
    disk("size=64m")
    status, out, said = _train(tokens, output)
    assert status == 0, said
    assert json.loads(out)["finished"] and (output / "model" / "provenance.json").exists()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


@needs_root
def test_a_disk_that_became_read_only_is_told_in_a_line_and_the_run_goes_on_afterwards(tokens, disk):
    output = disk("size=64m") / "run"
    assert _train(tokens, output)[0] == 0
    (output / "metrics.json").unlink()
    disk("ro")
    status, _, said = _train(tokens, output)
    assert status == 1 and "Traceback" not in said, said
    assert f"error: --output {output}: Read-only file system. Choose another path" in said
    disk("rw")
    assert _train(tokens, output)[0] == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_can_not_be_a_folder_is_told_before_any_work(name, tmp_path, capsys):
    main, given = COMMANDS[name]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path, reason in (
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("link", "File exists"),
        ("circle/below", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
    ):
        assert main([*given, "--output", str(tmp_path / path)]) == 1, path
        said = capsys.readouterr().err
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert str(tmp_path / path) in line and reason in line and "hoose" in line, line
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nothing").exists()
