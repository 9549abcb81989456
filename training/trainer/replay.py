"""`--replay STEP` repeats a step of a run to show what was wrong with it: the loss of the step and of each clip.

Starts from the nearest checkpoint before the step and repeats the steps in between, so the weights are those of the original
step: bit for bit on the same number of processes. It takes the time of these steps. The run folder doesn't change.
"""

import contextlib
import dataclasses
import logging
import os
from typing import Any

import torch

from pipeline.common.errors import ConfigError
from pipeline.common.progress import progress_line
from pipeline.config.recipe import Recipe
from training.distributed import Processes, find_rank_info
from training.trainer.checkpoints.intact import resume_from_intact_checkpoint
from training.trainer.checkpoints.loading import check_pickle
from training.trainer.deepspeed_engine import close_engine
from training.trainer.nonfinite import json_number
from training.trainer.run import Run, RunOptions
from training.trainer.run_dir import lock_run_dir
from training.trainer.setup import set_up_run
from training.trainer.train_step import TrainStep

log = logging.getLogger(__name__)


def replay(recipe: Recipe, options: RunOptions, step: int) -> dict[str, Any] | None:
    """Repeats a step of a run.

    Args:
        recipe: Recipe of the run.
        options: Command-line options, with the run folder and the token shards.
        step: Step counted from 1, as in `metrics.jsonl`.

    Returns:
        On rank 0: the step's loss, its gradient norm before clipping, whether it changes the parameters, and for each clip
        where it was cut and its loss without dropout. None on other ranks.

    Raises:
        ProjectError: The input is invalid; raised before any process group is formed.
    """
    rank_info = find_rank_info(os.environ)
    if not 1 <= step <= recipe.training.steps:
        raise ConfigError(f"--replay {step}: the run's steps are 1 to {recipe.training.steps}")
    options = dataclasses.replace(options, resume="auto", replay=step)
    run = set_up_run(recipe, options, rank_info)
    lock = lock_run_dir(run.folder) if rank_info.rank == 0 else contextlib.nullcontext()
    with lock, Processes(rank_info) as processes:
        run = resume_from_intact_checkpoint(
            run, processes, lambda damaged: set_up_run(recipe, options, rank_info, damaged), check_pickle
        )
        train_step = TrainStep(run, processes, step)
        result = _replay(run, processes, train_step, step - 1)
        close_engine(train_step.engine)
        return result if processes.is_first else None


def _replay(run: Run, processes: Processes, train_step: TrainStep, step: int) -> dict[str, Any]:
    log.info("replaying step %d, starting from step %d", step + 1, run.first_step)
    with (
        contextlib.closing(iter(train_step.loader)) as batches,
        progress_line(step, "step", "steps before", run.first_step, shown=processes.is_first) as line,
    ):
        for before in range(run.first_step, step):
            train_step.make(before, batches)
            line.update(1)
        losses = _clip_losses(run, processes, train_step, step)
        made = train_step.make(step, batches)
    norm = train_step.engine.get_global_grad_norm()
    clips = run.clips(step * run.plan.global_batch, run.plan.global_batch)
    for clip, loss in zip(clips, losses, strict=True):
        clip["loss"] = json_number(loss)
    mean = processes.sum(float(torch.stack(made.losses).double().mean())) / processes.world_size
    return {
        "step": step + 1,
        "from_step": run.first_step,
        "loss": json_number(mean),
        "gradient_norm": None if norm is None else json_number(float(norm)),
        "applied": made.applied,
        "clips": clips,
    }


def _clip_losses(run: Run, processes: Processes, train_step: TrainStep, step: int) -> list[float]:
    """Returns the loss of every clip of a step, in order, with the current weights and without dropout."""
    engine, plan = train_step.engine, run.plan
    losses = []
    engine.eval()
    with torch.no_grad():
        first = plan.first_sample(step, 0)
        for sample in range(first, first + plan.accumulation * plan.micro_batch):
            losses.append(engine(*train_step.reader.read(sample, 1).to(processes.device)).loss.double().cpu())
    engine.train()
    return [float(loss) for loss in torch.cat(processes.gather_tensor(torch.stack(losses)))]
