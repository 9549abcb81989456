"""Opens the model and the episodes that a command line names, for `predict` and `play`.

It opens the model last, because that takes seconds: other errors show first.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.common.errors import ConfigError
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import Episode
from pipeline.episodes.naming import split_of_key
from tokenize_offline.clips.sampling import EpisodeShape
from training.inference.session import WorldModel
from training.model.files.clip_config import clips_as_trained
from training.model.files.locate import locate_model
from training.model.files.trained_on import TrainedOn, read_trained_on
from training.prediction.clip_prediction import Sampling
from training.prediction.episodes import choose_episodes, is_ingested, open_episodes
from training.prediction.time_step import fit_time_step

log = logging.getLogger(__name__)


class StartOptions(Protocol):
    """The options of `training.cli.options.add_start_options`."""

    model_dir: str
    input: str
    camera: str | None
    held_out: bool
    rate: float | None
    dataset: str | None


class SamplingOptions(Protocol):
    """The options of `training.cli.options.add_sampling_options`."""

    samples: int | None
    top_k: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Start:
    """An episode that predictions start from.

    Attributes:
        episode: The episode, with the frame rate of `--rate` if given.
        clips: Clips section with a stride that gives the model's time step.
        time_step: Text that says how the stride was chosen.
        trained_on: Whether the model was trained on the episode; None if unknown.
    """

    episode: Episode
    clips: ClipsConfig
    time_step: str
    trained_on: bool | None = None


@dataclass(frozen=True)
class Opened:
    """The model that a command line names, its folder, and the episodes that predictions start from."""

    model: WorldModel
    folder: Path
    starts: list[Start]


def open_start(
    given: Mapping[str, object],
    options: StartOptions,
    clips: ClipsConfig,
    count: int,
    wanted: str | None = None,
    asked: bool = True,
) -> Opened:
    """Opens the model and the episodes, and decides how to cut clips.

    Args:
        given: Keys of the recipe's section `clips` that the user set.
        options: Parsed options.
        clips: The recipe's section `clips`.
        count: Number of episodes, from the first.
        wanted: Key or number of the only episode; None takes the first ones.
        asked: Whether the user gave `count`.

    Raises:
        SourceError: The input or the model cannot be read, or the episode does not exist.
        ConfigError: An option is invalid.
    """
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise ConfigError(f"--rate must be a number of frames per second above 0, not {options.rate}")
    folder = locate_model(options.model_dir)
    fitted, trained = clips_as_trained(folder, clips, given), read_trained_on(folder)
    if options.held_out:
        _require_held_out(fitted, trained)
    held_out = fitted.held_out if options.held_out else None
    episodes = choose_episodes(open_episodes(options.input, options.camera), wanted, count, held_out, options.input, asked)
    starts = [_start(episode, fitted, trained, options, "stride" in given) for episode in episodes]
    model = WorldModel.from_pretrained(folder)
    side = model.tokenizer.config.resolution
    if (least := min(min(episode.height, episode.width) for episode in episodes)) < side:
        log.warning("%s has frames of %d pixels; they are enlarged to the model's %d pixels", options.input, least, side)
    return Opened(model, folder, starts)


def _require_held_out(clips: ClipsConfig, trained: TrainedOn) -> None:
    """Refuses to treat episodes as held out that the model was trained on; logs where this is unknown."""
    if trained.held_out is None:
        log.warning("the model does not record what it was trained on: assuming clips.held_out %g", clips.held_out)
    elif clips.held_out > trained.held_out:
        raise ConfigError(
            f"clips.held_out is {clips.held_out:g}, but training held out a fraction of {trained.held_out:g}: "
            "leave out clips.held_out, or leave out --held_out"
        )


def _start(episode: Episode, clips: ClipsConfig, trained: TrainedOn, options: StartOptions, stride_given: bool) -> Start:
    """Returns an episode with the stride for it, and logs how the stride was chosen."""
    ingested, rate = is_ingested(options.input), episode.rate
    if options.rate is not None:
        if rate is not None and not math.isclose(rate, options.rate, rel_tol=1e-3):
            log.warning("using --rate %g, not the %.6g Hz of %s", options.rate, rate, options.input)
        rate = options.rate
    # An npz or video has no published step. The step follows from the rate, as in an ingest with --rate.
    base_step = episode.base_step if ingested or rate is None else rate
    known = dataclasses.replace(episode, rate=rate, base_step=base_step)
    shape = EpisodeShape.of(known)
    step = fit_time_step(shape, clips, trained.seconds_per_frame, ingested, stride_given, options.dataset)
    log.log(logging.WARNING if step.doubtful else logging.INFO, "%s: %s", episode.key, step.reason)
    return Start(known, step.clips, step.reason, _trained_on(episode, trained, ingested))


def _trained_on(episode: Episode, trained: TrainedOn, ingested: bool) -> bool | None:
    # An earlier model that this one started from may have seen a data set that this one does not name.
    if not ingested or trained.held_out is None or episode.dataset not in trained.seconds_per_frame:
        return None
    return trained.saw(episode.dataset, episode.key, split_of_key(episode.key), trained.held_out)


def sampling_of(options: SamplingOptions, samples: int | None = None) -> Sampling:
    """Returns the sampling options of a command line.

    Args:
        options: Parsed options.
        samples: Number of samples if the command sets it; None takes `--samples`.

    Raises:
        ConfigError: An option is invalid.
    """
    number = options.samples if samples is None else samples
    return Sampling(1 if number is None else number, options.top_k or None, options.temperature, options.seed)
