"""The training loop of the tokenizer: one optimizer over both autoencoders, codebooks kept alive, exact resume.

Codes that go unused are replaced by current features, and how well the codebooks are used is reported, because a collapsed
codebook looks fine in the loss. A checkpoint is accelerate's whole state; the order of samples needs the step alone.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline import storage
from pipeline.catalog import mixture
from pipeline.errors import ConfigError
from pipeline.progress import progress_line
from pipeline.recipe import Recipe, TokenizerConfig
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel, Quantizer
from training.tokenizer_data import EpisodeTable, StepBatches, TokenizerClips
from training.tokenizer_evaluation import TokenizerReport, evaluate_tokenizer
from training.tokenizer_loss import CodebookUse, tokenizer_losses

log = logging.getLogger(__name__)
_EVALUATION_BATCHES = 8
# Published: clipping of the gradient norm at 1 (spec/compressive-tokenizer.md).
_GRADIENT_NORM = 1.0


def model_config(config: TokenizerConfig) -> CompressiveVQConfig:
    """The shape of a new tokenizer, from the recipe."""
    return CompressiveVQConfig(
        resolution=config.resolution,
        context_length=config.context_length,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        num_vq_embeddings=config.num_vq_embeddings,
        num_dyn_embeddings=config.num_dyn_embeddings,
        patch_size=config.patch_size,
        max_att_resolution=config.max_att_resolution,
    )


class TokenizerTrainer:
    """One run: model, optimizer, step, and the folder it writes to.

    Args:
        recipe: Its `tokenizer`, `clips` and `data` sections are used.
        shards: Output folders of ingest.
        output: Run folder.
        workers: Processes that read clips.

    Raises:
        ConfigError: The batch does not divide among the processes.
        ShardError: There are no episodes.
    """

    def __init__(self, recipe: Recipe, shards: Sequence[str], output: Path, workers: int) -> None:
        self.config = recipe.tokenizer
        self.output = output
        self.step = 0
        self._workers = workers
        bf16 = self.config.training_precision == "bf16"
        self.accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
        processes = self.accelerator.num_processes
        self._local_batch, rest = divmod(self.config.batch_size, processes)
        if rest or not self._local_batch:
            raise ConfigError(
                f"tokenizer.batch_size {self.config.batch_size} does not divide among {processes} processes; "
                f"take a multiple of {processes}"
            )
        weights = recipe.data.weights or (mixture(recipe.data.mixture) if recipe.data.mixture else None)
        table = EpisodeTable.open(shards, "train", recipe.clips.held_out, want_held_out=False)
        self._clips = TokenizerClips(table, self.config, recipe.clips, weights)
        held_out = EpisodeTable.open(shards, "train", recipe.clips.held_out, want_held_out=True)
        self._held_out = TokenizerClips(held_out, self.config, recipe.clips, None) if held_out.rows else None
        set_seed(self.config.seed)
        model = CompressiveVQModel(model_config(self.config))
        # Published: betas 0.9 and 0.999, no weight decay (spec/compressive-tokenizer.md).
        optimizer = torch.optim.AdamW(model.parameters(), self.config.learning_rate, betas=(0.9, 0.999), weight_decay=0.0)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self._reset_use()

    @property
    def bare(self) -> CompressiveVQModel:
        """The model without accelerate's wrapping."""
        model: CompressiveVQModel = self.accelerator.unwrap_model(self.model)
        return model

    def run(self) -> dict[str, Any]:
        """Train up to the recipe's last step and write the tokenizer; returns the numbers of the last evaluation."""
        config, main = self.config, self.accelerator.is_main_process
        # What held-out clips measure, or None where there are none.
        report = None
        with progress_line(config.steps, "step", "train tokenizer", self.step, main) as progress:
            for clips in self._batches():
                terms = self._train_step(clips)
                progress.update()
                if self.step % config.log_every == 0:
                    progress.set_postfix_str(self._log(terms), refresh=False)
                if config.revive_every and self.step % config.revive_every == 0:
                    self._revive(clips)
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    self.save_checkpoint()
                    report = self._evaluate()
        self._write_tokenizer()
        return {"steps": self.step, "tokenizer": str(self.output / "tokenizer")} | (report.as_dict() if report else {})

    def save_checkpoint(self) -> None:
        """Write the whole state under a new name, then point `latest.json` to it; older checkpoints go."""
        name = f"step-{self.step:08d}"
        folder = self.output / "checkpoints"
        self.accelerator.save_state(str(folder / name), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            storage.write_bytes(str(folder / "latest.json"), json.dumps({"name": name, "step": self.step}).encode())
            for other in folder.iterdir():
                if other.is_dir() and other.name != name:
                    shutil.rmtree(other)
        self.accelerator.wait_for_everyone()

    def load_checkpoint(self) -> bool:
        """Continue from the newest whole checkpoint; False where there is none."""
        latest = self.output / "checkpoints" / "latest.json"
        if not latest.exists():
            return False
        pointer = json.loads(latest.read_bytes())
        self.accelerator.load_state(str(latest.parent / pointer["name"]))
        self.step = int(pointer["step"])
        log.info("continuing from step %d", self.step)
        return True

    def _batches(self) -> Iterator[Tensor]:
        accelerator = self.accelerator
        sampler = StepBatches(
            self.step, self.config.steps, self._local_batch, accelerator.process_index, accelerator.num_processes
        )
        loader: Iterable[Tensor] = DataLoader(
            self._clips,
            batch_sampler=sampler,
            num_workers=self._workers,
            pin_memory=accelerator.device.type == "cuda",
            multiprocessing_context="forkserver" if self._workers else None,
        )
        for clips in loader:
            yield clips.to(accelerator.device, non_blocking=True)

    def _train_step(self, clips: Tensor) -> dict[str, Tensor]:
        # Dropout depends on step and process alone, so that a resumed run draws what it would have drawn.
        torch.manual_seed((self.config.seed << 40) + (self.step << 12) + self.accelerator.process_index)
        warmup = min(1.0, (self.step + 1) / max(self.config.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warmup
        output = self.model(clips)
        terms = tokenizer_losses(clips, output, self.config)
        self.optimizer.zero_grad()
        self.accelerator.backward(torch.stack(list(terms.values())).sum())
        self.accelerator.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        self.optimizer.step()
        self._context_use.add(output.context_ids)
        self._future_use.add(output.future_ids)
        self.step += 1
        return terms

    def _reset_use(self) -> None:
        device = self.accelerator.device
        self._context_use = CodebookUse.empty(self.bare.config.num_vq_embeddings, device)
        self._future_use = CodebookUse.empty(self.bare.config.num_dyn_embeddings, device)

    def _log(self, terms: dict[str, Tensor]) -> str:
        """Write a line of metrics and return a short one for people."""
        values = self.accelerator.reduce(torch.stack([term.detach().float() for term in terms.values()]), "mean")
        line: dict[str, Any] = {"step": self.step} | dict(zip(terms, values.tolist(), strict=True))
        for name, use in (("context", self._context_use), ("future", self._future_use)):
            line[f"{name}_codes_used"] = use.share_used()
            line[f"{name}_perplexity"] = use.perplexity()
        self._append(line)
        return f"future l1 {line['future_l1']:.4f}, codes used {line['context_codes_used']:.0%}/{line['future_codes_used']:.0%}"

    def _append(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _revive(self, clips: Tensor) -> None:
        """Put current features in place of the codes that no process has used since the last time."""
        with torch.no_grad():
            output = self.bare(clips)
        pairs = (
            (self.bare.quantize, self._context_use, output.context_vectors),
            (self.bare.dynamics_quantize, self._future_use, output.future_vectors),
        )
        for quantizer, use, vectors in pairs:
            use.counts = self.accelerator.reduce(use.counts, "sum")
            unused = use.unused()
            if len(unused):
                chosen = vectors[torch.randint(len(vectors), (len(unused),), device=vectors.device)].float()
                self._replace(quantizer, unused, broadcast(chosen))
        self._reset_use()

    def _replace(self, quantizer: Quantizer, codes: Tensor, vectors: Tensor) -> None:
        quantizer.replace_codes(codes, vectors)
        # The moments belong to the codes that are gone.
        state = self.optimizer.state.get(quantizer.embedding.weight, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name][codes] = 0

    def _evaluate(self) -> TokenizerReport | None:
        if self._held_out is None or not self.accelerator.is_main_process:
            return None
        clips = self._held_out
        batches = (
            torch.stack([clips[batch * self._local_batch + number] for number in range(self._local_batch)])
            for batch in range(_EVALUATION_BATCHES)
        )
        report = evaluate_tokenizer(self.bare, (frames.to(self.accelerator.device) for frames in batches))
        self._append({"step": self.step, "held_out": report.as_dict()})
        return report

    def _write_tokenizer(self) -> None:
        if self.accelerator.is_main_process:
            precision = torch.float16 if self.config.weights_precision == "fp16" else torch.float32
            self.bare.save_pretrained(str(self.output / "tokenizer"), precision)
        self.accelerator.wait_for_everyone()
