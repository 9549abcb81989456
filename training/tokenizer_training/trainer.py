"""The training loop of the tokenizer: one optimizer over both autoencoders, codebooks kept alive, exact resume.

A checkpoint is accelerate's whole state: tokenizer, discriminator, both optimizers, averaged weights, counts of codes. The
order of samples needs the step alone.
"""

import dataclasses
import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.common.errors import ConfigError
from pipeline.common.measured_json import describe_not_finite, json_values, measured_json, restored
from pipeline.common.progress import progress_line
from pipeline.config.catalog import mixture
from pipeline.config.recipe import Recipe
from pipeline.episodes.frames import require_detail
from tokenize_offline.tokenizer import CompressiveVQModel, TokenizerOutput
from training.data.episode_index import open_episode_indexes
from training.metrics.lpips import LPIPS
from training.tokenizer_training import checkpoints
from training.tokenizer_training.codebooks import CodebookKeeper
from training.tokenizer_training.data import DrawnBatch, StepBatches, TokenizerClips, begin_reading, collate
from training.tokenizer_training.discriminator import AdversarialLoss, measure_of
from training.tokenizer_training.ema import ExponentialMovingAverage
from training.tokenizer_training.evaluation import evaluate_tokenizer, write_reconstructions
from training.tokenizer_training.losses import stillness, tokenizer_losses
from training.tokenizer_training.nonfinite import SkippedSteps
from training.tokenizer_training.skipped_episodes import SkippedEpisodes, summarized
from training.tokenizer_training.start import in_one_precision, starting_model
from training.trainer.checkpoints.states import tag
from training.trainer.logs.throughput import METRICS_NAME, truncate_metrics
from training.trainer.nonfinite import propagate_nonfinite
from training.trainer.signals import StopRequest, block_stop_signals

log = logging.getLogger(__name__)
_EVALUATION_BATCHES = 8
_SHOWN_CLIPS = 2
# The odd number nearest to 2^64 over the golden ratio (Knuth's multiplicative hashing).
_MIXER = 0x9E3779B97F4A7C15
# Published: clipping of the gradient norm at 1.
_GRADIENT_NORM = 1.0


class TokenizerTrainer:
    """One run: model, optimizer, step, and the folder it writes to.

    Args:
        recipe: Its `tokenizer`, `clips` and `data` sections are used.
        shards: Output folders of ingest.
        output: Run folder.
        workers: Processes that read clips.
        trained: A tokenizer to start from; None starts with random weights.

    Attributes:
        recipe: As the processes agreed on it.

    Raises:
        ConfigError: The batch does not divide among the processes, or a loss lacks its weights.
        ShardError: There are no episodes.
    """

    def __init__(
        self, recipe: Recipe, shards: Sequence[str], output: Path, workers: int, trained: CompressiveVQModel | None = None
    ) -> None:
        # Without `cpu`, accelerate leaves several processes on a machine without a GPU unconnected.
        on_cpu = not torch.cuda.is_available()
        PartialState(cpu=on_cpu)
        self.recipe = in_one_precision(recipe)
        self.config = self.recipe.tokenizer
        self.output = output
        self.step = 0
        self._workers = workers
        self._left_out, self._skipped = SkippedEpisodes(), SkippedSteps()
        # What held-out clips measured last; nothing where there are none.
        self._results: dict[str, Any] = {}
        bf16 = self.config.training_precision == "bf16"
        self.accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=on_cpu)
        processes = self.accelerator.num_processes
        # On the host, so that asking each other never waits for a GPU.
        self._host_group = dist.new_group(backend="gloo") if processes > 1 else None
        self._local_batch, rest = divmod(self.config.batch_size, processes)
        if rest or not self._local_batch:
            raise ConfigError(
                f"tokenizer.batch_size {self.config.batch_size} does not divide among {processes} processes; "
                f"take a multiple of {processes}"
            )
        weights = recipe.data.weights or (mixture(recipe.data.mixture) if recipe.data.mixture else None)
        table, held_out = open_episode_indexes(shards, "train", recipe.clips.held_out, recipe.quality)
        if not table:
            raise ConfigError(f"clips.held_out {recipe.clips.held_out} leaves no episode of {', '.join(shards)} to train on")
        for dataset, rows in table.items():
            require_detail(rows.shrunk, self.config.resolution, dataset)
        self._clips = TokenizerClips(table, self.config, recipe.clips, weights)
        plain = dataclasses.replace(recipe.clips, views=1)
        self._held_out = TokenizerClips(held_out, self.config, plain, None) if held_out else None
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

    @property
    def bare(self) -> CompressiveVQModel:
        """The model without accelerate's wrapping."""
        model: CompressiveVQModel = self.accelerator.unwrap_model(self.model)
        return model

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """Train up to the recipe's last step, or until asked to stop, and write the tokenizer.

        Args:
            stop: Looked at after every step.

        Returns:
            How far it came, and the numbers of the last evaluation.
        """
        config, main = self.config, self.accelerator.is_main_process
        with (
            progress_line(config.steps, "step", "train tokenizer", self.step, main) as progress,
            closing(self._batches()) as batches,
        ):
            for clips in batches:
                terms = self._train_step(clips)
                progress.update()
                if self.step % config.log_every == 0:
                    progress.set_postfix_str(self._log(terms), refresh=False)
                if config.dead_code_reset_every and self.step % config.dead_code_reset_every == 0:
                    self._codebooks.revive(clips, self.optimizer, self._average)
                due = self.step % config.checkpoint_every == 0 or self.step == config.steps
                stopping = self._any(stop.requested)
                if due:
                    with self._judged():
                        self._evaluate()
                if due or stopping:
                    self.save_checkpoint()
                if stopping:
                    log.info("stopped after step %d; the same command goes on from there", self.step)
                    break
        self._write_tokenizer()
        summary = {"steps": self.step, "finished": self.step >= config.steps, "tokenizer": str(self.output / "tokenizer")}
        return summary | self._skipped.state() | summarized(self._left_out.gathered(self._gather)) | self._results

    def save_checkpoint(self) -> None:
        """Write the whole state under a new name, then point `latest.json` to it; older checkpoints go."""
        name, folder = tag(self.step), self.output / "checkpoints"
        self._codebooks.gather()
        state = {"step": self.step, **self._skipped.state(), **self._left_out.gathered(self._gather)}
        state["results"] = json_values(self._results)
        self.accelerator.save_state(str(folder / name), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoints.publish(folder, name, state)
        self.accelerator.wait_for_everyone()

    def load_checkpoint(self) -> bool:
        """Continue from the newest checkpoint; False where there is none.

        Raises:
            ConflictError: There was one, and it isn't whole any more, or can't be loaded.
        """
        found = checkpoints.find(self.output / "checkpoints")
        if found is None:
            return False
        folder, pointer = found
        checkpoints.load(self.accelerator, folder)
        self.step = int(pointer["step"])
        self._skipped.restore(pointer)
        self._left_out.restore(pointer, self.accelerator.is_main_process)
        self._results = restored(pointer.get("results", {}))
        log.info("continuing from step %d", self.step)
        return True

    def begin(self, resume: bool) -> None:
        """Continue from the newest checkpoint where there is one and `resume` asks for it; cut what a crash left behind."""
        if resume:
            self.load_checkpoint()
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            truncate_metrics(self.output, self.step)
        self.accelerator.wait_for_everyone()

    def _any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        if self._host_group is None:
            return flag
        count = torch.tensor(float(flag))
        dist.all_reduce(count, group=self._host_group)
        return bool(count > 0)

    def _gather(self, value: Any) -> list[Any]:
        """An object of every process."""
        parts = [value]
        if self._host_group is not None:
            parts = [None] * self.accelerator.num_processes
            dist.all_gather_object(parts, value, group=self._host_group)
        return parts

    def _batches(self) -> Generator[Tensor]:
        accelerator = self.accelerator
        sampler = StepBatches(
            self.step, self.config.steps, self._local_batch, accelerator.process_index, accelerator.num_processes
        )
        loader: Iterable[DrawnBatch] = DataLoader(
            self._clips,
            batch_sampler=sampler,
            num_workers=self._workers,
            collate_fn=collate,
            pin_memory=accelerator.device.type == "cuda",
            # Spawned workers are this process's children and end with it, also where it is killed; a fork server's are not.
            multiprocessing_context="spawn" if self._workers else None,
            worker_init_fn=begin_reading,
        )
        with block_stop_signals():
            batches = iter(loader)
        try:
            for batch in batches:
                self._left_out.add(batch.unread, batch.replaced)
                if batch.failure is not None:
                    raise batch.failure
                yield batch.clips.to(accelerator.device, non_blocking=True)
        finally:
            # Its workers end when nothing refers to it any more; an error's traceback would.
            del batches

    def _train_step(self, clips: Tensor) -> dict[str, Tensor]:
        # Dropout depends on step and process alone, so that a resumed run draws what it would have drawn.
        torch.manual_seed(step_seed(self.config.seed, self.step, self.accelerator.process_index))
        warmup = min(1.0, (self.step + 1) / max(self.config.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warmup
        self._codebooks.harden((self.step + 1) / max(self.config.quantize_warmup, 1))
        output = self.model(clips, self._still_patches(clips))
        terms = tokenizer_losses(clips, output, self.config, self._lpips if self.config.lpips_weight else None)
        adversary = self._adversary if self._adversary is not None and self._adversary.active(self.step) else None
        made = _all_frames(output)
        if adversary is not None:
            last_layer = self.bare.cond_decoder.conv_out.weight
            terms["adversarial"] = adversary.tokenizer_term(made, measure_of(terms), last_layer)
        self.optimizer.zero_grad()
        self.accelerator.backward(propagate_nonfinite(torch.stack(list(terms.values())).sum()))
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        # Gradients are the same on all processes by now, so all agree.
        applied = bool(torch.isfinite(norm))
        if applied:
            self.optimizer.step()
            if adversary is not None:
                terms["discriminator"] = adversary.learn(clips.flatten(0, 1), made, warmup)
            if self._average is not None:
                self._average.update(self.bare)
            self._codebooks.add(output)
        self.step += 1
        self._skipped.count(self.step, applied, terms, self.accelerator.is_main_process)
        return terms

    def _still_patches(self, clips: Tensor) -> Tensor | None:
        """The patches that the decoder has to show from the context alone, where the recipe pulls them to one code."""
        config, id_layout = self.config, self.bare.id_layout
        if not config.static_patch_weight:
            return None
        return stillness(clips, config.context_length, id_layout.future_grid) > 0.5

    def _log(self, terms: dict[str, Tensor]) -> str:
        """Write a line of metrics and return a short one for people."""
        values = self.accelerator.reduce(torch.stack([term.detach().float() for term in terms.values()]), "mean")
        line: dict[str, Any] = {"step": self.step} | dict(zip(terms, values.tolist(), strict=True))
        line |= self._codebooks.describe() | {"skipped_steps": self._skipped.total}
        self._append(line)
        return f"future l1 {line['future_l1']:.4f}, codes used {line['context_codes_used']:.0%}/{line['future_codes_used']:.0%}"

    def _append(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.output / METRICS_NAME).open("a", encoding="utf-8") as file:
                file.write(measured_json(line) + "\n")

    def _evaluate(self) -> None:
        """Measure and show held-out clips, on the first process alone."""
        if self._held_out is None or not self.accelerator.is_main_process:
            return
        batches = (self._held_out_clips(batch * self._local_batch, self._local_batch) for batch in range(_EVALUATION_BATCHES))
        report = evaluate_tokenizer(self.bare, (frames.to(self.accelerator.device) for frames in batches), self._lpips)
        self._results = report.as_dict()
        self._append({"step": self.step, "held_out": self._results})
        if bad := describe_not_finite(self._results):
            log.warning("step %d: results on held-out clips are not finite: %s", self.step, bad)
        shown = self._held_out_clips(0, _SHOWN_CLIPS).to(self.accelerator.device)
        write_reconstructions(str(self.output / "reconstructions" / f"step-{self.step:08d}.png"), self.bare, shown)

    def _held_out_clips(self, first: int, count: int) -> Tensor:
        """Clips of held-out episodes, from sample `first` on."""
        assert self._held_out is not None
        batch = collate([self._held_out[first + number] for number in range(count)])
        self._left_out.add(batch.unread, batch.replaced)
        if batch.failure is not None:
            raise batch.failure
        return batch.clips

    def _open_lpips(self) -> LPIPS | None:
        """LPIPS for loss and evaluation, where the recipe asks for it or has the weights."""
        config = self.config
        if not config.lpips_weight and config.vgg_weights is None:
            return None
        asked = "tokenizer.lpips_weight" if config.lpips_weight else "tokenizer.vgg_weights"
        return LPIPS(config.vgg_weights, f"the perceptual loss ({asked})").to(self.accelerator.device)

    def _judged(self) -> AbstractContextManager[None]:
        """The weights that are evaluated and written: the averaged ones where there are any."""
        return nullcontext() if self._average is None else self._average.applied(self.bare)

    def _write_tokenizer(self) -> None:
        if self.accelerator.is_main_process:
            precision = torch.float16 if self.config.weights_precision == "fp16" else torch.float32
            with self._judged():
                self.bare.save_pretrained(str(self.output / "tokenizer"), precision)
        self.accelerator.wait_for_everyone()


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of the randomness inside one process's step: 64 bits.

    Steps and processes share the lower 40 bits, so a seed of more than the upper 24 is mixed with what is left of it.
    """
    return ((seed << 40) + (seed >> 24) * _MIXER + (step << 12) + process) % 2**64


def _all_frames(output: TokenizerOutput) -> Tensor:
    """(B T, 3, S, S): reconstructions of all frames of all clips, in their order."""
    return torch.cat([output.context_reconstruction, output.future_reconstruction], dim=1).flatten(0, 1)
