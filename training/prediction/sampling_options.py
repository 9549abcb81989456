"""The options by which a command line says how futures are drawn; the same for predicting, playing and evaluating."""

from typing import Any

from pipeline.command import CommandParser
from training.prediction.clip_prediction import Sampling


def add_sampling_options(
    parser: CommandParser, samples: int | None = 1, of_samples: str = "", temperature: float = 1.0
) -> None:
    """Add `--samples`, `--top_k`, `--temperature` and `--seed`; `sampling_of` reads them.

    Args:
        parser: Of the command.
        samples: Default; None leaves the number to the command.
        of_samples: What more there is to say of `--samples`.
        temperature: Default.
    """
    kind = int if samples is not None else int | None
    parser.add_argument("--samples", type=kind, default=samples, help=f"Futures to draw from every start{of_samples}.")
    parser.add_argument("--top_k", type=int, default=100, help="Draw from the k likeliest ids only; 0 allows all.")
    parser.add_argument("--temperature", type=float, default=temperature, help="Of the draw; 0 always takes the likeliest id.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed draws the same futures.")


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
