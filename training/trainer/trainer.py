"""Pre-trains the transformer: the loop over steps, and what happens between two steps.

The loop's only state is the engine's, a running loss and the number of steps just skipped. Logging, evaluation and saving
happen between steps. All ranks know when from the step number; they ask each other only whether to stop.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConflictError
from pipeline.common.manifests import fingerprint
from pipeline.common.measured_json import describe_not_finite, json_values, measured_json
from pipeline.common.path_errors import explained_write_errors, require_writable
from pipeline.common.versions import PROJECT, installed_versions
from pipeline.config.recipe import Recipe
from training.data.loader import Batch
from training.distributed import Processes, find_rank_info
from training.model.files.export import export_model
from training.precision import agree_on_precision
from training.trainer.checkpoints.files import mark_damaged
from training.trainer.checkpoints.intact import resume_from_intact_checkpoint
from training.trainer.checkpoints.loading import check_pickle, write_engine
from training.trainer.checkpoints.saving import save_checkpoint
from training.trainer.checkpoints.states import State
from training.trainer.deepspeed_engine import close_engine, full_weights
from training.trainer.ended_run import finished_summary, report_finished, restored_results
from training.trainer.logs.reporter import Reporter
from training.trainer.logs.throughput import device_name, target_entropy, truncate_logs
from training.trainer.nonfinite import SkippedSteps, skipped_before, skipped_clips
from training.trainer.run import Run, RunOptions
from training.trainer.run_dir import SUMMARY_NAME, lock_run_dir
from training.trainer.setup import set_up_run
from training.trainer.signals import StopRequest
from training.trainer.train_step import TrainStep
from training.trainer.validation_loss import ValidationLoss
from training.trainer.validation_videos import ValidationVideos

_ENTROPY_CLIPS = 2048
_SOFTWARE = (PROJECT, "torch", "deepspeed", "transformers")
log = logging.getLogger(__name__)


def pretrain(recipe: Recipe, options: RunOptions) -> dict[str, Any] | None:
    """Trains a model, or resumes its training, and exports it.

    Returns:
        A summary of the run on rank 0, with the number of steps made now; None on other ranks.

    Raises:
        ProjectError: The input is invalid; raised before any process group is formed, unless only all processes together can
            tell. Or training can't continue.
    """
    rank_info = find_rank_info(os.environ)
    if rank_info.rank == 0:
        require_writable(options.output)
    run = set_up_run(recipe, options, rank_info)
    lock = lock_run_dir(run.folder) if rank_info.rank == 0 else contextlib.nullcontext()
    if (summary := finished_summary(run)) is not None:
        with lock:
            return {**report_finished(run, summary), "steps_made": 0} if rank_info.rank == 0 else None
    with lock, StopRequest() as stop, Processes(rank_info) as processes:
        if agree_on_precision("training.precision", run.recipe.training.precision, processes) != run.recipe.training.precision:
            run = run.in_fp32()
        _require_agreement(run, processes)
        run = resume_from_intact_checkpoint(
            run, processes, lambda damaged: set_up_run(recipe, options, rank_info, damaged), check_pickle
        )
        if run.damaged:
            # They chose another checkpoint.
            _require_agreement(run, processes)
        with explained_write_errors(run.folder):
            trainer = Trainer(run, processes, stop)
            result = trainer.train()
        trainer.close()
        return None if result is None else {**result, "steps_made": result["steps"] - run.first_step}


def _require_agreement(run: Run, processes: Processes) -> None:
    """Refuses processes that see other shards or another run folder than rank 0."""
    seen = fingerprint({"identity": run.identity, "record": run.history.as_json(), "first_step": run.first_step})
    if ranks := processes.ranks_that_differ(seen):
        raise ConflictError(
            f"ranks {', '.join(map(str, ranks))} see other token shards, another recipe or another run folder than rank 0: "
            "--config, --tokens and --output must be the same on all nodes"
        )


class Trainer:
    """Trains one run in one of its processes.

    Args:
        run: The run.
        processes: All processes of the run.
        stop: Request to stop early.

    Attributes:
        train_step: Makes the steps.
    """

    def __init__(self, run: Run, processes: Processes, stop: StopRequest) -> None:
        self._run = run
        self._training = run.recipe.training
        self._processes = processes
        self._stop = stop
        self.train_step = TrainStep(run, processes, self._training.steps)
        # The run folder may change only after the checkpoint is loaded.
        if processes.is_first and not run.is_finished:
            for result in run.damaged:
                if result.state is State.DAMAGED:
                    mark_damaged(result)
            run.write_identity()
            truncate_logs(run.folder, run.first_step)
        if run.checkpoint is not None:
            log.info("resuming from step %d", run.first_step)
        self._validation_loss, self._validation_videos = self._evaluations()
        self._skipped = SkippedSteps(
            run.folder,
            processes.is_first,
            self._training.nonfinite_limit,
            in_row=run.checkpoint.progress.skipped if run.checkpoint else 0,
            total=skipped_before(run.folder) if processes.is_first else 0,
        )

    def train(self) -> dict[str, Any] | None:
        """Makes all steps, or as many as until a stop request; returns the summary on rank 0."""
        training, done = self._training, self._run.first_step
        if self._run.is_finished:
            return self._finish(done, restored_results(self._run, Reporter(self._run, self._processes).results))
        with Reporter(self._run, self._processes) as reporter, contextlib.closing(iter(self.train_step.loader)) as batches:
            while done < training.steps:
                self._step(done, batches, reporter)
                done += 1
                last = done == training.steps
                if last or done % training.log_every == 0:
                    norm = self.train_step.engine.get_global_grad_norm()
                    reporter.write_line(done, self._run.learning_rate(done - 1), norm, self._skipped.total)
                if last or done % training.evaluate_every == 0:
                    with reporter.paused():
                        self._evaluate(done, reporter)
                stopping = self._processes.any(self._stop.requested)
                if last or stopping or done % training.checkpoint_every == 0:
                    with reporter.paused(), explained_write_errors(self._run.checkpoints):
                        save_checkpoint(
                            self._run.checkpoints,
                            functools.partial(write_engine, self.train_step.engine),
                            self._processes,
                            reporter.progress(done, self._skipped.in_row),
                            training.keep_checkpoints,
                            training.keep_every,
                        )
                if stopping:
                    log.info("stopped after step %d; run the same command again to resume", done)
                    break
        return self._finish(done, reporter.results)

    def close(self) -> None:
        """Releases the engine and the process group."""
        close_engine(self.train_step.engine)

    def _step(self, step: int, batches: Iterator[Batch], reporter: Reporter) -> None:
        """Makes one optimizer step and count it."""
        result = self.train_step.make(step, batches)
        reporter.add_step(result.token_losses, result.applied, result.waited)
        describe = functools.partial(skipped_clips, self._run, self._processes, step, result.losses)
        self._skipped.count(step, result.applied, describe)

    def _evaluations(self) -> tuple[ValidationLoss | None, ValidationVideos | None]:
        """Returns what to measure on held-out clips, if there are any."""
        run, training = self._run, self._training
        if run.validation is None:
            return None, None
        loss = ValidationLoss(run.validation, run.network, run.order.weights, training.evaluate_clips, run.plan.micro_batch)
        if run.tokenizer is None or not training.evaluate_predictions:
            return loss, None
        return loss, ValidationVideos(run, self._processes, training.evaluate_predictions)

    def _evaluate(self, done: int, reporter: Reporter) -> None:
        """Measures the loss on held-out clips and predict some of them. Call it on all ranks."""
        if self._validation_loss is not None:
            reporter.write_validation(done, self._validation_loss.measure(self.train_step.engine, self._processes))
        if self._validation_videos is not None:
            reporter.log_videos(done, self._validation_videos.write(self.train_step.engine, done))

    def _finish(self, done: int, results: dict[str, Any]) -> dict[str, Any] | None:
        """Exports the model and writes the summary. Call it on all ranks."""
        run = self._run
        weights = full_weights(self.train_step.engine, run.network)
        if weights is None:
            self._processes.barrier()
            return None
        clips = min(_ENTROPY_CLIPS, sum(run.store.positions(name) for name in run.store.datasets))
        summary = {
            "steps": done,
            **results,
            "skipped_steps": self._skipped.total,
            "label_entropy": target_entropy(self.train_step.reader.read(0, clips).ids.numpy(), run.store.layout),
            "samples": run.order.drawn(done * run.plan.global_batch),
            "processes": run.plan.world_size,
            "device": str(self._processes.device.type),
            "hardware": device_name(self._processes.device),
        }
        seconds = run.store.seconds_per_frame
        datasets = {
            name: {**size, "weight": str(run.order.weights.get(name, 0)), "seconds_per_frame": seconds[name]}
            for name, size in run.identity["datasets"].items()
        }
        provenance = {
            **summary,
            "layout": asdict(run.store.layout),
            "datasets": datasets,
            "record": run.history.as_json(),
            "ids": done * run.plan.global_batch * run.store.layout.sequence_length,
            "parameters": sum(tensor.numel() for tensor in weights.values()),
            "software": installed_versions(_SOFTWARE),
        }
        export_model(run.model, run.network, weights, run.tokenizer, run.recipe, json_values(provenance))
        if bad := describe_not_finite(summary):
            log.warning("%s is exported, but some of its results are not finite: %s", run.model, bad)
        summary |= {"output": str(run.folder), "model": str(run.model), "finished": done >= self._training.steps}
        storage.write_bytes(str(run.folder / SUMMARY_NAME), measured_json(summary, indent=1).encode())
        self._processes.barrier()
        return json_values(summary)
