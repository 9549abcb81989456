"""Makes one optimizer step after the other: batches go into the engine, losses come out.

A step's samples, learning rate and dropout follow from its number, so training and replay only need to say which step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from training.data.loader import Batch, BatchLoader, BatchReader
from training.distributed import Processes
from training.trainer.checkpoints.loading import load_checkpoint
from training.trainer.deepspeed_engine import set_learning_rate, start_engine, take_step
from training.trainer.nonfinite import propagate_nonfinite
from training.trainer.run import Run
from training.trainer.schedule import dropout_seed


@dataclass(frozen=True)
class TrainStepResult:
    """Result of a step.

    Attributes:
        losses: Loss of each of this rank's micro steps, on the device.
        token_losses: The part of each loss that is the mean loss per target token.
        applied: Whether the parameters changed; the same on all ranks.
        waited: Time spent waiting for batches, in seconds.
    """

    losses: list[torch.Tensor]
    token_losses: list[torch.Tensor]
    applied: bool
    waited: float


class TrainStep:
    """Makes the steps of a run in one of its processes, starting from the run's checkpoint.

    Args:
        run: The run.
        processes: Its processes, in a process group.
        steps: Total number of steps up to which batches are loaded.

    Attributes:
        engine: DeepSpeed's engine.
        reader: Reads any samples of the run.
        loader: Iterates over the batches that `make` takes.
    """

    def __init__(self, run: Run, processes: Processes, steps: int) -> None:
        self._run = run
        self._processes = processes
        columns = (bool(run.network.action_dim), run.network.has_reward)
        self.reader = BatchReader(run.store, run.order, *columns, pinned=processes.device.type == "cuda")
        training = run.recipe.training
        self.loader = BatchLoader(self.reader, run.plan, range(run.first_step, steps), training.workers)
        self.engine = start_engine(run.network, training, run.engine_config, processes)
        if run.checkpoint is not None:
            load_checkpoint(run.checkpoint, self.engine, processes)

    def make(self, step: int, batches: Iterator[Batch]) -> TrainStepResult:
        """Makes step number `step`, counted from 0, in order. Call it on all ranks."""
        engine, plan, training = self.engine, self._run.plan, self._run.recipe.training
        waited = self.loader.waited
        set_learning_rate(engine, self._run.learning_rate(step))
        losses, token_losses = [], []
        applied = True
        for micro_step in range(plan.accumulation):
            batch = next(batches).to(self._processes.device)
            torch.manual_seed(dropout_seed(training.seed, step, micro_step, plan.rank))
            output = engine(*batch)
            engine.backward(propagate_nonfinite(output.loss))
            applied = take_step(engine, training.gradient_norm)
            losses.append(output.loss.detach())
            token_losses.append(output.token_loss)
        return TrainStepResult(losses, token_losses, applied, self.loader.waited - waited)
