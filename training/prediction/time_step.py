"""The time between a clip's frames: what the model learned, whatever the rate of its input.

A model that learned frames a third of a second apart and is shown thirty a second predicts badly and says nothing. So an input
of known rate is sampled at the model's own pace, unless the user says otherwise; and what was done is always told.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.common.errors import ConfigError
from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.sampling import EpisodeShape

# Below this share of a frame between neighbours an input is too slow, and not merely of a rounded rate.
_TOO_SLOW = 0.9


@dataclass(frozen=True)
class TimeStep:
    """How frames of an input are chosen.

    Attributes:
        clips: With the stride to use.
        told: How that was found, in words.
        doubtful: Whether the pace may be another than the model's, which a user should know.
    """

    clips: ClipsConfig
    told: str
    doubtful: bool = False


def fit_time_step(
    shape: EpisodeShape,
    clips: ClipsConfig,
    learned: Mapping[str, float | None],
    of_shard: bool,
    given: bool = False,
    wanted: str | None = None,
) -> TimeStep:
    """The stride at which frames of an episode lie as far apart as those that the model learned from.

    Args:
        shape: Of the episode.
        clips: As the model was trained, or as the user says.
        learned: See `TrainedOn.seconds_per_frame`.
        of_shard: Whether the episode was ingested, so that its data set's name and base step mean something.
        given: Whether the stride is the user's.
        wanted: Data set whose time step is taken; None takes that of the episode's own, else the nearest.

    Raises:
        ConfigError: The model doesn't know the time step of `wanted`, or nobody the episode's rate.
    """
    known = {name: seconds for name, seconds in learned.items() if seconds is not None}
    if wanted is not None and wanted not in known:
        names = f"it knows those of {', '.join(sorted(known))}" if known else "it knows none: say --clips.stride"
        raise ConfigError(f"--dataset {wanted}: the model doesn't know its time step; {names}")
    if wanted is not None and given:
        raise ConfigError("--dataset and --clips.stride both say how far apart frames lie: leave one of them out")
    if given and shape.rate is None and clips.stride.endswith("s") and not of_shard:
        raise ConfigError(
            f"--clips.stride {clips.stride} needs a frame rate, and the input says none: give --rate HZ, or a number of frames"
        )
    if given:
        return TimeStep(clips, f"clips.stride {clips.stride}, as asked for")
    if of_shard and shape.dataset in learned and wanted is None:
        return TimeStep(clips, f"as clips of {shape.dataset} were cut for training")
    if shape.rate is None:
        return _of_unknown_rate(shape.dataset, clips, bool(known), wanted)
    if not known:
        return _of_unknown_step(shape, clips, of_shard)
    name = wanted or _nearest(known, shape.rate)
    stride = known[name] * shape.rate
    told = f"{known[name]:.3g} s between frames, as the model learned {name}"
    if len(known) > 1 and wanted is None:
        told += f", the nearest of its {len(known)} data sets (--dataset chooses another)"
    if stride < _TOO_SLOW:
        told = (
            f"frames lie {1 / shape.rate:.3g} s apart, more than the {known[name]:.3g} s of {name} that the model learned: "
            "every frame is taken, and things move faster than the model knows"
        )
    # Plain decimals, as `clips.stride` takes them; one frame is the least.
    seconds = f"{known[name]:.9f}s" if stride > 1 else "1"
    return TimeStep(dataclasses.replace(clips, stride=seconds), told, doubtful=stride < _TOO_SLOW)


def _nearest(known: Mapping[str, float], rate: float) -> str:
    """The data set whose time step is nearest, by ratio, to the time between an input's frames."""
    return min(sorted(known), key=lambda name: abs(math.log(known[name] * rate)))


def _of_unknown_rate(dataset: str, clips: ClipsConfig, matters: bool, wanted: str | None) -> TimeStep:
    if clips.stride.endswith("s") or wanted is not None:
        raise ConfigError(
            f"the time between the model's frames is known, and the frame rate of {dataset} is not: say it (--rate HZ of "
            "predict, play and ingest), or give --clips.stride as a number of frames"
        )
    told = f"clips.stride {clips.stride}: nobody says how many frames a second the input has"
    return TimeStep(clips, told + (" (--rate HZ does)" if matters else ""), doubtful=True)


def _of_unknown_step(shape: EpisodeShape, clips: ClipsConfig, of_shard: bool) -> TimeStep:
    if clips.stride.endswith("s"):
        return TimeStep(clips, f"clips.stride {clips.stride}, as the model was trained")
    told = "the model doesn't say how much time lies between its frames: "
    if clips.stride == "reference" and not of_shard:
        # What ingest does with a data set of this rate that has no published step: a third of a second.
        told += "about a third of a second, the rule of the published models, is taken (--clips.stride says otherwise)"
    elif clips.stride == "reference":
        told += f"the published rule is taken for {shape.dataset} (--clips.stride says otherwise)"
    else:
        told += f"clips.stride {clips.stride}, as it was trained, is taken (--clips.stride says otherwise)"
    return TimeStep(clips, told, doubtful=not of_shard)
