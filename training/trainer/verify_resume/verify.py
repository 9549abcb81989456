"""`--verify_resume` proves on the user's own recipe, shards and machine that a killed run resumes exactly.

It shortens the recipe to 2 N steps and runs it three times: undisturbed; killed after its checkpoint at step N, then resumed;
and resumed from that step with another number of processes. The second must equal the first bit for bit, in its last checkpoint
and in every line of metrics. The third must see the same samples and make the same losses, within a tolerance.

Each process draws its own dropout, so the third run is compared without dropout, with one more run if the recipe has dropout.
Warm-up is cut to N steps, so that the steps after the kill use the full learning rate: at the tiny rates of a long warm-up, a
lost optimizer state would hardly show.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ConflictError, ProjectError
from pipeline.config.recipe import Recipe
from pipeline.processes.child_processes import Child
from training.data.batch_plan import plan_batches
from training.distributed import find_rank_info
from training.trainer.checkpoints.states import State, check_checkpoint, tag
from training.trainer.logs.throughput import METRICS_NAME
from training.trainer.run import RunOptions
from training.trainer.run_dir import CHECKPOINTS_NAME
from training.trainer.setup import resolve_precision, set_up_run
from training.trainer.verify_resume.compare import differing_steps, differing_tensors, loss_differences, read_lines

# Maximum loss difference between numbers of processes: they sum in another order, in the precision of training.
TOLERANCES = {"bf16": 1e-3, "fp32": 1e-5}
VERDICT_NAME = "verdict.json"
_POLL_SECONDS = 0.005
_TRIES = 3
_NAMED = 5
log = logging.getLogger(__name__)


class RunFailedError(ProjectError):
    """A run of the verification failed."""


def verify_resume(recipe: Recipe, options: RunOptions, steps: int, processes: Sequence[int] | None) -> dict[str, Any]:
    """Kills a run, resume it, and compare it with an undisturbed one.

    Args:
        recipe: Recipe to verify.
        options: Options with the token shards; `output` must be a new folder, which keeps the runs if the check fails.
        steps: N, the number of steps before and after the kill.
        processes: Numbers of processes before and after; None = all GPUs of this machine and half of them, or 2 and 1.

    Returns:
        The verdict: `passed`, and the results of both checks.

    Raises:
        ProjectError: The input is invalid, or a run failed.
    """
    if find_rank_info(os.environ).world_size > 1:
        raise ConfigError("--verify_resume starts its own processes on this machine: start it without a launcher")
    if steps < 1:
        raise ConfigError(f"--verify_resume needs at least 1 step, not {steps}")
    first, other = _numbers_of_processes() if processes is None else processes
    if first == other or min(first, other) < 1:
        raise ConfigError(f"--processes must be two different numbers above 0, not {first} and {other}")
    for number in (first, other):
        plan_batches(recipe.training, number, 0)
    # All runs are on this machine, so they use its precision.
    recipe = resolve_precision(recipe, None, verbose=True)
    verification = _Verification(_shortened(recipe, steps), options, steps)
    verdict = verification.run(first, other)
    storage.write_bytes(str(verification.folder / VERDICT_NAME), json.dumps(verdict, indent=1).encode())
    if verdict["passed"]:
        verification.remove_runs()
    return verdict


def exactness(one: Path, other: Path, last: int) -> dict[str, Any]:
    """Checks whether two runs of `last` steps are equal bit for bit; if not, lists the first steps and tensors that differ."""
    steps = differing_steps(one, other, 1)
    tensors = differing_tensors(one / CHECKPOINTS_NAME / tag(last), other / CHECKPOINTS_NAME / tag(last))
    if not steps and not tensors:
        return {"bit_exact": True}
    return {"bit_exact": False, "differing_steps": steps[:_NAMED], "differing_tensors": tensors[:_NAMED]}


def likeness(one: Path, other: Path, first: int, last: int, tolerance: float) -> dict[str, Any]:
    """Checks whether two runs had the same samples and similar losses in the steps after `first`, up to `last`."""
    differences = loss_differences(one, other, first + 1)
    samples = [[line.get("samples") for step, line in read_lines(run).items() if step > first] for run in (one, other)]
    largest = max(differences.values(), default=None)
    return {
        "same_samples": samples[0] == samples[1],
        "largest_loss_difference": largest,
        "tolerance": tolerance,
        "within_tolerance": len(differences) == last - first and largest is not None and largest <= tolerance,
    }


def _numbers_of_processes() -> tuple[int, int]:
    import torch

    devices = torch.cuda.device_count()
    return (devices, devices // 2) if devices > 1 else (2, 1)


def _shortened(recipe: Recipe, steps: int) -> Recipe:
    training = dataclasses.replace(
        recipe.training,
        steps=2 * steps,
        warmup_steps=min(recipe.training.warmup_steps, steps),
        log_every=1,
        checkpoint_every=steps,
        keep_checkpoints=2,
        keep_every=0,
        wandb_project=None,
    )
    return dataclasses.replace(recipe, training=training)


class _Verification:
    """The runs of one verification, each in its own folder.

    Args:
        recipe: Recipe shortened to 2 N steps.
        options: Options of the runs, without their folders.
        steps: N.
    """

    def __init__(self, recipe: Recipe, options: RunOptions, steps: int) -> None:
        self._options = options
        self._steps = steps
        if not storage.is_local(options.output):
            raise ConfigError(f"--output {options.output} must be a folder on a mounted disk")
        self.folder = storage.local_path(options.output)
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ConflictError(f"{self.folder} is not empty: choose a new --output for the verification")
        # Checks all input before anything starts.
        run = set_up_run(recipe, dataclasses.replace(options, resume="never"), find_rank_info({}))
        # The runs get all keys, also those that come from the initial model.
        self._recipe = dataclasses.replace(recipe, model=run.recipe.model)

    def run(self, first: int, other: int) -> dict[str, Any]:
        """Makes all runs and returns the verdict."""
        recipe, steps, reference = self._recipe, self._steps, "undisturbed"
        self._finish(reference, recipe, first)
        self._kill("killed", recipe, first)
        self._finish("killed", recipe, first)
        same = exactness(self.folder / reference, self.folder / "killed", 2 * steps)
        if recipe.model.attention_dropout:
            reference = "undisturbed-without-dropout"
            recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, attention_dropout=0.0))
            self._finish(reference, recipe, first)
        self._set_back(reference, "elastic")
        self._finish("elastic", recipe, other)
        tolerance = TOLERANCES[recipe.training.precision]
        elastic = likeness(self.folder / reference, self.folder / "elastic", steps, 2 * steps, tolerance)
        return {
            "passed": bool(same["bit_exact"] and elastic["same_samples"] and elastic["within_tolerance"]),
            "steps": steps,
            "same_number": {"processes": first, **same},
            "other_number": {"processes": other, **elastic},
        }

    def remove_runs(self) -> None:
        """Removes the folders of all runs."""
        for folder in self.folder.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder)

    def _finish(self, name: str, recipe: Recipe, processes: int) -> None:
        """Starts or resumes a run and waits until it is finished."""
        log.info("%s: %d processes", name, processes)
        with self._started(name, recipe, processes) as running:
            while any(process.poll() is None for process in running):
                # The others would wait forever for a failed one.
                if any(process.poll() for process in running):
                    break
                time.sleep(_POLL_SECONDS)
            failed = next((rank for rank, process in enumerate(running) if process.poll()), None)
        if failed is not None:
            path = self._log(name, failed)
            reason = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            raise RunFailedError(f"the run {name} failed: {reason[0]} (see {path})")

    def _kill(self, name: str, recipe: Recipe, processes: int) -> None:
        """Starts a run and kills all its processes after the checkpoint at step N, while they make the next steps."""
        folder = self.folder / name
        for _ in range(_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            with self._started(name, recipe, processes) as running:
                while not any(process.poll() is not None for process in running) and not self._is_past_half(folder):
                    time.sleep(_POLL_SECONDS)
            if self._is_past_half(folder) and not _is_whole(folder, 2 * self._steps):
                log.info("%s: killed %d processes after step %d", name, processes, max(read_lines(folder)))
                return
        raise RunFailedError(
            f"the run {name} could not be killed in {_TRIES} tries: it failed or finished first (see {self._log(name, 0)}). "
            "Give --verify_resume more steps if the run is too short."
        )

    def _is_past_half(self, folder: Path) -> bool:
        # The first line after the checkpoint, which the resumed run must drop.
        return _is_whole(folder, self._steps) and (folder / METRICS_NAME).read_bytes().count(b'"loss"') > self._steps

    def _set_back(self, source: str, target: str) -> None:
        """Copies a finished run as it was at step N."""
        ended = tag(2 * self._steps)
        leave_out = shutil.ignore_patterns(ended, "model", "metrics.json", "tensorboard")
        shutil.copytree(self.folder / source, self.folder / target, ignore=leave_out)

    @contextlib.contextmanager
    def _started(self, name: str, recipe: Recipe, processes: int) -> Iterator[list[Child]]:
        """Starts the processes of a run; those still alive at the end of this context are killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / f"{name}.yaml"
        # JSON is YAML.
        config.write_text(json.dumps(recipe.as_dict()), encoding="utf-8")
        words = [sys.executable, "-m", "training", "--config", str(config), "--output", str(self.folder / name)]
        words += ["--resume", "auto", "--tokens", *self._options.tokens]
        rendezvous = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        with contextlib.ExitStack() as stack:
            running = []
            for rank in range(processes):
                ranks = {**rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
                file = stack.enter_context(self._log(name, rank).open("ab"))
                process = Child(words, env={**os.environ, **ranks}, stdout=file, stderr=file)
                stack.callback(process.wait)
                stack.callback(process.kill)
                running.append(process)
            yield running

    def _log(self, name: str, rank: int) -> Path:
        return self.folder / f"{name}-rank{rank}.log"


def _is_whole(folder: Path, step: int) -> bool:
    """Returns whether a run has a whole checkpoint of a step."""
    return check_checkpoint(folder / CHECKPOINTS_NAME / tag(step)).state is State.WHOLE


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
