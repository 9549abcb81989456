"""Types of the training engine, as far as training uses DeepSpeed's."""

from typing import Any, Protocol

import torch

from training.model.world_model import NetworkOutput


class ParameterGroups(Protocol):
    """An optimizer's hyper-parameters."""

    param_groups: list[dict[str, Any]]


class Network(Protocol):
    """A network, or the engine around it, for forward passes."""

    def __call__(self, *batch: torch.Tensor | None) -> NetworkOutput:
        """Computes the losses of a batch."""

    def eval(self) -> object:
        """Switches to evaluation mode."""

    def train(self) -> object:
        """Switches to training mode."""


class Engine(Network, Protocol):
    """DeepSpeed's engine."""

    module: torch.nn.Module
    optimizer: ParameterGroups
    basic_optimizer: torch.optim.Optimizer
    global_rank: int

    def backward(self, loss: torch.Tensor) -> object:
        """Computes gradients of a micro step."""

    def step(self) -> None:
        """Ends a micro step; the last one of a step updates the parameters."""

    def was_step_applied(self) -> bool:
        """Returns whether the last step updated the parameters."""

    def is_gradient_accumulation_boundary(self) -> bool:
        """Returns whether this is the last micro step of a step."""

    def zero_optimization_stage(self) -> int:
        """Returns the ZeRO stage."""

    def get_global_grad_norm(self) -> float | torch.Tensor | None:
        """Returns the gradient norm of the last step before clipping; None without ZeRO."""

    def save_checkpoint(self, save_dir: str, *, tag: str, save_latest: bool) -> object:
        """Writes this rank's part of the state."""

    def load_checkpoint(self, load_dir: str, *, tag: str) -> tuple[str | None, object]:
        """Loads this rank's part of the state; returns None instead of the folder if it finds no file."""

    def compile(self) -> None:
        """Compiles the network."""

    def destroy(self) -> None:
        """Releases the engine's memory."""
