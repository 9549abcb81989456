"""A training run that is ready to start: its options, data, network, and place on disk."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.common import storage
from pipeline.config.recipe import Recipe
from tokenize_offline.tokenizer.loading import TokenizerFiles
from training.data.batch_plan import BatchPlan
from training.data.sampler import SampleOrder
from training.data.token_dataset import TokenStore
from training.model.files.export import MODEL_NAME
from training.model.files.locate import RECIPE
from training.model.world_model import WorldModelNetwork
from training.trainer.checkpoints.states import Checkpoint, CheckResult
from training.trainer.deepspeed_engine import deepspeed_config
from training.trainer.run_dir import CHECKPOINTS_NAME, write_identity
from training.trainer.run_history import RunHistory, write_history
from training.trainer.schedule import learning_rate


@dataclass(frozen=True)
class RunOptions:
    """Options of the command line besides the recipe.

    Attributes:
        tokens: Folders or URLs of token shards.
        output: Run folder; local, or mounted on all nodes.
        resume: `auto` resumes from the newest whole checkpoint in `output`, or starts a run there; `never` requires a new
            folder.
        tokenizer: Tokenizer that made the shards, for the exported model; None exports the transformer alone.
        replay: Step to repeat, counted from 1, with the mixture and number of steps that the run had then. None trains.
        model_keys: Keys of the recipe's `model` section that the user set; see `adopt_shape`.
    """

    tokens: Sequence[str]
    output: str
    resume: Literal["auto", "never"] = "auto"
    tokenizer: str | None = None
    replay: int | None = None
    model_keys: Collection[str] | None = None


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Attributes:
        recipe: Resolved recipe, with clips and tokenizer of the token shards and the shape of the network.
        folder: Run folder.
        store: Training clips.
        validation: Held-out clips of the same data sets; None if there are none.
        order: Order of the samples.
        plan: How a step's samples are split among processes and micro steps.
        network: Network with fresh weights.
        engine_config: DeepSpeed's configuration.
        identity: Settings that must be the same when the run resumes.
        history: Settings that may change when the run resumes, by step.
        checkpoint: Checkpoint to resume from; None for a new run.
        tokenizer: Tokenizer for the exported model.
        damaged: Newer checkpoints with damaged content.
    """

    recipe: Recipe
    folder: Path
    store: TokenStore
    validation: TokenStore | None
    order: SampleOrder
    plan: BatchPlan
    network: WorldModelNetwork
    engine_config: dict[str, Any]
    identity: dict[str, Any]
    history: RunHistory
    checkpoint: Checkpoint | None
    tokenizer: TokenizerFiles | None
    damaged: tuple[CheckResult, ...] = ()

    @property
    def first_step(self) -> int:
        """Number of steps done before this start."""
        return self.checkpoint.progress.step if self.checkpoint else 0

    @property
    def is_finished(self) -> bool:
        """Whether the checkpoint has all steps of the recipe, or more."""
        return self.first_step >= self.recipe.training.steps

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS_NAME

    @property
    def model(self) -> Path:
        """Folder of the exported model."""
        return self.folder / MODEL_NAME

    def clips(self, first: int, count: int) -> list[dict[str, Any]]:
        """Returns the sources of samples `first .. first + count - 1`: data set, episode, first frame, stride, view."""
        dataset, rows = self.order.samples(first, count)
        sources = self.store.sources(self.order.datasets, dataset, rows)
        return [{"sample": first + number, **dataclasses.asdict(source)} for number, source in enumerate(sources)]

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of step number `step`, counted from 0, from the number of steps that was planned then."""
        planned = dataclasses.replace(self.recipe.training, steps=self.history.steps_at(step))
        return learning_rate(planned, step)

    def in_fp32(self) -> "Run":
        """Returns the same run in fp32. Only for a new run: a checkpoint fits its own precision only."""
        training = dataclasses.replace(self.recipe.training, precision="fp32")
        return dataclasses.replace(
            self,
            recipe=dataclasses.replace(self.recipe, training=training),
            engine_config=deepspeed_config(training, self.plan),
            identity={**self.identity, "training": {**self.identity["training"], "precision": "fp32"}},
        )

    def write_identity(self) -> None:
        """Creates the run folder with the run's identity, history and recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The identity comes first: without it the other files can't be matched to a run.
        write_identity(self.folder, self.identity)
        write_history(self.folder, self.history)
        storage.write_bytes(str(self.folder / RECIPE), self.recipe.as_yaml().encode())
