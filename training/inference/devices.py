"""Chooses and checks the device a model runs on, before the model is loaded."""

import torch

from pipeline.common.errors import ConfigError


def usable_device(wanted: str | torch.device | None) -> torch.device:
    """Returns the device `wanted`; None means the GPU if there is one, else the CPU.

    Raises:
        ConfigError: This machine or this build of torch has no such device; the message lists the available ones.
    """
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        # Try it, because each kind of device reports its absence differently. `meta` fails here: it holds no numbers.
        usable = torch.zeros(1, device=device).item() == 0
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError):
        usable = False
    if not usable:
        raise ConfigError(f"device {str(wanted)!r} is not available; use one of: {', '.join(_devices())}")
    return device


def _devices() -> list[str]:
    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found
