"""How futures are drawn, by what a command line says; the same for predicting, playing and evaluating."""

from typing import Any

from training.prediction.clip_prediction import Sampling


def sampling_of(options: Any, samples: int | None = None) -> Sampling:
    """How futures are drawn by what was given.

    Args:
        options: As parsed.
        samples: In place of `--samples`, where the command decides.

    Raises:
        ConfigError: A number can't be.
    """
    number = options.samples if samples is None else samples
    return Sampling(number, options.top_k or None, options.temperature, options.seed)
