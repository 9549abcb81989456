"""The low-rank updates (LoRA) of a network in training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class Updates:
    """Low-rank updates of a network.

    Attributes:
        config: peft's configuration.
        frozen: Frozen weights under the updates by name, in fp32 on the CPU; empty on ranks that don't export.
    """

    config: "LoraConfig"
    frozen: dict[str, torch.Tensor]
