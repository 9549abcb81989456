"""Implements `ivideogpt-predict`: writes predicted and true video as pictures, web pages and metrics.

One episode's files lie directly in the output folder. Several episodes get folders by number, since a key is text from an
input and must not name a path.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from pipeline.common import storage
from pipeline.common.errors import ConfigError, StorageError
from pipeline.common.manifests import fingerprint
from pipeline.common.measured_json import measured_json
from pipeline.common.progress import progress_line
from pipeline.config.cli import CommandParser
from pipeline.config.cli_output import show
from pipeline.config.recipe import Recipe
from training.cli.predict import main
from training.evaluation.card import versions, weights_hashes
from training.inference.session import WorldModel
from training.prediction.clip_prediction import Clip, Prediction, Sampling, clips_for, cut_clip, predict_clip
from training.prediction.measurement import EpisodeMetrics, Summary, average_episodes, measure
from training.prediction.start_options import SamplingOptions, Start, StartOptions, open_start, sampling_of
from training.visuals import finished_episodes, gallery, movies, pictures
from training.visuals.pictures import Strip

GIF, MP4, SHEET, METRICS = "prediction.gif", "prediction.mp4", "contact_sheet.png", "metrics.json"
_SHOWN_SAMPLES = 3  # number of samples in the pictures; all samples are measured


class PredictOptions(StartOptions, SamplingOptions, Protocol):
    """The options of `training.cli.predict`."""

    output: str
    episode: str | None
    episodes: int
    start: int
    steps: int | None


def predict_episodes(
    model: WorldModel,
    starts: Sequence[Start],
    output: str,
    sampling: Sampling,
    start: int = 0,
    steps: int | None = None,
    weights: Mapping[str, str] | None = None,
) -> list[EpisodeMetrics]:
    """Predicts one clip of each episode and writes pictures, pages and metrics; returns the metrics of each episode.

    Of several episodes, it keeps those that a killed run of the same command has already written.

    Args:
        model: World model.
        starts: At least one episode, each with its clips section.
        output: Folder or URL. Files of one episode lie directly in it, those of several in `episode-000` and so on.
        sampling: Sampling options.
        start: First frame of each clip.
        steps: Number of frames to predict; None means the clip length minus the context.
        weights: Hashes of the model's files; without them no episode is kept.

    Raises:
        SourceError: An episode is too short or damaged.
        ConfigError: An episode lacks the actions that the model needs, or the recipe does not match the model.
        StorageError: The output cannot be written; this is checked before the first prediction.
    """
    cut = [cut_clip(each.episode, model, clips_for(model, each.clips, steps), start) for each in starts]
    require_writable(output)
    future = len(cut[0].frames) - model.id_layout.context_length
    with progress_line(len(cut) * future, "frame", "predict") as progress:
        if len(cut) == 1:
            return [_predict(model, cut[0], starts[0], sampling, output, None, progress.update)[1]]
        cards, folders = [], [storage.join(output, f"episode-{number:03d}") for number in range(len(cut))]
        for clip, each, folder in zip(cut, starts, folders, strict=True):
            identity = _fingerprint(clip, each, sampling, weights) if weights else ""
            card = finished_episodes.find(folder, identity) if weights else None
            if card is not None:
                progress.update(future)
            else:
                finished_episodes.clear(folder)
                overview = f"../{gallery.INDEX}"
                prediction, metrics = _predict(model, clip, each, sampling, folder, overview, progress.update)
                card = gallery.card(f"{storage.basename(folder)}/{gallery.INDEX}", prediction, metrics)
                finished_episodes.keep(folder, identity, card)
            cards.append(card)
    episodes = [card.metrics for card in cards]
    summary: Summary = {**average_episodes(episodes), "episodes": episodes}
    timing = gallery.Timing(len(cut[0].frames), model.id_layout.context_length, cut[0].rate)
    gallery.write_overview(storage.join(output, gallery.INDEX), cards, summary, _facts(episodes, sampling), timing)
    storage.write_bytes(storage.join(output, METRICS), _json(summary))
    for folder in folders:
        finished_episodes.clear(folder)
    return episodes


def _predict(
    model: WorldModel,
    clip: Clip,
    start: Start,
    sampling: Sampling,
    folder: str,
    overview: str | None,
    on_frame: Callable[[], object],
) -> tuple[Prediction, EpisodeMetrics]:
    """Predicts one clip and writes its files; `overview` is the relative link to the overview page."""
    prediction = predict_clip(model, clip, sampling, on_frame=on_frame)
    metrics = _metrics(prediction, sampling, start)
    _write(prediction, metrics, sampling, folder, overview)
    return prediction, metrics


def require_writable(output: str) -> None:
    """Checks that a folder or URL can be written, and creates the folder if needed.

    Raises:
        StorageError: It cannot be written.
    """
    probe = storage.join(output, "writable")
    try:
        storage.write_bytes(probe, b"")
        storage.remove(probe)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{output} cannot be written: {error.strerror or error}. Fix it or choose another --output"
        ) from error


def _fingerprint(clip: Clip, each: Start, sampling: Sampling, weights: Mapping[str, str]) -> str:
    """Returns a hash of everything that decides the content of an episode's files."""
    pixels = hashlib.sha256(clip.frames.numpy().tobytes())
    if clip.action is not None:
        pixels.update(clip.action.numpy().tobytes())
    clip_facts = [clip.dataset, clip.key, list(clip.indices), clip.stride, clip.rate, pixels.hexdigest()]
    parts = {"clip": clip_facts, "time_step": each.time_step, "trained_on": each.trained_on}
    return fingerprint(parts | {"sampling": dataclasses.asdict(sampling), "weights": dict(weights), "versions": versions()})


def _metrics(prediction: Prediction, sampling: Sampling, start: Start) -> EpisodeMetrics:
    clip = prediction.clip
    metrics: EpisodeMetrics = {
        "dataset": clip.dataset,
        "episode": clip.key,
        "frame_indices": list(clip.indices),
        "stride": clip.stride,
        "seconds_per_frame": None if clip.rate is None else round(1 / clip.rate, 6),
        "time_step": start.time_step,
        "trained_on": start.trained_on,
        "context_length": prediction.context_length,
        "resolution": clip.frames.shape[-1],
        "with_actions": clip.action is not None,
        "sampling": dataclasses.asdict(sampling),
        **measure(prediction),
    }
    if prediction.reward is not None:
        metrics["predicted_reward"] = prediction.reward.tolist()
    return metrics


def _facts(episodes: Sequence[EpisodeMetrics], sampling: Sampling) -> str:
    """Returns one line that says how the predictions were made."""
    context = episodes[0]["context_length"]
    count = len(episodes[0]["frame_indices"]) - context
    source = f"{context} context frame{'s' if context > 1 else ''}"
    inputs = f"{source} and the true actions" if episodes[0]["with_actions"] else source
    futures = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, top-k {sampling.top_k}"
    return (
        f"{_seen(episodes)}{count} frames predicted from {inputs}, {_pace(episodes)}; "
        f"{sampling.samples} sample{'s' if sampling.samples > 1 else ''}, {futures}, seed {sampling.seed}"
    )


def _seen(episodes: Sequence[EpisodeMetrics]) -> str:
    """Returns whether the model was trained on the episodes, as the start of a line; empty if unknown."""
    known = [each["trained_on"] for each in episodes]
    if any(known):
        return (
            f"The model was TRAINED ON {sum(map(bool, known))} of these {len(known)} episodes. "
            if len(known) > 1
            else "The model was TRAINED ON this episode. "
        )
    if all(value is False for value in known):
        return "The model was not trained on this. "
    return ""


def _pace(episodes: Sequence[EpisodeMetrics]) -> str:
    """Returns the stride and the time step, and how they were chosen."""
    strides = sorted({each["stride"] for each in episodes})
    stride = f"{strides[0]:g}" if len(strides) == 1 else f"{strides[0]:g} to {strides[-1]:g}"
    seconds = sorted({each["seconds_per_frame"] or 0.0 for each in episodes})
    if not seconds[0]:
        pace = f"unknown frame rate, shown at {pictures.DEFAULT_RATE:g} frames a second"
    else:
        pace = " to ".join(dict.fromkeys((f"{seconds[0]:.3g}", f"{seconds[-1]:.3g}"))) + " s a frame"
    reasons = list(dict.fromkeys(each["time_step"] for each in episodes))
    return f"a stride of {stride}, {pace} ({reasons[0] if len(reasons) == 1 else 'the reason is on each page'})"


def _write(prediction: Prediction, metrics: EpisodeMetrics, sampling: Sampling, folder: str, overview: str | None) -> None:
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
    gallery.write_page(storage.join(folder, gallery.INDEX), prediction, metrics, _facts([metrics], sampling), overview)
    storage.write_bytes(storage.join(folder, METRICS), _json(metrics))


def _json(metrics: EpisodeMetrics | Summary) -> bytes:
    return measured_json(metrics, indent=1).encode() + b"\n"


def run(parser: CommandParser, recipe: Recipe, options: PredictOptions) -> int:
    """Runs the command; returns its exit status.

    Args:
        parser: Command line parser, which knows the keys that the user set.
        recipe: Parsed recipe.
        options: Parsed options.

    Raises:
        ProjectError: The input, the model or an option is invalid; the message says what to do.
    """
    if options.episodes < 1 or (options.episode is not None and options.episodes != 1):
        raise ConfigError("--episodes must be at least 1 and cannot be combined with --episode")
    if options.start < 0:
        raise ConfigError(f"--start must be at least 0, not {options.start}")
    sampling = sampling_of(options)
    opened = open_start(parser.given("clips"), options, recipe.clips, options.episodes, options.episode)
    weights = weights_hashes(opened.folder) if len(opened.starts) > 1 else None
    episodes = predict_episodes(opened.model, opened.starts, options.output, sampling, options.start, options.steps, weights)
    summary = {"output": options.output, "episodes": len(episodes), **average_episodes(episodes)}
    show(summary, options, look_at=storage.join(options.output, gallery.INDEX))
    return 0


if __name__ == "__main__":
    sys.exit(main())
