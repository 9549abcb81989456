"""Turns a run's steps into lines of metrics: the mean loss and the rates of the steps since the line before.

Only time spent in steps counts for the rates: evaluating and saving stop the clock, and show on the progress line alone.
"""

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pipeline.common.measured_json import json_values, restored
from pipeline.common.progress import progress_line
from training.distributed import Processes
from training.trainer.checkpoints.states import RunProgress
from training.trainer.logs.loggers import MetricsWriter, WandbRun
from training.trainer.logs.peak_flops import peak_flops
from training.trainer.logs.throughput import RunningLoss, StepClock, flops_per_token, peak_memory, reset_peak_memory
from training.trainer.run_dir import run_fingerprint
from training.trainer.setup import Run
from training.trainer.validation_loss import ValidationScores

# What a summary holds: of the last line, and of the last evaluation.
_SUMMARIZED = ("loss", "skipped_steps", "ids_per_second", "mfu", "data_wait", "memory_bytes")
_HELD_OUT = ("held_out_loss", "held_out_loss_by_dataset", "held_out_loss_by_frame")
log = logging.getLogger(__name__)


class Reporter:
    """Reports a run. All ranks hold one, rank 0's writes. Use it as a context around the training loop.

    Args:
        run: What is trained.
        processes: That train it.

    Attributes:
        results: The newest value of each number that a summary holds, also of before a resume; some may not be finite.
    """

    def __init__(self, run: Run, processes: Processes) -> None:
        self._run = run
        self._processes = processes
        self._loss = RunningLoss(processes.device)
        self._clock = StepClock()
        self.results: dict[str, Any] = dict.fromkeys(_SUMMARIZED) | dict.fromkeys(_HELD_OUT)
        if run.checkpoint is not None:
            progress = run.checkpoint.progress
            self.results |= restored(progress.results)
            self._loss.reset(progress.loss_total(processes.rank, processes.world_size), progress.loss_steps)

    def __enter__(self) -> Self:
        run, first = self._run, self._processes.is_first
        project = run.recipe.training.wandb_project
        wandb = WandbRun(project, run.folder, run.recipe.as_dict()) if first and project else None
        self._writer = MetricsWriter(run.folder, run.first_step, wandb) if first else None
        self._line = progress_line(run.recipe.training.steps, "step", "pre-train", run.first_step, shown=first)
        reset_peak_memory(self._processes.device)
        self._clock.restart()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line.close()
        if self._writer is not None:
            self._writer.close(failed=error is not None)

    def add_step(self, losses: list[torch.Tensor], applied: bool, waited: float) -> None:
        """Count a step.

        Args:
            losses: Mean loss per label id of each micro step, on the device.
            applied: Whether the step changed the parameters; the loss of one that was skipped is no part of the mean.
            waited: Seconds of the step that went by waiting for batches.
        """
        if applied:
            self._loss.add(losses)
        self._clock.add(waited)
        self._line.update(1)

    def write_line(self, done: int, learning_rate: float, gradient_norm: float | torch.Tensor | None, skipped: int) -> None:
        """Write the line of the steps since the last one. Call it on all ranks.

        Args:
            done: Steps done.
            learning_rate: Of the last of them.
            gradient_norm: Of the last of them, before clipping; None where the engine keeps none.
            skipped: Steps of the run that were skipped so far, on rank 0.
        """
        run, device, world_size = self._run, self._processes.device, self._processes.world_size
        own = torch.tensor([self._loss.total, self._clock.waited, peak_memory(device)], dtype=torch.float64)
        # The loss above has waited for the device, so the clock is read when the work is done.
        seconds = self._clock.seconds
        totals, waits, memory = torch.stack(self._processes.gather_tensor(own)).unbind(dim=1)
        loss = float(totals.mean()) / self._loss.steps if self._loss.steps else None
        layout = run.store.layout
        clips_per_second = self._clock.steps * run.plan.global_batch / seconds
        ids_per_second = clips_per_second * layout.sequence_length
        peak = peak_flops(device) * world_size
        drawn = run.order.drawn(done * run.plan.global_batch)
        values = {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": None if gradient_norm is None else float(gradient_norm),
            "skipped_steps": skipped,
            "ids_per_second": ids_per_second,
            "label_ids_per_second": clips_per_second * (layout.sequence_length - layout.prefix_length),
            "mfu": ids_per_second * flops_per_token(run.recipe.model, layout) / peak if peak else 0.0,
            # Of the process that waited longest, or took most: all others wait for it, or run out of memory after it.
            "data_wait": float(waits.max()) / seconds,
            "memory_bytes": int(memory.max()),
            "samples": drawn,
            "epochs": {name: count / run.store.positions(name) for name, count in drawn.items()},
        }
        self.results.update((name, values[name]) for name in _SUMMARIZED)
        if self._writer is not None:
            self._writer.write(done, values)
            shown = f"loss {'-' if loss is None else f'{loss:.3f}'}, {ids_per_second:,.0f} ids/s"
            self._line.set_postfix_str(shown + (f", MFU {values['mfu']:.0%}" if peak else ""), refresh=False)
        self._loss.reset()
        reset_peak_memory(device)
        self._clock.restart()

    def write_validation(self, done: int, scores: ValidationScores) -> None:
        """Write the losses on held-out clips after `done` steps."""
        values = dict(zip(_HELD_OUT, (scores.loss, scores.by_dataset, scores.by_frame), strict=True))
        self.results |= values
        if self._writer is not None:
            self._writer.write(done, values)
            if bad := [f"{name} {loss}" for name, loss in scores.by_dataset.items() if not math.isfinite(loss)]:
                log.warning(
                    "step %d: the held-out loss of %s is not finite: the model is broken, or held-out clips hold numbers that "
                    "are not finite (ivideogpt-inspect --verify looks for them)",
                    done,
                    ", ".join(bad),
                )

    def log_videos(self, done: int, animations: Mapping[str, Path]) -> None:
        """Show predictions of held-out clips after `done` steps, GIF files by name."""
        if self._writer is not None:
            self._writer.log_pictures(done, {f"predictions/{name}": path for name, path in animations.items()})

    def progress(self, done: int, skipped: int) -> RunProgress:
        """What a checkpoint must know of the steps so far, with all lines brought to disk. Call it on all ranks.

        Args:
            done: Steps done.
            skipped: Steps in a row, up to the last, that were skipped.
        """
        if self._writer is not None:
            self._writer.flush()
        totals = self._processes.gather(self._loss.total)
        fingerprint = run_fingerprint(self._run.identity)
        results = json_values(self.results)
        return RunProgress(done, self._processes.world_size, totals, self._loss.steps, fingerprint, skipped, results)

    def paused(self) -> AbstractContextManager[None]:
        """What happens in this context isn't training."""
        return self._clock.paused()
