"""`ivideogpt-evaluate`: how good a world model's predictions are, on whole data sets, alone or over several processes.

Clip i is scored by process i mod N and its scores gathered by number, and noise follows from the episode, so the number of
processes changes nothing but the time.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.command import CommandParser, add_section_folder, given_value, parse_recipe, recipe_parser, run_command
from pipeline.errors import ConfigError
from pipeline.progress import progress_line
from pipeline.recipe import ClipsConfig
from training.evaluation.card import versions, weights_hashes, write_card
from training.evaluation.data import TestSet, open_test_sets, read_row
from training.evaluation.metrics import Metric, MetricSet
from training.evaluation.protocols import PROTOCOLS, Protocol, require_fit
from training.evaluation.scores import ClipScores, score_clip, summarise
from training.model_files.model_clips import clips_as_trained
from training.model_files.model_folder import locate_model
from training.prediction.clip_prediction import Sampling, clips_for, cut_clip
from training.prediction.sampling_options import add_sampling_options, sampling_of
from training.processes import Processes, find_place
from training.session import WorldModel
from training.video_metrics import i3d

_ALL = "all data sets"


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated.

    Attributes:
        clips: With length and context filled in.
        start: First frame of every clip.
        episodes: Of a data set at most; None takes all.
        sampling: How futures are drawn.
        at_once: Samples in a batch.
    """

    clips: ClipsConfig
    start: int
    episodes: int | None
    sampling: Sampling
    at_once: int


def build_parser() -> CommandParser:
    """The command's options beside the recipe."""
    parser = recipe_parser(
        "ivideogpt-evaluate",
        "Measure a world model's predictions on data sets, under published protocols. Without a protocol, clips are cut as the "
        "model was trained, where its folder says so (recipe.yaml) and neither --config nor --clips.stride and the like do.",
        helped=("clips",),
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --shards DIR [DIR ...] --output DIR_OR_URL [OPTION ...]"
    add_section_folder(parser, "model", "Folder (or URL, or hub id) that holds tokenizer/ and transformer/.")
    parser.add_argument(
        "--shards", metavar="DIR", type=str, nargs="+", required=True, help="Output folders of ivideogpt-ingest."
    )
    parser.add_argument(
        "--output", metavar="DIR_OR_URL", type=str, required=True, help="Folder for evaluation.json and evaluation.md."
    )
    parser.add_argument(
        "--protocol",
        type=Literal[tuple(PROTOCOLS)] | None,
        default=None,
        help="A published protocol: clip length, samples, clips.",
    )
    parser.add_argument(
        "--metrics", type=list[Metric], default=["mse", "psnr", "ssim"], help="A list, such as [psnr,ssim,lpips,fvd]."
    )
    parser.add_argument(
        "--vgg_weights", metavar="FILE", type=str | None, default=None, help="File with VGG16's weights, for lpips."
    )
    parser.add_argument(
        "--i3d_weights", metavar="FILE", type=str | None, default=None, help="File with I3D's weights, for fvd."
    )
    parser.add_argument("--split", type=str, default="train", help="Whose episodes are evaluated.")
    parser.add_argument("--held_out", type=bool, default=False, help="Only episodes held out from training (clips.held_out).")
    parser.add_argument(
        "--episodes", type=int | None, default=None, help="How many of each data set at most, from the first on."
    )
    parser.add_argument("--start", type=int, default=0, help="First frame of the clips.")
    parser.add_argument("--steps", type=int | None, default=None, help="Frames to predict; by default the rest of a clip.")
    add_sampling_options(parser, samples=None, of_samples="; by default as many as the protocol has, else 1")
    parser.add_argument("--samples_at_once", type=int, default=25, help="Samples in one batch; bounds memory.")
    return parser


def _plan(model: WorldModel, clips: ClipsConfig, options: Any, length_given: bool) -> Evaluation:
    """The evaluation that a command line asks for.

    Raises:
        ConfigError: Options contradict each other, the protocol or the model.
    """
    for name in ("samples", "episodes"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.samples_at_once < 1 or options.start < 0:
        raise ConfigError("--samples_at_once must be at least 1, and --start at least 0")
    samples, episodes, steps = options.samples or 1, options.episodes, options.steps
    if options.protocol is not None:
        if steps is not None or length_given or clips.goal or options.start:
            raise ConfigError("--protocol decides on the clips: leave out --steps, --start, --clips.length and --clips.goal")
        protocol = require_fit(options.protocol, model.geometry.context_length, model.tokenizer.config.resolution)
        samples, episodes, steps = options.samples or protocol.samples, options.episodes or protocol.clips, protocol.future
        clips = dataclasses.replace(clips, stride="1")
    return Evaluation(
        clips_for(model, clips, steps), options.start, episodes, sampling_of(options, samples), options.samples_at_once
    )


def _require_enough(sets: Sequence[TestSet], metrics: MetricSet) -> None:
    """Refuse what could not be summed up in the end.

    Raises:
        ConfigError: FVD is asked for, and a data set has a single clip.
    """
    for test_set in sets:
        if metrics.with_fvd and len(test_set.rows) < 2:
            raise ConfigError(
                f"fvd compares sets of clips, and {test_set.dataset} has {len(test_set.rows)} to evaluate: "
                "raise --episodes, or leave fvd out"
            )


def _score_all(
    model: WorldModel, sets: Sequence[TestSet], evaluation: Evaluation, metrics: MetricSet, processes: Processes
) -> ClipScores:
    """Scores of all clips, by number; the same on every process."""
    rows = [row for test_set in sets for row in test_set.rows]
    place = processes.place
    share = -(-len(rows) // place.world_size)
    own = ClipScores.empty(share, evaluation.sampling.samples, metrics, evaluation.clips.length or 0, i3d.FEATURES)
    mine = range(place.rank, len(rows), place.world_size)
    with progress_line(len(mine), "clip", "evaluate", shown=processes.is_first) as progress:
        for number, index in enumerate(mine):
            clip = cut_clip(read_row(rows[index]), model, evaluation.clips, evaluation.start)
            own.put(number, score_clip(model, clip, evaluation.sampling, evaluation.at_once, metrics))
            progress.update()
    gathered = [_interleaved(processes.gather_tensor(part), len(rows)) for part in (own.frames, own.features)]
    return ClipScores(*gathered)


def _interleaved(parts: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """What process r holds at place j belongs at j N + r."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:count]


def _results(scores: ClipScores, sets: Sequence[TestSet], metrics: MetricSet, context: int) -> dict[str, Any]:
    results, first = {}, 0
    for test_set in sets:
        part = slice(first, first + len(test_set.rows))
        found = ClipScores(scores.frames[part], scores.features[part])
        results[test_set.dataset] = summarise(found, metrics.frame_metrics, context)
        first = part.stop
    if len(sets) > 1:
        results[_ALL] = summarise(scores, metrics.frame_metrics, context)
    return results


def _departures(protocol: Protocol, evaluation: Evaluation, sets: Sequence[TestSet]) -> list[str]:
    texts = []
    if evaluation.sampling.samples != protocol.samples:
        texts.append(f"{evaluation.sampling.samples} samples a clip in place of {protocol.samples}")
    clips = sum(len(test_set.rows) for test_set in sets)
    if clips != protocol.clips:
        texts.append(f"{clips} clips in place of {protocol.clips}")
    if (evaluation.sampling.top_k, evaluation.sampling.temperature) != (100, 1.0):
        texts.append("top_k and temperature are not 100 and 1.0")
    return texts


def _describe_protocol(model: WorldModel, name: str | None, evaluation: Evaluation, sets: Sequence[TestSet]) -> dict[str, Any]:
    context, side = model.geometry.context_length, model.tokenizer.config.resolution
    return {
        "name": name,
        "context": context,
        "future": (evaluation.clips.length or 0) - context,
        "resolution": side,
        "samples": evaluation.sampling.samples,
        "start": evaluation.start,
        "stride": evaluation.clips.stride,
        "goal": evaluation.clips.goal,
        "with_actions": bool(model.action_dim),
        "frames": f"whole, as stored, squashed to {side} x {side}, bilinear with antialiasing, fp32, not rounded to 8 bit",
        "departures": _departures(PROTOCOLS[name], evaluation, sets) if name else [],
        "published": PROTOCOLS[name].published if name else {},
    }


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    recipe, options = parse_recipe(parser, arguments)
    folder = locate_model(options.model_dir)
    given = given_value(parser, "clips", arguments) or {}
    place = find_place(os.environ)
    clips = clips_as_trained(folder, recipe.clips, given, tells=place.rank == 0)
    with Processes(place) as processes:
        model = WorldModel.from_pretrained(folder, str(processes.device))
        evaluation = _plan(model, clips, options, "length" in given)
        length, side = evaluation.clips.length or 0, model.tokenizer.config.resolution
        metrics = MetricSet(options.metrics, options.vgg_weights, options.i3d_weights, length, side, processes.device)
        sets = open_test_sets(
            options.shards, options.split, options.held_out, evaluation.clips, evaluation.start, evaluation.episodes, side
        )
        _require_enough(sets, metrics)
        scores = _score_all(model, sets, evaluation, metrics, processes)
        if processes.is_first:
            card = {
                "model": {"name": str(options.model_dir), "weights": weights_hashes(folder)},
                "protocol": _describe_protocol(model, options.protocol, evaluation, sets),
                "sampling": dataclasses.asdict(evaluation.sampling) | {"samples_at_once": evaluation.at_once},
                "metrics": metrics.describe(),
                "data": {test_set.dataset: test_set.describe(options.split, options.held_out) for test_set in sets},
                "results": _results(scores, sets, metrics, model.geometry.context_length),
                "versions": versions(),
            }
            write_card(options.output, card)
            print(json.dumps({"output": options.output, "results": card["results"]}))
        processes.barrier()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivideogpt-evaluate`; returns its exit status."""
    return run_command(_run, arguments)


if __name__ == "__main__":
    sys.exit(main())
