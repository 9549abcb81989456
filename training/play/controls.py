"""What a person can steer: one slider a number of an action, with the range that the data's own actions span.

A model was trained on the actions of its data, so what lies far outside them means nothing to it. Where the episodes at hand
hold no actions of the model's dimension, sliders go from -1 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.errors import ConfigError
from pipeline.episodes.episode import Episode

_DEFAULT_RANGE = (-1.0, 1.0)
_GREATEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Slider:
    """One number of an action.

    Attributes:
        name: `action 1` and so on; what the numbers mean, a data set says in words.
        low: Least value.
        high: Greatest value, above `low`.
    """

    name: str
    low: float
    high: float


def sliders_for(action_dim: int, episodes: Sequence[Episode]) -> list[Slider]:
    """The sliders of a model.

    Args:
        action_dim: Numbers of an action; 0 gives no sliders.
        episodes: Whose actions show what is usual.
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
    """An episode's actions (T, A), float32; None where it has none of this dimension, or some that aren't finite."""
    action = episode.action
    if not action_dim or action is None or action.shape[1] != action_dim or not np.isfinite(action).all():
        return None
    return action


def read_action(value: object, action_dim: int) -> list[float] | None:
    """An action as a page sends it, checked.

    Args:
        value: Parsed JSON; null or an empty list for a model without actions.
        action_dim: Numbers of an action.

    Raises:
        ConfigError: It is no list of so many finite numbers.
    """
    if not action_dim and value in (None, []):
        return None
    numbers = value if isinstance(value, list) else []
    fits = len(numbers) == action_dim and all(
        isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= _GREATEST for number in numbers
    )
    if not fits:
        raise ConfigError(f"an action of this model is a list of {action_dim} finite numbers")
    return [float(number) for number in numbers]
