"""Chooses the time between a clip's frames: the one the model learned, for any frame rate of the input.

A model that learned frames 1/3 s apart predicts badly from frames 1/30 s apart, without an error. So an input of known frame
rate is sampled at the model's time step unless the user sets a stride, and the choice is always logged.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.common.errors import ConfigError
from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.sampling import EpisodeShape

# Below this stride the input is too slow; above it, the rate is only rounded.
_TOO_SLOW = 0.9


@dataclass(frozen=True)
class TimeStep:
    """The chosen time step.

    Attributes:
        clips: Clips section with the stride to use.
        reason: Text that says how the stride was chosen.
        doubtful: Whether the time step may differ from the model's; then the user gets a warning.
    """

    clips: ClipsConfig
    reason: str
    doubtful: bool = False


def fit_time_step(
    shape: EpisodeShape,
    clips: ClipsConfig,
    learned: Mapping[str, float | None],
    ingested: bool,
    given: bool = False,
    wanted: str | None = None,
) -> TimeStep:
    """Returns the stride that gives an episode's clips the time step that the model learned.

    Args:
        shape: Shape of the episode.
        clips: Clips section of the model's training or of the user.
        learned: Seconds per frame of each data set in training, as in `TrainedOn.seconds_per_frame`.
        ingested: Whether the episode was ingested, so that its data set name and base step are known.
        given: Whether the user set the stride.
        wanted: Data set whose time step to use; None means the episode's data set, or else the nearest time step.

    Raises:
        ConfigError: The time step of `wanted` or the frame rate of the episode is unknown.
    """
    known = {name: seconds for name, seconds in learned.items() if seconds is not None}
    if wanted is not None and wanted not in known:
        names = f"it knows the time steps of {', '.join(sorted(known))}" if known else "it knows none: use --clips.stride"
        raise ConfigError(f"--dataset {wanted}: the model does not know the time step of this data set; {names}")
    if wanted is not None and given:
        raise ConfigError("--dataset and --clips.stride both set the time step: leave one of them out")
    if given and shape.rate is None and clips.stride.endswith("s") and not ingested:
        raise ConfigError(
            f"--clips.stride {clips.stride} needs a frame rate, but the input has none: use --rate HZ, or a stride in frames"
        )
    if given:
        return TimeStep(clips, f"clips.stride {clips.stride}, set by the user")
    if ingested and shape.dataset in learned and wanted is None:
        return TimeStep(clips, f"the stride of {shape.dataset} in training")
    if shape.rate is None:
        return _of_unknown_rate(shape.dataset, clips, bool(known), wanted)
    if not known:
        return _of_unknown_step(shape, clips, ingested)
    name = wanted or _nearest(known, shape.rate)
    stride = known[name] * shape.rate
    reason = f"{known[name]:.3g} s between frames, learned from {name}"
    if len(known) > 1 and wanted is None:
        reason += f", the nearest of {len(known)} data sets (--dataset chooses another)"
    if stride < _TOO_SLOW:
        reason = (
            f"frames are {1 / shape.rate:.3g} s apart, more than the {known[name]:.3g} s that the model learned from {name}: "
            "using every frame; motion is faster than in training"
        )
    # Plain decimals, as `clips.stride` needs them; the minimum is one frame.
    seconds = f"{known[name]:.9f}s" if stride > 1 else "1"
    return TimeStep(dataclasses.replace(clips, stride=seconds), reason, doubtful=stride < _TOO_SLOW)


def _nearest(known: Mapping[str, float], rate: float) -> str:
    """Returns the data set whose time step has the ratio nearest to 1 with that of the input."""
    return min(sorted(known), key=lambda name: abs(math.log(known[name] * rate)))


def _of_unknown_rate(dataset: str, clips: ClipsConfig, matters: bool, wanted: str | None) -> TimeStep:
    if clips.stride.endswith("s") or wanted is not None:
        raise ConfigError(
            f"the model's time step is known, but the frame rate of {dataset} is not: set --rate HZ (predict, play, ingest), "
            "or give --clips.stride in frames"
        )
    reason = f"clips.stride {clips.stride}; the frame rate of the input is unknown"
    return TimeStep(clips, reason + (" (set it with --rate HZ)" if matters else ""), doubtful=True)


def _of_unknown_step(shape: EpisodeShape, clips: ClipsConfig, ingested: bool) -> TimeStep:
    if clips.stride.endswith("s"):
        return TimeStep(clips, f"clips.stride {clips.stride}, as in training")
    reason = "the model does not record its time step: "
    if clips.stride == "reference" and not ingested:
        # Ingest uses 1/3 s for a data set of known rate without a published step.
        reason += "using about 1/3 s, the rule of the published models (--clips.stride changes it)"
    elif clips.stride == "reference":
        reason += f"using the published rule for {shape.dataset} (--clips.stride changes it)"
    else:
        reason += f"using clips.stride {clips.stride}, as in training (--clips.stride changes it)"
    return TimeStep(clips, reason, doubtful=not ingested)
