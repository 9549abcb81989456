"""Averages a model's weights over steps; the average often reconstructs better than the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Exponential moving average of all parameters and buffers.

    Attributes:
        values: Averaged tensors by name.
        steps: Updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.steps = 0
        self.values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the current weights. The decay grows as (1 + n) / (10 + n) up to its limit, so that early weights fade soon."""
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, tensor in model.state_dict().items():
            self.values[name].lerp_(tensor, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Gives the model the averaged weights while this context lasts."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averages and the number of updates, for a checkpoint."""
        return {**self.values, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the state of a checkpoint."""
        self.steps = int(state["steps"])
        for name, value in self.values.items():
            value.copy_(state[name])
