"""Turns a command line into an evaluation, and lists how it differs from a published protocol."""

import dataclasses
import typing
from collections.abc import Container, Sequence
from dataclasses import dataclass

from pipeline.common.errors import ConfigError
from pipeline.config.recipe import ClipsConfig
from training.evaluation.data import TestSet, Wanted
from training.evaluation.metric_names import Metric
from training.evaluation.protocols import PROTOCOLS, Protocol, require_fit
from training.inference.session import WorldModel
from training.prediction.clip_prediction import Sampling, clips_for
from training.prediction.start_options import SamplingOptions, sampling_of


class EvaluateOptions(SamplingOptions, typing.Protocol):
    """The options of `training.cli.evaluate`."""

    model_dir: str
    shards: list[str]
    output: str
    protocol: str | None
    metrics: list[Metric]
    vgg_weights: str | None
    i3d_weights: str | None
    split: str | None
    held_out: bool
    episodes: int | None
    start: int
    steps: int | None
    samples_at_once: int


class ProtocolEntry(typing.TypedDict):
    """The card's entry on how clips were cut and predicted."""

    name: str | None
    context: int
    future: int
    resolution: int
    samples: int
    start: int
    stride: str
    goal: bool
    with_actions: bool
    frames: str
    departures: list[str]
    published: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation.

    Attributes:
        wanted: Which episodes to evaluate, and how to cut their clips.
        sampling: Sampling options.
        at_once: Samples per batch.
        protocol: Name of a published protocol; None for none.
    """

    wanted: Wanted
    sampling: Sampling
    at_once: int
    protocol: str | None

    @property
    def length(self) -> int:
        """Number of frames per clip."""
        return self.wanted.clips.length or 0


def require_valid(options: EvaluateOptions) -> None:
    """Checks the numbers of a command line, before a model is opened.

    Raises:
        ConfigError: A number is too small.
    """
    numbers = {"samples": options.samples, "episodes": options.episodes, "samples_at_once": options.samples_at_once}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"--{name} must be at least 1, not {number}")
    if options.start < 0:
        raise ConfigError(f"--start must be at least 0, not {options.start}")


def plan(model: WorldModel, clips: ClipsConfig, options: EvaluateOptions, given: Container[str] = ()) -> Evaluation:
    """Returns the evaluation that a command line asks for.

    Args:
        model: Model to evaluate.
        clips: Clips section: the user's keys, and those of the model's training for the rest.
        options: Parsed options.
        given: Keys of the section that the user set.

    Raises:
        ConfigError: Options contradict each other, the protocol or the model.
    """
    samples, episodes, steps = options.samples or 1, options.episodes, options.steps
    context, side = model.id_layout.context_length, model.tokenizer.config.resolution
    if options.protocol is not None:
        if steps is not None or "length" in given or clips.goal or options.start:
            raise ConfigError("--protocol sets the clips: leave out --steps, --start, --clips.length and --clips.goal")
        protocol = require_fit(options.protocol, context, side)
        samples, episodes, steps = options.samples or protocol.samples, options.episodes or protocol.clips, protocol.future
        clips = dataclasses.replace(clips, stride="1")
    wanted = Wanted(
        split=options.split,
        held_out=options.held_out,
        limit=episodes,
        clips=clips_for(model, clips, steps),
        start=options.start,
        context=context,
        side=side,
        stride_given="stride" in given or options.protocol is not None,
        free=options.protocol is None,
    )
    return Evaluation(wanted, sampling_of(options, samples), options.samples_at_once, options.protocol)


def describe_plan(model: WorldModel, evaluation: Evaluation, sets: Sequence[TestSet]) -> ProtocolEntry:
    """Returns the card's entry on how clips were cut and predicted."""
    name, side, clips = evaluation.protocol, evaluation.wanted.side, evaluation.wanted.clips
    return {
        "name": name,
        "context": evaluation.wanted.context,
        "future": evaluation.length - evaluation.wanted.context,
        "resolution": side,
        "samples": evaluation.sampling.samples,
        "start": evaluation.wanted.start,
        "stride": clips.stride,
        "goal": clips.goal,
        "with_actions": bool(model.action_dim),
        "frames": f"whole, as stored, squashed to {side} x {side}, bilinear with antialiasing, fp32, not rounded to 8 bit",
        "departures": _departures(PROTOCOLS[name], evaluation, sets) if name else [],
        "published": PROTOCOLS[name].published if name else {},
    }


def _departures(protocol: Protocol, evaluation: Evaluation, sets: Sequence[TestSet]) -> list[str]:
    texts = []
    if evaluation.sampling.samples != protocol.samples:
        texts.append(f"{evaluation.sampling.samples} samples per clip, not {protocol.samples}")
    clips = sum(len(test_set.clips) for test_set in sets)
    if clips != protocol.clips:
        texts.append(f"{clips} clips, not {protocol.clips}")
    if (evaluation.sampling.top_k, evaluation.sampling.temperature) != (100, 1.0):
        texts.append("top_k and temperature are not 100 and 1.0")
    if trained := sum(count.trained_on for test_set in sets for count in test_set.splits.values()):
        texts.append(f"{trained} clips are from episodes that the model was trained on")
    return texts
