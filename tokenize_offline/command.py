"""The body of `ivideogpt-tokenize`: episode shards and a tokenizer in, token shards out; alone or as a fleet."""

import dataclasses
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch

from pipeline.common.errors import ConfigError, ConflictError, ShardError, require
from pipeline.common.manifests import describe_difference
from pipeline.common.path_errors import require_writable
from pipeline.common.progress import progress_line
from pipeline.config.cli_output import show
from pipeline.config.recipe import Recipe
from pipeline.episodes.frames import require_detail
from tokenize_offline.clips.decode_pool import prepare_readers
from tokenize_offline.clips.sampling import resolve_clips
from tokenize_offline.distributed.env import worker_share
from tokenize_offline.distributed.progress import FleetProgress
from tokenize_offline.distributed.worker_group import Fleet
from tokenize_offline.filtering import count_reasons, excluded_episodes
from tokenize_offline.input_shards import Choice, choose
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


def tokenize(recipe: Recipe, options: Any, resolution: int | None) -> int:
    """The command's body.

    Args:
        recipe: As parsed.
        options: The command's own.
        resolution: `data.resolution` where the user gave it, else None.

    Raises:
        ProjectError: Of all kinds; the message says what to do.
    """
    require(options.readers is None or options.readers >= 1, f"--readers must be at least 1, not {options.readers}")
    # While it starts, the tokenizer is opened and the plan made.
    prepare_readers()
    with Fleet.join() as fleet:
        if not fleet.is_first:
            heard = fleet.hear()
            if heard is None:
                # The first process found that there is nothing to run, and says why.
                return 0
            model, job = open_job(recipe, options, resolution)
            # In the first one's precision, so that processes on other kinds of machines make the same ids.
            job = job.in_precision(heard["precision"])
            require_same_job(job, heard["job"], fleet.rank)
            return _run(fleet, recipe, options, model, job, list(map(ShardTask.from_json, heard["tasks"])), {})
        try:
            require_writable(options.output)
            model, job = open_job(recipe, options, resolution)
            choice = find_tasks(recipe, job, options.shards, options.splits)
            choice.tell(job.clips.held_out)
            found = worker_share(choice.tasks, options.worker_index, options.worker_count, os.environ)
            job = settle_precision(job, found, fleet.device, alone=options.worker_count == 1)
            tasks = work_order(unfinished(job, found), Random())
        except BaseException:
            fleet.tell(None)
            raise
        fleet.tell(
            {"precision": job.layout.precision, "job": job.facts(), "tasks": list(map(dataclasses.asdict, tasks))},
        )
        facts = {"shards_done_before": len(found) - len(tasks), **choice.summary()}
        return _run(fleet, recipe, options, model, job, tasks, facts)


def find_tasks(recipe: Recipe, job: TokenizeJob, shards: Sequence[str], splits: Sequence[str] | None) -> Choice:
    """The episode shards to be tokenized, each with the episodes that the recipe's quality limits leave out.

    Raises:
        ConfigError: See `find_shards`, `choose` and `require_detail`.
        ShardError: See `find_shards`, `choose` and `select`.
    """
    found = find_shards(shards)
    require_splits(found, splits)
    choice = choose(found, recipe, splits)
    for task in choice.tasks:
        require_detail(task.shrunk, job.layout.resolution, task.source)
    if not job.quality.active:
        return choice
    # Duplicates are sought in whole data sets, so that runs over single splits leave out the same.
    folders = dataset_folders([task for task in found if task.dataset not in choice.other_datasets])
    excluded = excluded_episodes(folders, job.quality, job.clips.held_out)
    log.info("%d episodes are beyond the recipe's quality limits: %s", len(excluded), count_reasons(excluded))
    return dataclasses.replace(choice, tasks=exclude_episodes(choice.tasks, excluded))


def open_job(recipe: Recipe, options: Any, resolution: int | None) -> tuple[CompressiveVQModel, TokenizeJob]:
    """Open the tokenizer and settle what the recipe leaves to it.

    Args:
        recipe: The resolved recipe.
        options: The command's own options.
        resolution: `data.resolution` where the user gave it, else None.

    Raises:
        ConfigError: Recipe and tokenizer don't go together.
        SourceError: The tokenizer can't be opened.
    """
    model = CompressiveVQModel.from_pretrained(options.tokenizer_dir)
    if resolution is not None and resolution != model.config.resolution:
        raise ConfigError(
            f"data.resolution is {resolution}, but {options.tokenizer_dir} is a tokenizer for {model.config.resolution} x "
            f"{model.config.resolution} frames: leave data.resolution out, or name a tokenizer of that size"
        )
    assert model.weights_sha256 is not None
    clips = resolve_clips(recipe.clips, model.config.context_length)
    layout = token_layout(model.config, clips, recipe.tokenizer.precision, model.weights_sha256, recipe.quality)
    model.set_context_length(layout.context_length)
    return model, TokenizeJob(clips, layout, options.output, options.overwrite, recipe.quality)


def settle_precision(job: TokenizeJob, tasks: Sequence[ShardTask], device: torch.device, alone: bool) -> TokenizeJob:
    """The job in the precision that suits the device, or in which its token shards were begun; see `choose_precision`.

    Args:
        job: In the precision that the recipe asks for.
        tasks: Its own.
        device: Where the tokenizer runs.
        alone: Whether no other job makes shards of the same output, which would choose for itself.
    """
    key, asked, slow = "tokenizer.precision", job.layout.precision, slow_precisions(device)
    if not alone:
        if asked in slow:
            log.warning("%s: this CPU is slow at %s, which all --worker_count jobs share: set it to fp32 for all", key, asked)
        return job
    known = None if job.overwrite or asked == "fp32" else existing_precision(job, tasks)
    choice = choose_precision(key, asked, slow, known)
    if choice.reason:
        log.warning("%s", choice.reason)
    return job.in_precision(choice.precision)


def require_same_job(job: TokenizeJob, first: Mapping[str, Any], rank: int) -> None:
    """Refuse to make shards otherwise than the first process does.

    Raises:
        ConflictError: This process was given another command, or finds another tokenizer in the same place.
    """
    if difference := describe_difference(dict(first), job.facts()):
        raise ConflictError(
            f"process {rank} on {socket.gethostname()} would make other shards than process 0: {difference}. Give all "
            "processes the same command, and the same files on all machines"
        )


def _run(
    fleet: Fleet,
    recipe: Recipe,
    options: Any,
    model: CompressiveVQModel,
    job: TokenizeJob,
    tasks: list[ShardTask],
    facts: Mapping[str, Any],
) -> int:
    """Tokenize this process's part of `tasks`; `facts` are what the first process's summary says of the plan."""
    readers = fleet.cores if options.readers is None else options.readers
    if fleet.device.type == "cpu":
        # torch counts the machine's cores, a container may have fewer.
        torch.set_num_threads(min(torch.get_num_threads(), fleet.cores))
    limit = BatchSizeCache(job.output, fleet.device, job.layout)
    batch = limit.apply(recipe.tokenizer.clips_per_batch)
    engine = BatchEncoder(model, fleet.device, job.layout.precision, batch, limit.keep)
    planned = sum(map(job.planned_rows, tasks))
    started = time.monotonic()
    with progress_line(planned, "clip", "tokenize", shown=fleet.is_first) as line:
        progress = FleetProgress(fleet, line, len(tasks))
        report = run_worker(fleet.claim(tasks), job, engine, readers, progress)
        progress.send()
        fleet.report(dataclasses.asdict(report))
        if not fleet.is_first:
            return 0
        reports, orphans = fleet.reports(tasks, progress.send)
        total = sum((WorkerReport(**part) for part in reports), WorkerReport())
        lost = fleet.size - len(reports)
        if orphans:
            left = unfinished(job, orphans)
            log.warning("%d processes are gone without a word: making the %d shards that they left", lost, len(left))
            total += run_worker(left, job, engine, readers, progress)
        progress.end()
    show(_summary(fleet, job, total, facts, lost, time.monotonic() - started), options)
    if total.left_out:
        log.warning("%d episodes were left out; the records of their shards say which and why", total.left_out)
    if total.failures:
        raise ShardError(f"{len(total.failures)} shards could not be tokenized: " + "; ".join(total.failures))
    return 0


def _summary(
    fleet: Fleet, job: TokenizeJob, total: WorkerReport, facts: Mapping[str, Any], lost: int, seconds: float
) -> dict[str, Any]:
    return {
        "output": job.output,
        "shards": total.shards,
        **facts,
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
