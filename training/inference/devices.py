"""Where a model runs: a device that its caller names, checked before a model is read for it."""

import torch

from pipeline.common.errors import ConfigError


def usable_device(wanted: str | torch.device | None) -> torch.device:
    """The device that was asked for, or the GPU where there is one.

    Raises:
        ConfigError: This machine, or this torch, has no such device; the message says what there is.
    """
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        # Tried, since each kind says in another way that it isn't there. `meta` holds no numbers.
        usable = torch.zeros(1, device=device).item() == 0
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError):
        usable = False
    if not usable:
        raise ConfigError(f"device {str(wanted)!r} can't be used here; there is {', '.join(_devices())}")
    return device


def _devices() -> list[str]:
    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found
