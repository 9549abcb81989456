"""A run of two processes that is killed, or asked to stop, and started again equals a run that was left alone."""

import json
import os
import signal
import time

import torch
from launching import command, finish, losses, start
from safetensors.torch import load_file
from synthetic_tokens import write_shard
from worlds import run_ranks

SETTINGS = {"training__steps": 40, "training__checkpoint_every": 5, "training__precision": "bf16", "resume": "auto"}


def _wait_for(path, process):
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_killed_then_asked_to_stop_then_finished_equals_uninterrupted_loss_for_loss(tmp_path):
    tokens = tmp_path / "tokens"
    write_shard(tokens, "alpha", 0, 40, views=2)
    write_shard(tokens, "alpha", 0, 8, split="train_heldout", seed=8)
    whole = run_ranks(2, command(1, tokens, tmp_path / "whole", **SETTINGS))
    assert whole.returncode == 0, whole.stderr

    output = tmp_path / "parts"
    process = start(command(2, tokens, output, **SETTINGS))
    _wait_for(output / "checkpoints" / "step-00000010" / "complete.json", process)
    # Workers live on when their launcher is killed, so they are killed by themselves.
    for victim in (process.pid, *_children(process.pid)):
        os.kill(victim, signal.SIGKILL)
    process.communicate()
    assert not (output / "model").exists()

    process = start(command(2, tokens, output, **SETTINGS))
    _wait_for(output / "checkpoints" / "step-00000020" / "complete.json", process)
    for child in _children(process.pid):
        os.kill(child, signal.SIGTERM)
    stopped = finish(process)
    assert not stopped["finished"] and 20 <= stopped["steps"] < 40

    rest = run_ranks(2, command(1, tokens, output, **SETTINGS))
    assert json.loads(rest.stdout)["finished"], rest.stderr
    assert losses(output) == losses(tmp_path / "whole")
    weights = [load_file(folder / "model" / "transformer" / "model.safetensors") for folder in (output, tmp_path / "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def _children(pid):
    """The processes that a launcher started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
