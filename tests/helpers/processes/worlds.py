"""Runs of several processes without a launcher, warm, so that a run of two processes takes a second.

What launchers do (ranks, signals, restarts) is tested with launchers.
"""

import contextlib
import dataclasses
import os
import pickle
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import warm

_SECONDS = 300
_SECONDS_TO_END = 30


def run_world(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a module's function in so many processes, each with its rank in the environment; returns the results by rank.

    Raises:
        AssertionError: It raised in one of them; the message holds all tracebacks.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ended:
        paths = [Path(folder, str(rank)) for rank in range(processes)]
        started = []
        for path, place in zip(paths, _places(processes), strict=True):
            started.append(warm.Popen((_work, path, function, arguments), env=place))
            ended.callback(started[-1].wait)
            ended.callback(started[-1].kill)
        _wait(started, paths)
        answers = [_answer(process, path) for process, path in zip(started, paths, strict=True)]
    assert all(done for done, _ in answers), "\n".join(str(text) for done, text in answers if not done)
    return [result for _, result in answers]


def run_ranks(processes: int, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in so many processes to the end of all of them.

    Returns the highest exit status, and all that they wrote, by rank.
    """
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as ended, ThreadPoolExecutor(processes) as threads:
        started = [warm.Popen(command, env=place | variables, **streams) for place in _places(processes)]
        for process in started:
            ended.callback(process.kill)
        texts = list(threads.map(lambda process: process.communicate(timeout=_SECONDS), started))
    status = max(abs(process.returncode) for process in started)
    return subprocess.CompletedProcess(command, status, *("".join(written) for written in zip(*texts, strict=True)))


def _places(processes: int) -> list[dict[str, str]]:
    """The environment of each rank, as a launcher sets it."""
    world = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    common = (
        os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in world.items()}
    )
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _wait(started: list[warm.Popen], paths: list[Path]) -> None:
    """Wait until all processes have answered; once one has failed, the others have no more than a moment."""
    deadline = time.monotonic() + _SECONDS
    while any(process.poll() is None for process in started) and time.monotonic() < deadline:
        pairs = zip(started, paths, strict=True)
        if any(process.poll() is not None and not _answer(process, path)[0] for process, path in pairs):
            deadline = min(deadline, time.monotonic() + _SECONDS_TO_END)
        time.sleep(0.01)


def _answer(process: warm.Popen, path: Path) -> tuple[bool, Any]:
    """Whether the function returned, and its result or the reason why not."""
    if path.exists():
        answer: tuple[bool, Any] = pickle.loads(path.read_bytes())
        return answer
    return False, "no answer" if process.poll() is None else "the process died"


def _work(path: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        answer = True, function(*arguments)
    except BaseException:
        answer = False, traceback.format_exc()
    whole = path.with_suffix(".whole")
    whole.write_bytes(pickle.dumps(answer))
    whole.rename(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pretrain_showing_groups(recipe: Any, options: Any) -> list[dict[str, Any]]:
    """Pre-train; returns the hyper-parameters of each parameter group as they were before the first step."""
    from training.distributed import Processes, find_rank_info
    from training.trainer.setup import set_up_run
    from training.trainer.signals import StopRequest
    from training.trainer.trainer import Trainer

    rank_info = find_rank_info(os.environ)
    run = set_up_run(recipe, options, rank_info)
    with StopRequest() as stop, Processes(rank_info) as processes:
        trainer = Trainer(run, processes, stop)
        known = ("lr", "betas", "eps", "weight_decay")
        groups = [{name: group[name] for name in known} for group in trainer.train_step.engine.optimizer.param_groups]
        trainer.train()
        trainer.close()
    return groups


def pretrain_apart(recipe: Any, options: Any) -> Any:
    """Pre-train with a run folder of its own for every rank, as on nodes that don't share a disk."""
    from training.trainer.trainer import pretrain

    return pretrain(recipe, dataclasses.replace(options, output=f"{options.output}-{os.environ['RANK']}"))


def pretrain_on_an_old_cpu(recipe: Any, options: Any, old_rank: int) -> Any:
    """Pre-train where the CPU of one rank has no instructions for half precision."""
    from training.trainer.trainer import pretrain

    if os.environ["RANK"] == str(old_rank):
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    return pretrain(recipe, options)


def pretrain_in_chunks(recipe: Any, options: Any, chunk: int) -> Any:
    """Pre-train with the loss over so many labelled positions at a time."""
    import functools

    from training.model import world_model
    from training.trainer.trainer import pretrain

    world_model.next_token_losses = functools.partial(world_model.next_token_losses, chunk=chunk)
    return pretrain(recipe, options)
