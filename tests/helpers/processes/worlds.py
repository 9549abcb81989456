"""Runs of several processes without a launcher: forked from one server that has torch and DeepSpeed imported already.

A launcher's processes spend most of a small test on imports; here a run of two processes takes a second. What launchers do
(ranks, signals, restarts) is tested with launchers.
"""

import dataclasses
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

_PRELOADED = ["training.trainer.trainer", "deepspeed", "deepspeed.checkpoint.ds_to_universal", "transformers.models.llama"]
_SECONDS = 300
_PATIENCE = 30


def run_world(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a module's function in so many processes, each with its place in the environment; results by rank.

    Raises:
        AssertionError: It raised in one of them; the message holds all tracebacks.
    """
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    port = _free_port()
    pipes, started = [], []
    for rank in range(processes):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sender, rank, processes, port, function, arguments), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        started.append(process)
    answers = [_answer(pipe) for pipe in pipes]
    for process in started:
        process.join(_PATIENCE if all(done for done, _ in answers) else 0)
        process.kill()
        process.join()
    assert all(done for done, _ in answers), "\n".join(str(text) for done, text in answers if not done)
    return [result for _, result in answers]


def _answer(pipe: Any) -> tuple[bool, Any]:
    if not pipe.poll(_SECONDS):
        return False, "no answer"
    try:
        answer: tuple[bool, Any] = pipe.recv()
    except EOFError:
        return False, "the process died"
    return answer


def _work(sender: Any, rank: int, processes: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        sender.send((True, function(*arguments)))
    except BaseException:
        sender.send((False, traceback.format_exc()))


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
