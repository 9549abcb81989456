"""`ivideogpt-predict`: predicted video beside the true one, as pictures, web pages and numbers.

One episode goes straight into the output folder; of several each gets a folder by its number, since keys come from inputs and
inputs name no paths.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
from training.prediction.clip_prediction import Clip, Prediction, Sampling, clips_for, cut_clip, measure, predict_clip
from training.prediction.start_options import Start, open_start, sampling_of
from training.visuals import finished_episodes, gallery, movies, pictures
from training.visuals.pictures import Strip

GIF, MP4, SHEET, METRICS = "prediction.gif", "prediction.mp4", "contact_sheet.png", "metrics.json"
# Samples in the pictures; all are measured.
_SHOWN_SAMPLES = 3
_AVERAGED = ("mean_psnr", "mean_ssim")


def predict_episodes(
    model: WorldModel,
    starts: Sequence[Start],
    output: str,
    sampling: Sampling,
    start: int = 0,
    steps: int | None = None,
    weights: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Predict one clip of every episode; write pictures, pages and metrics.

    Of several, those that a killed run of the same command has written already are kept.

    Args:
        model: To predict with.
        starts: At least one episode, each with its clips: stride, goal, length.
        output: Folder (or URL). One episode's files lie directly in it, those of several in `episode-000` and so on.
        sampling: How futures are drawn.
        start: First frame of the clips in their episodes.
        steps: Frames to predict; None takes what the clip length leaves after the context.
        weights: Hashes of the model's files; without them nothing is kept.

    Returns:
        What stands in `{output}/metrics.json`: of one episode everything; of several the averages over episodes, and the
        episodes' own metrics under `episodes`.

    Raises:
        SourceError: An episode is too short or damaged.
        ConfigError: The episodes lack the actions that the model needs, or the recipe doesn't fit the model.
        StorageError: The output can't be written; it is tried before anything is predicted.
    """
    cut = [cut_clip(each.episode, model, clips_for(model, each.clips, steps), start) for each in starts]
    require_writable(output)
    future = len(cut[0].frames) - model.id_layout.context_length
    with progress_line(len(cut) * future, "frame", "predict") as progress:
        if len(cut) == 1:
            prediction = predict_clip(model, cut[0], sampling, on_frame=progress.update)
            outcome = _describe(prediction, sampling, starts[0]) | measure(prediction)
            _write(prediction, outcome, output, None)
            return outcome
        cards, folders = [], [storage.join(output, f"episode-{number:03d}") for number in range(len(cut))]
        for clip, each, folder in zip(cut, starts, folders, strict=True):
            identity = _fingerprint(clip, each, sampling, weights) if weights else ""
            card = finished_episodes.find(folder, identity) if weights else None
            if card is not None:
                progress.update(future)
            else:
                finished_episodes.clear(folder)
                prediction = predict_clip(model, clip, sampling, on_frame=progress.update)
                outcome = _describe(prediction, sampling, each) | measure(prediction)
                _write(prediction, outcome, folder, f"../{gallery.INDEX}")
                card = gallery.card(f"{storage.basename(folder)}/{gallery.INDEX}", prediction, outcome)
                finished_episodes.keep(folder, identity, card)
            cards.append(card)
    outcomes = [card.metrics for card in cards]
    summary = _averages(outcomes) | {"episodes": outcomes}
    timing = gallery.Timing(len(cut[0].frames), model.id_layout.context_length, cut[0].rate)
    gallery.write_overview(storage.join(output, gallery.INDEX), cards, summary, _facts(outcomes), timing)
    storage.write_bytes(storage.join(output, METRICS), _json(summary))
    for folder in folders:
        finished_episodes.clear(folder)
    return summary


def require_writable(output: str) -> None:
    """Refuse a folder (or URL) that takes no files, before any work; it is made where it isn't there.

    Raises:
        StorageError: It can't be written.
    """
    probe = storage.join(output, "writable")
    try:
        storage.write_bytes(probe, b"")
        storage.remove(probe)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{output} can't be written: {error.strerror or error}. Choose another --output, or mend that one"
        ) from error


def _fingerprint(clip: Clip, each: Start, sampling: Sampling, weights: Mapping[str, str]) -> str:
    """Hash of all that decides an episode's files."""
    pixels = hashlib.sha256(clip.frames.numpy().tobytes())
    if clip.action is not None:
        pixels.update(clip.action.numpy().tobytes())
    of_clip = [clip.dataset, clip.key, list(clip.indices), clip.stride, clip.rate, pixels.hexdigest()]
    parts = {"clip": of_clip, "time_step": each.time_step, "trained_on": each.trained_on}
    return fingerprint(parts | {"sampling": dataclasses.asdict(sampling), "weights": dict(weights), "versions": versions()})


def _describe(prediction: Prediction, sampling: Sampling, start: Start) -> dict[str, Any]:
    clip = prediction.clip
    described: dict[str, Any] = {
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
    }
    if prediction.reward is not None:
        described["predicted_reward"] = prediction.reward.tolist()
    return described


def _facts(described: Sequence[dict[str, Any]]) -> str:
    """One line on how predictions were made, from what `_describe` says of each."""
    sampling, context = described[0]["sampling"], described[0]["context_length"]
    count = len(described[0]["frame_indices"]) - context
    source = f"{context} context frame{'s' if context > 1 else ''}"
    driven = f"{source} and the true actions" if described[0]["with_actions"] else source
    futures = (
        "greedy" if sampling["temperature"] == 0 else f"temperature {sampling['temperature']:g}, top-k {sampling['top_k']}"
    )
    return (
        f"{_seen(described)}{count} frames predicted from {driven}, {_pace(described)}; "
        f"{sampling['samples']} sample{'s' if sampling['samples'] > 1 else ''}, {futures}, seed {sampling['seed']}"
    )


def _seen(described: Sequence[dict[str, Any]]) -> str:
    """What is known of whether the model was trained on the episodes, as the beginning of a line."""
    known = [each["trained_on"] for each in described]
    if any(known):
        return f"TRAINED ON {sum(map(bool, known))} of these {len(known)} episodes. " if len(known) > 1 else "TRAINED ON this. "
    if all(value is False for value in known):
        return "Never trained on. "
    return ""


def _pace(described: Sequence[dict[str, Any]]) -> str:
    """How far apart frames lie, and why."""
    strides = sorted({each["stride"] for each in described})
    stride = f"{strides[0]:g}" if len(strides) == 1 else f"{strides[0]:g} to {strides[-1]:g}"
    seconds = sorted({each["seconds_per_frame"] or 0.0 for each in described})
    if not seconds[0]:
        pace = f"of unknown rate, shown at {pictures.DEFAULT_RATE:g} a second"
    else:
        pace = " to ".join(dict.fromkeys((f"{seconds[0]:.3g}", f"{seconds[-1]:.3g}"))) + " s a frame"
    reasons = list(dict.fromkeys(each["time_step"] for each in described))
    return f"a stride of {stride}, {pace} ({reasons[0] if len(reasons) == 1 else 'each episode says why'})"


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
    gallery.write_page(storage.join(folder, gallery.INDEX), prediction, metrics, _facts([metrics]), overview)
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
    return measured_json(metrics, indent=1).encode() + b"\n"


def run(parser: CommandParser, recipe: Recipe, options: Any) -> int:
    """The command's body.

    Args:
        parser: Of its command line.
        recipe: As parsed.
        options: As parsed.

    Raises:
        ProjectError: Of all kinds; the message says what to do.
    """
    if options.episodes < 1 or (options.episode is not None and options.episodes != 1):
        raise ConfigError("--episodes must be at least 1, and goes without --episode")
    if options.start < 0:
        raise ConfigError(f"--start must be at least 0, not {options.start}")
    sampling = sampling_of(options)
    opened = open_start(parser.given("clips"), options, recipe.clips, options.episodes, options.episode)
    weights = weights_hashes(opened.folder) if len(opened.starts) > 1 else None
    outcome = predict_episodes(opened.model, opened.starts, options.output, sampling, options.start, options.steps, weights)
    averages = outcome if "episodes" in outcome else _averages([outcome])
    summary = {"output": options.output, "episodes": len(opened.starts)}
    summary |= {name: value for name, value in averages.items() if name != "episodes"}
    show(summary, options, look_at=storage.join(options.output, gallery.INDEX))
    return 0


if __name__ == "__main__":
    sys.exit(main())
