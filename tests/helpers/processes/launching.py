"""Starts `python -m training` as a user would, alone or under torchrun; for tests of several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import warm

TINY = {
    "--model.layers": 2,
    "--model.heads": 2,
    "--model.width": 32,
    "--model.mlp_width": 64,
    "--model.positions": 64,
    "--training.global_batch": 8,
    "--training.micro_batch": 2,
    "--training.learning_rate": 0.003,
    "--training.warmup_steps": 2,
    "--training.precision": "fp32",
    "--training.log_every": 1,
}


def command(processes: int, tokens: Path, output: Path, **settings: object) -> list[str]:
    """The command line; settings are dotted keys with `__` for the dot."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "training", *training_arguments(tokens, output, **settings)]


def training_arguments(tokens: Path, output: Path, **settings: object) -> list[str]:
    """The arguments of `command`."""
    options = TINY | {"--" + key.replace("__", "."): value for key, value in settings.items()}
    arguments = [word for key, value in options.items() for word in (key, str(value))]
    return ["--tokens", str(tokens), "--output", str(output), *arguments]


def start(words: list[str]) -> "subprocess.Popen[str]":
    """Start a command in a warm process with a group of its own, so that it can be killed as a whole."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return warm.Popen(words, env=environment, text=True, start_new_session=True, **streams)


def finish(process: "subprocess.Popen[str]") -> dict[str, object]:
    """Wait for a command that must succeed; returns the summary that it prints."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-4000:]
    return dict(json.loads(out))


def losses(folder: Path) -> list[tuple[int, float | None, float | None]]:
    """(step, loss, held-out loss) of every line of metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("held_out_loss")) for line in lines]
