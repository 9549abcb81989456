"""What an evaluation does, settled from its command line, and how it departs from a published protocol."""

import dataclasses
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config.recipe import ClipsConfig
from training.evaluation.data import TestSet, Wanted
from training.evaluation.protocols import PROTOCOLS, Protocol, require_fit
from training.inference.session import WorldModel
from training.prediction.clip_prediction import Sampling, clips_for
from training.prediction.start_options import sampling_of


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated.

    Attributes:
        wanted: Which episodes, and how clips are cut of them.
        sampling: How futures are drawn.
        at_once: Samples in a batch.
        protocol: Name of a published one; None without.
    """

    wanted: Wanted
    sampling: Sampling
    at_once: int
    protocol: str | None

    @property
    def length(self) -> int:
        """Frames of a clip."""
        return self.wanted.clips.length or 0


def require_possible(options: Any) -> None:
    """Refuse numbers that can't be, before a model is opened.

    Raises:
        ConfigError: One is too small.
    """
    for name in ("samples", "episodes", "samples_at_once"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.start < 0:
        raise ConfigError(f"--start must be at least 0, not {options.start}")


def plan(model: WorldModel, clips: ClipsConfig, options: Any, given: Container[str] = ()) -> Evaluation:
    """The evaluation that a command line asks for.

    Args:
        model: To be evaluated.
        clips: The recipe's section, as the model was trained where the user left it open.
        options: As parsed.
        given: Keys of the section that the user gave.

    Raises:
        ConfigError: Options contradict each other, the protocol or the model.
    """
    samples, episodes, steps = options.samples or 1, options.episodes, options.steps
    context, side = model.id_layout.context_length, model.tokenizer.config.resolution
    if options.protocol is not None:
        if steps is not None or "length" in given or clips.goal or options.start:
            raise ConfigError("--protocol decides on the clips: leave out --steps, --start, --clips.length and --clips.goal")
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


def describe_plan(model: WorldModel, evaluation: Evaluation, sets: Sequence[TestSet]) -> dict[str, Any]:
    """What an evaluation card says of how clips were cut and predicted."""
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
        texts.append(f"{evaluation.sampling.samples} samples a clip in place of {protocol.samples}")
    clips = sum(len(test_set.clips) for test_set in sets)
    if clips != protocol.clips:
        texts.append(f"{clips} clips in place of {protocol.clips}")
    if (evaluation.sampling.top_k, evaluation.sampling.temperature) != (100, 1.0):
        texts.append("top_k and temperature are not 100 and 1.0")
    if trained := sum(count.trained_on for test_set in sets for count in test_set.splits.values()):
        texts.append(f"{trained} clips are of episodes that the model was trained on")
    return texts
