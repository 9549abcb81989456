"""Turns a run's steps into lines of metrics: mean loss and speed since the last line.

Only time spent in steps counts for the speed. Evaluation and saving pause the clock and show only on the progress line.
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
from training.trainer.logs.throughput import (
    RunningLoss,
    StepClock,
    flops_per_token,
    peak_memory,
    reset_peak_memory,
    with_current_names,
)
from training.trainer.run import Run
from training.trainer.run_dir import run_fingerprint
from training.trainer.validation_loss import ValidationScores

# Keys of a summary: from the last line and from the last evaluation.
_SUMMARY_KEYS = ("loss", "skipped_steps", "tokens_per_second", "ids_per_second", "mfu", "data_wait", "memory_bytes")
_VALIDATION_KEYS = ("held_out_loss", "held_out_loss_by_dataset", "held_out_loss_by_frame")
log = logging.getLogger(__name__)


class Reporter:
    """Reports a run. All ranks hold one; rank 0's writes. Use it as a context around the training loop.

    Args:
        run: The run.
        processes: Processes of the run.

    Attributes:
        results: Newest value of each number in the summary, also from before a resume; some may be non-finite.
    """

    def __init__(self, run: Run, processes: Processes) -> None:
        self._run = run
        self._processes = processes
        self._loss = RunningLoss(processes.device)
        self._clock = StepClock()
        self.results: dict[str, Any] = dict.fromkeys(_SUMMARY_KEYS) | dict.fromkeys(_VALIDATION_KEYS)
        if run.checkpoint is not None:
            progress = run.checkpoint.progress
            self.results |= with_current_names(restored(progress.results))
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
        """Counts a step.

        Args:
            losses: Mean loss per target token of each micro step, on the device.
            applied: Whether the step changed the parameters; the loss of a skipped step is left out of the mean.
            waited: Time that the step waited for batches, in seconds.
        """
        if applied:
            self._loss.add(losses)
        self._clock.add(waited)
        self._line.update(1)

    def write_line(self, done: int, learning_rate: float, gradient_norm: float | torch.Tensor | None, skipped: int) -> None:
        """Writes the line of the steps since the last one. Call it on all ranks.

        Args:
            done: Number of steps done.
            learning_rate: Learning rate of the last step.
            gradient_norm: Gradient norm of the last step before clipping; None if the engine doesn't report it.
            skipped: Number of skipped steps of the run, on rank 0.
        """
        run, device, world_size = self._run, self._processes.device, self._processes.world_size
        own = torch.tensor([self._loss.total, self._clock.waited, peak_memory(device)], dtype=torch.float64)
        # Reading the loss waited for the device, so the work is done now.
        seconds = self._clock.seconds
        totals, waits, memory = torch.stack(self._processes.gather_tensor(own)).unbind(dim=1)
        loss = float(totals.mean()) / self._loss.steps if self._loss.steps else None
        layout = run.store.layout
        clips_per_second = self._clock.steps * run.plan.global_batch / seconds
        tokens_per_second = clips_per_second * layout.sequence_length
        target_tokens_per_second = clips_per_second * (layout.sequence_length - layout.prefix_length)
        peak = peak_flops(device) * world_size
        drawn = run.order.drawn(done * run.plan.global_batch)
        values = {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": None if gradient_norm is None else float(gradient_norm),
            "skipped_steps": skipped,
            "tokens_per_second": tokens_per_second,
            "target_tokens_per_second": target_tokens_per_second,
            "ids_per_second": tokens_per_second,
            "label_ids_per_second": target_tokens_per_second,
            "mfu": tokens_per_second * flops_per_token(run.recipe.model, layout) / peak if peak else 0.0,
            # Of the process with the longest wait or the most memory: it limits all others.
            "data_wait": float(waits.max()) / seconds,
            "memory_bytes": int(memory.max()),
            "samples": drawn,
            "epochs": {name: count / run.store.positions(name) for name, count in drawn.items()},
        }
        self.results.update((name, values[name]) for name in _SUMMARY_KEYS)
        if self._writer is not None:
            self._writer.write(done, values)
            shown = f"loss {'-' if loss is None else f'{loss:.3f}'}, {tokens_per_second:,.0f} tokens/s"
            self._line.set_postfix_str(shown + (f", MFU {values['mfu']:.0%}" if peak else ""), refresh=False)
        self._loss.reset()
        reset_peak_memory(device)
        self._clock.restart()

    def write_validation(self, done: int, scores: ValidationScores) -> None:
        """Writes the losses on held-out clips after `done` steps."""
        values = dict(zip(_VALIDATION_KEYS, (scores.loss, scores.by_dataset, scores.by_frame), strict=True))
        self.results |= values
        if self._writer is not None:
            self._writer.write(done, values)
            if bad := [f"{name} {loss}" for name, loss in scores.by_dataset.items() if not math.isfinite(loss)]:
                log.warning(
                    "step %d: the held-out loss of %s is not finite: the model is broken, or held-out clips hold non-finite "
                    "numbers (ivideogpt-inspect --verify finds them)",
                    done,
                    ", ".join(bad),
                )

    def log_videos(self, done: int, animations: Mapping[str, Path]) -> None:
        """Logs predictions of held-out clips after `done` steps, as GIF files by name."""
        if self._writer is not None:
            self._writer.log_pictures(done, {f"predictions/{name}": path for name, path in animations.items()})

    def progress(self, done: int, skipped: int) -> RunProgress:
        """Returns the progress for a checkpoint, after flushing all lines to disk. Call it on all ranks.

        Args:
            done: Number of steps done.
            skipped: Number of steps in a row, up to the last, that were skipped.
        """
        if self._writer is not None:
            self._writer.flush()
        totals = self._processes.gather(self._loss.total)
        fingerprint = run_fingerprint(self._run.identity)
        results = json_values(self.results)
        return RunProgress(done, self._processes.world_size, totals, self._loss.steps, fingerprint, skipped, results)

    def paused(self) -> AbstractContextManager[None]:
        """Pauses the clock in this context."""
        return self._clock.paused()
