"""`ivideogpt-predict`: predicted video beside the true one, as pictures, web pages and numbers.

One episode goes straight into the output folder; of several each gets a folder by its number, since keys come from inputs and
inputs name no paths.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline import storage
from pipeline.command import parse_recipe, recipe_parser, run_command
from pipeline.episode import Episode
from pipeline.errors import ConfigError
from pipeline.progress import progress_line
from pipeline.recipe import ClipsConfig
from training.prediction.clip_prediction import Prediction, Sampling, clips_for, cut_clip, measure, predict_clip
from training.prediction.sampling_options import add_sampling_options, sampling_of
from training.prediction.start_options import add_start_options, open_start
from training.session import WorldModel
from training.visuals import gallery, movies, pictures
from training.visuals.pictures import Strip

GIF, MP4, SHEET, METRICS = "prediction.gif", "prediction.mp4", "contact_sheet.png", "metrics.json"
# Samples in the pictures; all are measured.
_SHOWN_SAMPLES = 3
_AVERAGED = ("mean_psnr", "mean_ssim")


def predict_episodes(
    model: WorldModel,
    episodes: Sequence[Episode],
    output: str,
    clips: ClipsConfig,
    sampling: Sampling,
    start: int = 0,
    steps: int | None = None,
) -> dict[str, Any]:
    """Predict one clip of every episode; write pictures, pages and metrics.

    Args:
        model: To predict with.
        episodes: At least one.
        output: Folder (or URL). One episode's files lie directly in it, those of several in `episode-000` and so on.
        clips: The recipe's section: stride, goal, length.
        sampling: How futures are drawn.
        start: First frame of the clips in their episodes.
        steps: Frames to predict; None takes what the clip length leaves after the context.

    Returns:
        What stands in `{output}/metrics.json`: of one episode everything; of several the averages over episodes, and the
        episodes' own metrics under `episodes`.

    Raises:
        SourceError: An episode is too short or damaged.
        ConfigError: The episodes lack the actions that the model needs, or the recipe doesn't fit the model.
    """
    fitted = clips_for(model, clips, steps)
    cut = [cut_clip(episode, model, fitted, start) for episode in episodes]
    several, outcomes, cards = len(cut) > 1, [], []
    future = len(cut[0].frames) - model.geometry.context_length
    with progress_line(len(cut) * future, "frame", "predict") as progress:
        for number, clip in enumerate(cut):
            prediction = predict_clip(model, clip, sampling, on_frame=progress.update)
            own = f"episode-{number:03d}"
            outcomes.append(_describe(prediction, sampling) | measure(prediction))
            folder = storage.join(output, own) if several else output
            _write(prediction, outcomes[-1], folder, f"../{gallery.INDEX}" if several else None)
            if several:
                cards.append(gallery.card(f"{own}/{gallery.INDEX}", prediction, outcomes[-1]))
    if not several:
        return outcomes[0]
    summary = _averages(outcomes) | {"episodes": outcomes}
    overview = storage.join(output, gallery.INDEX)
    gallery.write_overview(overview, cards, summary, _facts(outcomes[0]), gallery.timing_of(prediction))
    storage.write_bytes(storage.join(output, METRICS), _json(summary))
    return summary


def _describe(prediction: Prediction, sampling: Sampling) -> dict[str, Any]:
    clip = prediction.clip
    described: dict[str, Any] = {
        "dataset": clip.dataset,
        "episode": clip.key,
        "frame_indices": list(clip.indices),
        "stride": clip.stride,
        "context_length": prediction.context_length,
        "resolution": clip.frames.shape[-1],
        "with_actions": clip.action is not None,
        "sampling": dataclasses.asdict(sampling),
    }
    if prediction.reward is not None:
        described["predicted_reward"] = prediction.reward.tolist()
    return described


def _facts(described: dict[str, Any]) -> str:
    """One line on how a prediction was made, from what `_describe` says."""
    sampling, context = described["sampling"], described["context_length"]
    count = len(described["frame_indices"]) - context
    source = f"{context} context frame{'s' if context > 1 else ''}"
    driven = f"{source} and the true actions" if described["with_actions"] else source
    futures = (
        "greedy" if sampling["temperature"] == 0 else f"temperature {sampling['temperature']:g}, top-k {sampling['top_k']}"
    )
    return (
        f"{count} frames predicted from {driven}, a stride of {described['stride']:g}; "
        f"{sampling['samples']} sample{'s' if sampling['samples'] > 1 else ''}, {futures}, seed {sampling['seed']}"
    )


def _write(prediction: Prediction, metrics: dict[str, Any], folder: str, overview: str | None) -> None:
    clip, context = prediction.clip, prediction.context_length
    length = len(clip.frames)
    several = len(prediction.frames) > 1
    futures = [
        Strip(f"sample {number + 1}" if several else "prediction", torch.cat([clip.frames[:context], sample]), context)
        for number, sample in enumerate(prediction.frames[:_SHOWN_SAMPLES])
    ]
    truth = Strip("truth", clip.frames, length)
    reconstruction = Strip("reconstruction", prediction.reconstruction, length)
    difference = Strip("difference", pictures.difference(futures[0].frames, clip.frames), context)
    pictures.write_gif(storage.join(folder, GIF), [truth, *futures], context, clip.rate)
    movies.write_mp4(storage.join(folder, MP4), [truth, *futures], context, clip.rate)
    pictures.write_contact_sheet(storage.join(folder, SHEET), [truth, *futures, reconstruction, difference], context)
    gallery.write_page(storage.join(folder, gallery.INDEX), prediction, metrics, _facts(metrics), overview)
    storage.write_bytes(storage.join(folder, METRICS), _json(metrics))


def _averages(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def averaged(*path: str) -> dict[str, float]:
        found = outcomes
        for key in path:
            found = [entry[key] for entry in found]
        return {name: float(np.mean([entry[name] for entry in found])) for name in _AVERAGED}

    return {
        "prediction": {"mean": averaged("prediction", "mean"), "best": averaged("prediction", "best")},
        "repeat_last_frame": averaged("repeat_last_frame"),
        "reconstruction": averaged("reconstruction"),
    }


def _json(metrics: dict[str, Any]) -> bytes:
    return json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _run(arguments: Sequence[str] | None) -> int:
    parser = recipe_parser(
        "ivideogpt-predict",
        "Predict video with a trained world model: GIF, mp4, web page, metrics. Clips are cut as the model was trained, where "
        "its folder says so (recipe.yaml) and neither --config nor --clips.stride and the like do.",
        helped=("clips",),
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --input PATH_OR_URL --output DIR_OR_URL [OPTION ...]"
    add_start_options(parser)
    parser.add_argument(
        "--output", metavar="DIR_OR_URL", type=str, required=True, help="Folder for pictures, pages and metrics."
    )
    parser.add_argument(
        "--episode", metavar="KEY_OR_NUMBER", type=str | None, default=None, help="Key of one episode, or its number from 0."
    )
    parser.add_argument(
        "--episodes", type=int, default=1, help="How many episodes to predict, from the first on; the result has their average."
    )
    parser.add_argument("--start", type=int, default=0, help="First frame of the clip.")
    parser.add_argument("--steps", type=int | None, default=None, help="Frames to predict; by default the rest of a clip.")
    add_sampling_options(parser)
    recipe, options = parse_recipe(parser, arguments)
    if options.episodes < 1 or (options.episode is not None and options.episodes != 1):
        raise ConfigError("--episodes must be at least 1, and goes without --episode")
    sampling = sampling_of(options)
    model, chosen, clips = open_start(parser, arguments, options, recipe.clips, options.episodes, options.episode)
    outcome = predict_episodes(model, chosen, options.output, clips, sampling, options.start, options.steps)
    averages = outcome if "episodes" in outcome else _averages([outcome])
    json.dump(
        {"output": options.output, "episodes": len(chosen)} | {k: v for k, v in averages.items() if k != "episodes"}, sys.stdout
    )
    print()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivideogpt-predict`; returns its exit status."""
    return run_command(_run, arguments)


if __name__ == "__main__":
    sys.exit(main())
