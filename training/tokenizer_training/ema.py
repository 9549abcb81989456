"""A running average of a model's weights, which often reconstructs better than the last weights do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Exponential moving average of all parameters and buffers.

    Attributes:
        values: Name -> averaged tensor.
        steps: Updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.steps = 0
        self.values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights in. The decay grows as (1 + n) / (10 + n) up to its own, so that the start is soon forgotten."""
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, tensor in model.state_dict().items():
            self.values[name].lerp_(tensor, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights, until the end of the context."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {**self.values, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over from a checkpoint."""
        self.steps = int(state["steps"])
        for name, value in self.values.items():
            value.copy_(state[name])
