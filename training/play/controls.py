"""The sliders of the page: one per number of an action, with the range of the recorded actions.

An action far outside the actions of its training means nothing to a model. Without recorded actions of the model's dimension,
sliders range from -1 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.errors import ConfigError
from pipeline.episodes.episode import Episode

_DEFAULT_RANGE = (-1.0, 1.0)
_MAX_NUMBER = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Slider:
    """One number of an action.

    Attributes:
        name: `action 1` and so on; the page shows the data set's own description below.
        low: Lowest value.
        high: Highest value, above `low`.
    """

    name: str
    low: float
    high: float


def sliders_for(action_dim: int, episodes: Sequence[Episode]) -> list[Slider]:
    """Returns the sliders of a model.

    Args:
        action_dim: Dimension of an action; 0 gives no sliders.
        episodes: Episodes whose actions set the ranges.
    """
    recorded = [actions for episode in episodes if (actions := recorded_actions(episode, action_dim)) is not None]
    if not recorded:
        return [Slider(f"action {number}", *_DEFAULT_RANGE) for number in range(1, action_dim + 1)]
    every = np.concatenate(recorded)
    return [_slider(f"action {number}", column) for number, column in enumerate(every.T, start=1)]


def _slider(name: str, values: np.ndarray) -> Slider:
    low, high = float(values.min()), float(values.max())
    return Slider(name, low, high) if low < high else Slider(name, low - 1, high + 1)


def recorded_actions(episode: Episode, action_dim: int) -> np.ndarray | None:
    """Returns an episode's actions (T, A), float32; None if they are missing, have another dimension, or are not finite."""
    action = episode.action
    if not action_dim or action is None or action.shape[1] != action_dim or not np.isfinite(action).all():
        return None
    return action


def read_action(value: object, action_dim: int) -> list[float] | None:
    """Returns the action that a page sent, after checks.

    Args:
        value: Parsed JSON; null or an empty list for a model without actions.
        action_dim: Dimension of an action.

    Raises:
        ConfigError: The value is not a list of `action_dim` finite numbers.
    """
    if not action_dim and value in (None, []):
        return None
    numbers = value if isinstance(value, list) else []
    fits = len(numbers) == action_dim and all(
        isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= _MAX_NUMBER for number in numbers
    )
    if not fits:
        raise ConfigError(f"an action must be a list of {action_dim} finite numbers")
    return [float(number) for number in numbers]
