"""Trains the tokenizer: one optimizer over both autoencoders, reset of dead codes, exact resume.

A checkpoint holds accelerate's whole state: tokenizer, discriminator, both optimizers, averaged weights, counts of codes. The
order of samples follows from the step number.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.common.measured_json import describe_not_finite, json_values, restored
from pipeline.common.path_errors import explained_write_errors
from pipeline.common.progress import progress_line
from pipeline.config.catalog import mixture
from pipeline.episodes.frames import require_detail
from tokenize_offline.tokenizer import CompressiveVQModel, TokenizerOutput
from training.data.episode_index import open_episode_indexes
from training.distributed import Processes
from training.metrics.lpips import LPIPS
from training.tokenizer_training.accelerator import load_state, open_accelerator
from training.tokenizer_training.codebooks import CodebookKeeper
from training.tokenizer_training.data import DrawnBatch, TokenizerClips, collate
from training.tokenizer_training.discriminator import AdversarialLoss, reference_term
from training.tokenizer_training.ema import ExponentialMovingAverage
from training.tokenizer_training.evaluation import evaluate_tokenizer, write_reconstructions
from training.tokenizer_training.loader import ClipLoader
from training.tokenizer_training.losses import skipped_terms, static_probability, tokenizer_losses
from training.tokenizer_training.run import TokenizerRun
from training.tokenizer_training.skipped_episodes import SkippedEpisodes, summarize
from training.tokenizer_training.start import starting_model
from training.trainer.checkpoints.files import mark_damaged
from training.trainer.checkpoints.saving import save_checkpoint
from training.trainer.checkpoints.states import RunProgress, State
from training.trainer.logs.loggers import MetricsWriter, WandbRun
from training.trainer.logs.throughput import StepClock, peak_memory, reset_peak_memory, truncate_logs
from training.trainer.nonfinite import SkippedSteps, propagate_nonfinite
from training.trainer.signals import StopRequest

log = logging.getLogger(__name__)
_EVALUATION_BATCHES = 8
_SHOWN_CLIPS = 2
# The odd number nearest to 2^64 over the golden ratio (Knuth's multiplicative hashing).
_MIXER = 0x9E3779B97F4A7C15
# Published: clipping of the gradient norm at 1.
_GRADIENT_NORM = 1.0


class TokenizerTrainer:
    """Trains the tokenizer of a run in one of its processes.

    Args:
        run: The run; its recipe's sections `tokenizer`, `clips`, `data`, `quality` and `training` are used.
        processes: All processes of the run.
        shards: Output folders of ingest.
        workers: Processes that read clips.
        trained: A tokenizer to start from; None starts with random weights.

    Raises:
        ConfigError: The batch does not divide among the processes, or a loss lacks its weights.
        ShardError: There are no episodes, or the checkpoint can't be loaded.
    """

    def __init__(
        self,
        run: TokenizerRun,
        processes: Processes,
        shards: Sequence[str],
        workers: int,
        trained: CompressiveVQModel | None = None,
    ) -> None:
        recipe = run.recipe
        self._run, self._processes = run, processes
        self.config = recipe.tokenizer
        self.step = run.first_step
        self._local_batch, rest = divmod(self.config.batch_size, processes.world_size)
        if rest or not self._local_batch:
            raise ConfigError(
                f"tokenizer.batch_size {self.config.batch_size} does not divide among {processes.world_size} processes; "
                f"take a multiple of {processes.world_size}"
            )
        weights = recipe.data.weights or (mixture(recipe.data.mixture) if recipe.data.mixture else None)
        table, held_out = open_episode_indexes(shards, "train", recipe.clips.held_out, recipe.quality)
        if not table:
            raise ConfigError(f"clips.held_out {recipe.clips.held_out} leaves no episode of {', '.join(shards)} to train on")
        for dataset, rows in table.items():
            require_detail(rows.shrunk, self.config.resolution, dataset)
        plain = dataclasses.replace(recipe.clips, views=1)
        self._held_out = TokenizerClips(held_out, self.config, plain, None) if held_out else None
        clips = TokenizerClips(table, self.config, recipe.clips, weights)
        self._loader = ClipLoader(clips, range(self.step, self.config.steps), self._local_batch, workers, processes)
        self.accelerator = open_accelerator(processes, self.config.training_precision)
        self._lpips = self._open_lpips()
        torch.manual_seed(self.config.seed)
        model = starting_model(self.config, trained)
        # Published: betas 0.9 and 0.999, no weight decay.
        optimizer = torch.optim.AdamW(model.parameters(), self.config.learning_rate, betas=(0.9, 0.999), weight_decay=0.0)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self._codebooks = CodebookKeeper(self.bare, self.accelerator)
        self.accelerator.register_for_checkpointing(*self._codebooks.uses.values())
        self._adversary, self._average = None, None
        if self.config.disc_weight:
            settings = (self.config.disc_learning_rate, self.config.disc_weight, self.config.disc_start)
            self._adversary = AdversarialLoss(*settings, self.accelerator)
        if self.config.ema_decay:
            self._average = ExponentialMovingAverage(self.bare, self.config.ema_decay)
            self.accelerator.register_for_checkpointing(self._average)
        self._clock = StepClock()
        self._writer: MetricsWriter | None = None
        self._resume()

    @property
    def bare(self) -> CompressiveVQModel:
        """The model without accelerate's wrapper."""
        model: CompressiveVQModel = self.accelerator.unwrap_model(self.model)
        return model

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """Trains up to the recipe's last step, or until asked to stop, and writes the tokenizer.

        Args:
            stop: Checked after every step.

        Returns:
            A summary: how far the run came, and the numbers of the last evaluation.
        """
        config, first = self.config, self._processes.is_first
        with (
            self._open_writer() as self._writer,
            progress_line(config.steps, "step", "train tokenizer", self.step, first) as progress,
            contextlib.closing(iter(self._loader)) as batches,
        ):
            reset_peak_memory(self._processes.device)
            self._clock.restart()
            for batch in batches:
                clips = self._checked(batch).to(self._processes.device, non_blocking=True)
                terms = self._train_step(clips)
                self._clock.add(self._loader.last_wait)
                progress.update()
                if self.step % config.log_every == 0:
                    progress.set_postfix_str(self._log(terms), refresh=False)
                if config.dead_code_reset_every and self.step % config.dead_code_reset_every == 0:
                    self._codebooks.reset_dead_codes(clips, self.optimizer, self._average)
                due = self.step % config.checkpoint_every == 0 or self.step == config.steps
                stopping = self._processes.any(stop.requested)
                with self._clock.paused():
                    if due:
                        with self._averaged():
                            self._evaluate()
                    if due or stopping:
                        self._save_checkpoint()
                if stopping:
                    log.info("stopped after step %d; the same command resumes from there", self.step)
                    break
        self._write_tokenizer()
        return {
            "steps": self.step,
            "finished": self.step >= config.steps,
            "tokenizer": str(self._run.folder / "tokenizer"),
            "skipped_steps": self._skipped.total,
            "skipped_in_row": self._skipped.in_row,
            **summarize(self._skipped_episodes.gathered(self._processes.gather_objects)),
            **self._results,
        }

    def _resume(self) -> None:
        """Loads the checkpoint, if there is one; then brings the run folder to the step of this run."""
        run, processes = self._run, self._processes
        progress = run.checkpoint.progress if run.checkpoint else None
        results = progress.results if progress else {}
        self._skipped = SkippedSteps(
            run.folder,
            processes.is_first,
            run.recipe.training.nonfinite_limit,
            in_row=progress.skipped if progress else 0,
            total=results.get("skipped_steps", 0),
        )
        self._skipped_episodes = SkippedEpisodes()
        self._skipped_episodes.restore(results, processes.is_first)
        # Newest results of held-out clips; empty if there are none.
        self._results: dict[str, Any] = restored(results).get("held_out", {})
        if run.checkpoint is not None:
            load_state(self.accelerator, run.checkpoint)
            log.info("resuming from step %d", self.step)
        if processes.is_first:
            run.folder.mkdir(parents=True, exist_ok=True)
            for verdict in run.damaged:
                if verdict.state is State.DAMAGED:
                    mark_damaged(verdict)
            run.write_recipe()
            truncate_logs(run.folder, self.step)
        processes.barrier()

    def _open_writer(self) -> AbstractContextManager[MetricsWriter | None]:
        run = self._run
        if not self._processes.is_first:
            return nullcontext()
        project = run.recipe.training.wandb_project
        wandb = WandbRun(project, run.folder, run.recipe.as_dict()) if project else None
        return MetricsWriter(run.folder, self.step, wandb)

    def _save_checkpoint(self) -> None:
        """Writes the whole state. Call it on all ranks."""
        run, processes = self._run, self._processes
        if self._writer is not None:
            self._writer.flush()
        self._codebooks.gather()
        results = {
            "held_out": self._results,
            "skipped_steps": self._skipped.total,
            **self._skipped_episodes.gathered(processes.gather_objects),
        }
        size = processes.world_size
        # Lines of metrics hold the losses of single steps, so there are no running sums.
        progress = RunProgress(self.step, size, [0.0] * size, 0, run.fingerprint, self._skipped.in_row, json_values(results))
        training = run.recipe.training
        with explained_write_errors(run.checkpoints):
            save_checkpoint(
                run.checkpoints,
                lambda folder: self.accelerator.save_state(str(folder), safe_serialization=True),
                processes,
                progress,
                training.keep_checkpoints,
                training.keep_every,
            )
        processes.barrier()

    def _checked(self, batch: DrawnBatch) -> Tensor:
        """Returns a batch's clips, and counts its episodes that can't be read."""
        self._skipped_episodes.add(batch.unread, batch.replaced)
        if batch.failure is not None:
            raise batch.failure
        return batch.clips

    def _train_step(self, clips: Tensor) -> dict[str, Tensor]:
        # Dropout depends only on step and process, so a resumed run draws the same.
        torch.manual_seed(step_seed(self.config.seed, self.step, self._processes.rank))
        warmup = min(1.0, (self.step + 1) / max(self.config.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warmup
        self._codebooks.set_strength((self.step + 1) / max(self.config.quantize_warmup, 1))
        output = self.model(clips, self._static_patches(clips))
        terms = tokenizer_losses(clips, output, self.config, self._lpips if self.config.lpips_weight else None)
        adversary = self._adversary if self._adversary is not None and self._adversary.active(self.step) else None
        reconstructions = _all_frames(output)
        if adversary is not None:
            last_layer = self.bare.cond_decoder.conv_out.weight
            terms["adversarial"] = adversary.tokenizer_term(reconstructions, reference_term(terms), last_layer)
        self.optimizer.zero_grad()
        self.accelerator.backward(propagate_nonfinite(torch.stack(list(terms.values())).sum()))
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        # All processes have the same gradients here, so all agree.
        applied = bool(torch.isfinite(norm))
        if applied:
            self.optimizer.step()
            if adversary is not None:
                terms["discriminator"] = adversary.learn(clips.flatten(0, 1), reconstructions, warmup)
            if self._average is not None:
                self._average.update(self.bare)
            self._codebooks.add(output)
        self._skipped.count(self.step, applied, functools.partial(skipped_terms, terms))
        self.step += 1
        return terms

    def _static_patches(self, clips: Tensor) -> Tensor | None:
        """Returns a mask of static patches if the recipe pulls them to one code; the decoder sees only the context there."""
        config, id_layout = self.config, self.bare.id_layout
        if not config.static_patch_weight:
            return None
        return static_probability(clips, config.context_length, id_layout.future_grid) > 0.5

    def _log(self, terms: dict[str, Tensor]) -> str:
        """Writes a line of metrics and returns a short one for the progress line. Call it on all ranks."""
        device = self._processes.device
        means = self.accelerator.reduce(torch.stack([term.detach().float() for term in terms.values()]), "mean")
        line: dict[str, Any] = dict(zip(terms, means.tolist(), strict=True))
        seconds = self._clock.seconds
        own = torch.tensor([self._clock.waited, peak_memory(device)], dtype=torch.float64)
        waits, memory = torch.stack(self._processes.gather_tensor(own)).unbind(dim=1)
        line |= self._codebooks.describe() | {
            "skipped_steps": self._skipped.total,
            "clips_per_second": self._clock.steps * self.config.batch_size / seconds,
            "data_wait": float(waits.max()) / seconds,
            "memory_bytes": int(memory.max()),
        }
        if self._writer is not None:
            self._writer.write(self.step, line)
        reset_peak_memory(device)
        self._clock.restart()
        return f"future l1 {line['future_l1']:.4f}, codes used {line['context_codes_used']:.0%}/{line['future_codes_used']:.0%}"

    def _evaluate(self) -> None:
        """Measures and shows held-out clips, on the first process alone."""
        if self._held_out is None or self._writer is None:
            return
        batches = (self._held_out_clips(batch * self._local_batch, self._local_batch) for batch in range(_EVALUATION_BATCHES))
        self._results = evaluate_tokenizer(self.bare, batches, self._lpips).as_dict()
        self._writer.write(self.step, {"held_out": self._results})
        if bad := describe_not_finite(self._results):
            log.warning("step %d: results on held-out clips are not finite: %s", self.step, bad)
        picture = self._run.folder / "reconstructions" / f"step-{self.step:08d}.png"
        write_reconstructions(str(picture), self.bare, self._held_out_clips(0, _SHOWN_CLIPS))
        self._writer.log_pictures(self.step, {"reconstructions": picture})

    def _held_out_clips(self, first: int, count: int) -> Tensor:
        """Returns clips of held-out episodes, from sample `first` on, on the device."""
        assert self._held_out is not None
        batch = collate([self._held_out[first + number] for number in range(count)])
        return self._checked(batch).to(self._processes.device)

    def _open_lpips(self) -> LPIPS | None:
        """Returns LPIPS for loss and evaluation; None if the recipe neither asks for it nor has the weights."""
        config = self.config
        if not config.lpips_weight and config.vgg_weights is None:
            return None
        asked = "tokenizer.lpips_weight" if config.lpips_weight else "tokenizer.vgg_weights"
        return LPIPS(config.vgg_weights, f"the perceptual loss ({asked})").to(self._processes.device)

    def _averaged(self) -> AbstractContextManager[None]:
        """Gives the model its averaged weights, if there are any, while this context lasts."""
        return nullcontext() if self._average is None else self._average.applied(self.bare)

    def _write_tokenizer(self) -> None:
        if self._processes.is_first:
            precision = torch.float16 if self.config.weights_precision == "fp16" else torch.float32
            with self._averaged():
                self.bare.save_pretrained(str(self._run.folder / "tokenizer"), precision)
        self._processes.barrier()


def step_seed(seed: int, step: int, process: int) -> int:
    """Returns the 64-bit random seed of a process in a step.

    Step and process take the lower 40 bits and the seed the upper 24; the rest of a larger seed is mixed in.
    """
    return ((seed << 40) + (seed >> 24) * _MIXER + (step << 12) + process) % 2**64


def _all_frames(output: TokenizerOutput) -> Tensor:
    """Returns the reconstructions of all frames of all clips in order, (B T, 3, S, S)."""
    return torch.cat([output.context_reconstruction, output.future_reconstruction], dim=1).flatten(0, 1)
