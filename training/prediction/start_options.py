"""The options by which a command line names a model and the episodes that its predictions start from, and opening both.

The same for predicting and playing. A model is opened last: whatever is wrong with the rest is said before seconds go by.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from training.prediction.episodes import choose_episodes, holds_shards, open_episodes
from training.prediction.time_step import fit_time_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """An episode that predictions start from.

    Attributes:
        episode: With its rate as the user says it, where that was given.
        clips: How clips of it are cut, the stride such that frames lie as far apart as the model knows it.
        time_step: How the stride was found, in words.
        trained_on: Whether the model was trained on the episode; None where nobody knows.
    """

    episode: Episode
    clips: ClipsConfig
    time_step: str
    trained_on: bool | None = None


@dataclass(frozen=True)
class Opened:
    """What a command line named: a model, the folder it is from, and where its predictions start."""

    model: WorldModel
    folder: Path
    starts: list[Start]


def open_start(
    given: Mapping[str, Any],
    options: Any,
    clips: ClipsConfig,
    count: int,
    wanted: str | None = None,
    asked: bool = True,
) -> Opened:
    """The model, the episodes, and how clips of them are cut.

    Args:
        given: Keys of the recipe's section that the user set.
        options: As parsed.
        clips: The recipe's section.
        count: Episodes, from the first on.
        wanted: Key or number of one, in place of the first ones.
        asked: Whether the user gave `count`.

    Raises:
        SourceError: The input or the model can't be read, or there is no such episode.
        ConfigError: An option can't be.
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
        log.warning("%s has frames of %d pixels, enlarged to the %d that the model sees", options.input, least, side)
    return Opened(model, folder, starts)


def _require_held_out(clips: ClipsConfig, trained: TrainedOn) -> None:
    """Refuse to call episodes held out that the model was trained on, and tell where nobody knows."""
    if trained.held_out is None:
        log.warning("the model doesn't say what it was trained on: clips.held_out %g is assumed", clips.held_out)
    elif clips.held_out > trained.held_out:
        raise ConfigError(
            f"clips.held_out is {clips.held_out:g}, but the model was trained without {trained.held_out:g} of the episodes: "
            "leave it out, or leave --held_out out"
        )


def _start(episode: Episode, clips: ClipsConfig, trained: TrainedOn, options: Any, stride_given: bool) -> Start:
    """An episode with the stride that fits it, told where a user should know of it."""
    of_shard, rate = holds_shards(options.input), episode.rate
    if options.rate is not None:
        if rate is not None and not math.isclose(rate, options.rate, rel_tol=1e-3):
            log.warning("--rate %g counts in place of the %.6g Hz that %s says", options.rate, rate, options.input)
        rate = options.rate
    # A file of somebody else has no published step; as where one is ingested with --rate, it follows from the rate.
    base_step = episode.base_step if of_shard or rate is None else rate
    known = dataclasses.replace(episode, rate=rate, base_step=base_step)
    shape = EpisodeShape.of(known)
    step = fit_time_step(shape, clips, trained.seconds_per_frame, of_shard, stride_given, options.dataset)
    log.log(logging.WARNING if step.doubtful else logging.INFO, "%s: %s", episode.key, step.told)
    return Start(known, step.clips, step.told, _trained_on(episode, trained, of_shard))


def _trained_on(episode: Episode, trained: TrainedOn, of_shard: bool) -> bool | None:
    # Of a data set that the model doesn't name, an earlier model that it was started from may have had clips.
    if not of_shard or trained.held_out is None or episode.dataset not in trained.seconds_per_frame:
        return None
    return trained.saw(episode.dataset, episode.key, split_of_key(episode.key), trained.held_out)


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
