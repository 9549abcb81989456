"""What a person hands to a session: frames to start from and actions, checked before the model sees them.

A model takes anything of the right shape without complaint, and predicts nonsense from bytes taken for shares of one, or from a
single value that is no number. So values are checked too, at the price of one pass over a few frames.
"""

import numpy as np
import torch

from pipeline.common.errors import ConfigError

Action = torch.Tensor | np.ndarray | list[float]
Frames = torch.Tensor | np.ndarray
_SLACK = 1e-2  # that resizing and rounding may leave around [0, 1]


def checked_context(frames: Frames, context: int, side: int, device: torch.device) -> torch.Tensor:
    """Context frames as (B, t, 3, S, S) fp32 in [0, 1].

    Args:
        frames: (t, 3, S, S) or (B, t, 3, S, S), in [0, 1], or bytes in 0 to 255.
        context: t of the model.
        side: S of the model.
        device: Where they go.

    Raises:
        ConfigError: They are of another shape or range, or hold what is no number.
    """
    given = torch.as_tensor(frames)
    if given.ndim not in (4, 5) or given.shape[-4:] != (context, 3, side, side):
        raise ConfigError(
            f"context frames have shape {tuple(given.shape)}; this model starts from ({context}, 3, {side}, {side}) in [0, 1]"
        )
    whole = given if given.ndim == 5 else given[None]
    if given.dtype == torch.uint8:
        return whole.to(device, torch.float32) / 255
    whole = whole.to(device, torch.float32)
    low, high = (value.item() for value in torch.aminmax(whole))
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise ConfigError(
            f"context frames have values from {low:g} to {high:g}; they must be numbers in [0, 1], or bytes (uint8) in 0 to 255"
        )
    return whole.clamp(0, 1)


def checked_action(action: Action | None, action_dim: int, rows: int, device: torch.device) -> torch.Tensor | None:
    """An action as fp32, (A,) for all rows or (R, A); None for a model without actions.

    Args:
        action: What `Session.step` was given.
        action_dim: A of the model; 0 for one without actions.
        rows: R of the session.
        device: Where it goes.

    Raises:
        ConfigError: It is missing, of another shape or not finite, or given to a model without actions.
    """
    if not action_dim:
        if action is not None:
            raise ConfigError("this model was trained without actions: call step() without one")
        return None
    if action is None:
        raise ConfigError(f"this model is conditioned on actions: call step(action) with ({action_dim},) numbers")
    try:
        taken = torch.as_tensor(action, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"an action is ({action_dim},) numbers, not {action!r}") from error
    if tuple(taken.shape) not in {(action_dim,), (rows, action_dim)}:
        raise ConfigError(
            f"an action has shape {tuple(taken.shape)}; this model takes ({action_dim},) for all rows, "
            f"or ({rows}, {action_dim})"
        )
    if not torch.isfinite(taken).all():
        raise ConfigError(f"an action holds what is no finite number: {taken.tolist()}")
    return taken
