"""Runs `ivideogpt-tokenize`: one process plans the work, and all processes of the fleet make token shards."""

import dataclasses
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, TypedDict

import torch

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ConflictError, ShardError, require
from pipeline.common.manifests import describe_difference
from pipeline.common.path_errors import require_writable
from pipeline.common.progress import progress_line
from pipeline.config.cli_output import show
from pipeline.config.model import Precision
from pipeline.config.recipe import Recipe
from pipeline.episodes.frames import require_detail
from tokenize_offline.cli import TokenizeOptions
from tokenize_offline.clips.decode_pool import prepare_readers
from tokenize_offline.clips.sampling import resolve_clips
from tokenize_offline.distributed.env import worker_share
from tokenize_offline.distributed.progress import FleetProgress
from tokenize_offline.distributed.worker_group import Fleet
from tokenize_offline.filtering import count_reasons, excluded_episodes
from tokenize_offline.input_shards import InputShards, select_input_shards
from tokenize_offline.precision import choose_precision, slow_precisions
from tokenize_offline.tasks import (
    ShardTask,
    TokenizeJob,
    dataset_folders,
    exclude_episodes,
    existing_precision,
    find_shards,
    require_splits,
    token_layout,
    unfinished,
    work_order,
)
from tokenize_offline.tokenizer import CompressiveVQModel
from tokenize_offline.worker.batch_size_cache import BatchSizeCache
from tokenize_offline.worker.encoder import BatchEncoder
from tokenize_offline.worker.worker import WorkerReport, run_worker

log = logging.getLogger("tokenize_offline")


class FleetPlan(TypedDict):
    """The plan that the first process sends to the others.

    Attributes:
        precision: Precision of the tokenizer.
        job: The first process's `TokenizeJob.to_json`, which the others compare with their own.
        tasks: The tasks as JSON; see `ShardTask.from_json`.
    """

    precision: Precision
    job: dict[str, Any]
    tasks: list[dict[str, Any]]


def tokenize(recipe: Recipe, options: TokenizeOptions, resolution: int | None) -> int:
    """Run the command in this process and return the exit status.

    Args:
        recipe: The parsed recipe.
        options: The command's own options.
        resolution: `data.resolution` if the user gave it, else None.

    Raises:
        ProjectError: Any kind; the message says what to do.
    """
    require(options.readers is None or options.readers >= 1, f"--readers must be at least 1, not {options.readers}")
    # The readers' server starts while the tokenizer is opened and the plan is made.
    prepare_readers()
    with Fleet.join() as fleet:
        if not fleet.is_first:
            received: FleetPlan | None = fleet.receive_plan()
            if received is None:
                # The first process failed and reports the reason.
                return 0
            model, job = open_job(recipe, options, resolution)
            # All processes use the precision of the first one, so that different machines make the same tokens.
            job = job.in_precision(received["precision"])
            require_same_job(job, received["job"], fleet.rank)
            return _run(fleet, recipe, options, model, job, list(map(ShardTask.from_json, received["tasks"])), {})
        try:
            require_writable(options.output)
            model, job = open_job(recipe, options, resolution)
            selected = find_tasks(recipe, job, options.shards, options.splits)
            selected.log_selection(job.clips.held_out)
            found = worker_share(selected.tasks, options.worker_index, options.worker_count, os.environ)
            job = resolve_precision(job, found, fleet.device, only_job=options.worker_count == 1)
            tasks = work_order(unfinished(job, found), Random())
            for folder in {job.folder(task) for task in found}:
                storage.remove_leftovers(folder)
        except BaseException:
            fleet.broadcast_plan(None)
            raise
        plan = FleetPlan(precision=job.layout.precision, job=job.to_json(), tasks=[dataclasses.asdict(task) for task in tasks])
        fleet.broadcast_plan(plan)
        plan_summary = {"shards_done_before": len(found) - len(tasks), **selected.summary()}
        return _run(fleet, recipe, options, model, job, tasks, plan_summary)


def find_tasks(recipe: Recipe, job: TokenizeJob, shards: Sequence[str], splits: Sequence[str] | None) -> InputShards:
    """The episode shards to tokenize, each with the episodes that the recipe's quality limits exclude.

    Raises:
        ConfigError: See `find_shards`, `select_input_shards` and `require_detail`.
        ShardError: See `find_shards`, `select_input_shards` and `excluded_episodes`.
    """
    found = find_shards(shards)
    require_splits(found, splits)
    selected = select_input_shards(found, recipe, splits)
    for task in selected.tasks:
        require_detail(task.shrunk, job.layout.resolution, task.source)
    if not job.quality.active:
        return selected
    # Duplicates are searched in whole data sets, so that a run over one split excludes the same episodes.
    folders = dataset_folders([task for task in found if task.dataset not in selected.other_datasets])
    excluded = excluded_episodes(folders, job.quality, job.clips.held_out)
    log.info("the recipe's quality limits exclude %d episodes: %s", len(excluded), count_reasons(excluded))
    return dataclasses.replace(selected, tasks=exclude_episodes(selected.tasks, excluded))


def open_job(recipe: Recipe, options: TokenizeOptions, resolution: int | None) -> tuple[CompressiveVQModel, TokenizeJob]:
    """Open the tokenizer and fill in what the recipe leaves open.

    Args:
        recipe: The resolved recipe.
        options: The command's own options.
        resolution: `data.resolution` if the user gave it, else None.

    Raises:
        ConfigError: Recipe and tokenizer don't match.
        SourceError: The tokenizer can't be opened.
    """
    model = CompressiveVQModel.from_pretrained(options.tokenizer_dir)
    if resolution is not None and resolution != model.config.resolution:
        raise ConfigError(
            f"data.resolution is {resolution}, but {options.tokenizer_dir} is a tokenizer for {model.config.resolution} x "
            f"{model.config.resolution} frames: omit data.resolution, or use a tokenizer of that resolution"
        )
    assert model.weights_sha256 is not None
    clips = resolve_clips(recipe.clips, model.config.context_length)
    layout = token_layout(model.config, clips, recipe.tokenizer.precision, model.weights_sha256, recipe.quality)
    model.set_context_length(layout.context_length)
    return model, TokenizeJob(clips, layout, options.output, options.overwrite, recipe.quality)


def resolve_precision(job: TokenizeJob, tasks: Sequence[ShardTask], device: torch.device, only_job: bool) -> TokenizeJob:
    """The job in the precision of its existing token shards, or else in one that the device is fast at.

    `choose_precision` decides. Jobs that share an output keep the recipe's precision, because each would choose alone.

    Args:
        job: The job in the precision that the recipe requests.
        tasks: The tasks of this job.
        device: Device of the tokenizer.
        only_job: Whether no other job writes to the same output.
    """
    key, requested, slow = "tokenizer.precision", job.layout.precision, slow_precisions(device)
    if not only_job:
        if requested in slow:
            log.warning("%s: this CPU is slow at %s; set fp32 in all --worker_count jobs", key, requested)
        return job
    existing = None if job.overwrite or requested == "fp32" else existing_precision(job, tasks)
    choice = choose_precision(key, requested, slow, existing)
    if choice.reason:
        log.warning("%s", choice.reason)
    return job.in_precision(choice.precision)


def require_same_job(job: TokenizeJob, first: Mapping[str, Any], rank: int) -> None:
    """Check that this process would make the same shards as the first process.

    Raises:
        ConflictError: This process got another command, or finds another tokenizer under the same path.
    """
    if difference := describe_difference(dict(first), job.to_json()):
        raise ConflictError(
            f"process {rank} on {socket.gethostname()} would make other shards than process 0: {difference}. Give all "
            "processes the same command, and all machines the same files"
        )


def _run(
    fleet: Fleet,
    recipe: Recipe,
    options: TokenizeOptions,
    model: CompressiveVQModel,
    job: TokenizeJob,
    tasks: list[ShardTask],
    plan_summary: Mapping[str, Any],
) -> int:
    """Tokenize the tasks that this process claims; the first process prints `plan_summary` in its summary."""
    readers = fleet.cores if options.readers is None else options.readers
    if fleet.device.type == "cpu":
        # torch counts the machine's cores, but a container may have fewer.
        torch.set_num_threads(min(torch.get_num_threads(), fleet.cores))
    cache = BatchSizeCache(job.output, fleet.device, job.layout)
    batch = cache.limit(recipe.tokenizer.clips_per_batch)
    encoder = BatchEncoder(model, fleet.device, job.layout.precision, batch, cache.save)
    planned = sum(map(job.planned_rows, tasks))
    started = time.monotonic()
    with progress_line(planned, "clip", "tokenize", shown=fleet.is_first) as line:
        progress = FleetProgress(fleet, line, len(tasks))
        report = run_worker(fleet.claim(tasks), job, encoder, readers, progress)
        progress.send()
        fleet.send_result(dataclasses.asdict(report))
        if not fleet.is_first:
            return 0
        reports, orphans = fleet.collect_results(tasks, progress.send)
        total = sum((WorkerReport(**report) for report in reports), WorkerReport())
        lost = fleet.size - len(reports)
        if orphans:
            remaining = unfinished(job, orphans)
            log.warning("%d processes stopped responding: tokenizing the %d shards they left", lost, len(remaining))
            total += run_worker(remaining, job, encoder, readers, progress)
        progress.end()
    show(_summary(fleet, job, total, plan_summary, lost, time.monotonic() - started), options)
    if total.left_out:
        log.warning("%d episodes were left out; the manifests of their shards list each with its reason", total.left_out)
    if total.failures:
        raise ShardError(f"{len(total.failures)} shards could not be tokenized: " + "; ".join(total.failures))
    return 0


def _summary(
    fleet: Fleet, job: TokenizeJob, total: WorkerReport, plan_summary: Mapping[str, Any], lost: int, seconds: float
) -> dict[str, Any]:
    return {
        "output": job.output,
        "shards": total.shards,
        **plan_summary,
        "shards_made_elsewhere": total.skipped_existing,
        "rows": total.rows,
        "held_out_rows": total.held_out_rows,
        "episodes_left_out": total.left_out,
        "ids_per_row": job.layout.sequence_length,
        "seconds": round(seconds, 3),
        "rows_per_second": round(total.rows / seconds, 3) if total.shards else None,
        "share_of_time_waiting": round(total.waited / total.passed, 4) if total.passed else None,
        "processes": fleet.size,
        "processes_lost": lost,
        "device": str(fleet.device),
        "precision": job.layout.precision,
        "clips_per_batch": min(total.batches),
        "tokenizer_sha256": job.layout.tokenizer_sha256,
        "failures": total.failures,
    }
