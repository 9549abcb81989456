"""Checks context frames and actions before a session gives them to the model.

A model accepts any values of the right shape and would predict nonsense from bytes in the place of [0, 1], or from NaN.
"""

import numpy as np
import torch

from pipeline.common.errors import ConfigError

Action = torch.Tensor | np.ndarray | list[float]
Frames = torch.Tensor | np.ndarray
_SLACK = 1e-2  # resizing and rounding may exceed [0, 1] by this much


def checked_context(frames: Frames, context: int, side: int, device: torch.device) -> torch.Tensor:
    """Returns context frames as (B, t, 3, S, S) fp32 in [0, 1].

    Args:
        frames: (t, 3, S, S) or (B, t, 3, S, S), in [0, 1], or uint8 in 0 to 255.
        context: Number of context frames t of the model.
        side: Height and width S of the model's frames, in pixels.
        device: Device of the result.

    Raises:
        ConfigError: The frames have another shape or range, or contain NaN.
    """
    given = torch.as_tensor(frames)
    if given.ndim not in (4, 5) or given.shape[-4:] != (context, 3, side, side):
        raise ConfigError(
            f"context frames have shape {tuple(given.shape)}; this model needs ({context}, 3, {side}, {side}) in [0, 1]"
        )
    whole = given if given.ndim == 5 else given[None]
    if given.dtype == torch.uint8:
        return whole.to(device, torch.float32) / 255
    whole = whole.to(device, torch.float32)
    low, high = (value.item() for value in torch.aminmax(whole))
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise ConfigError(f"context frames have values from {low:g} to {high:g}; use numbers in [0, 1], or uint8 in 0 to 255")
    return whole.clamp(0, 1)


def checked_action(action: Action | None, action_dim: int, rows: int, device: torch.device) -> torch.Tensor | None:
    """Returns an action as fp32, (A,) for all rows or (R, A); None for a model without actions.

    Args:
        action: Argument of `Session.step`.
        action_dim: Dimension A of the model's actions; 0 for a model without actions.
        rows: Number of rows R of the session.
        device: Device of the result.

    Raises:
        ConfigError: The action is missing, has another shape, is not finite, or the model has no actions.
    """
    if not action_dim:
        if action is not None:
            raise ConfigError("this model was trained without actions: call step() without one")
        return None
    if action is None:
        raise ConfigError(f"this model needs actions: call step(action) with ({action_dim},) numbers")
    try:
        taken = torch.as_tensor(action, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"an action must be ({action_dim},) numbers, not {action!r}") from error
    if tuple(taken.shape) not in {(action_dim,), (rows, action_dim)}:
        raise ConfigError(
            f"an action has shape {tuple(taken.shape)}; this model takes ({action_dim},) for all rows, "
            f"or ({rows}, {action_dim})"
        )
    if not torch.isfinite(taken).all():
        raise ConfigError(f"an action must be finite, not {taken.tolist()}")
    return taken
