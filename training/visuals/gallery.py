"""Writes predictions as self-contained web pages: one page per episode, and an overview of several.

Each video is one picture of all its frames side by side, and CSS moves it behind a window. So players, film strips and the
cursor of the chart stay in step, and a page of 64 x 64 frames is smaller than a few MiB. Text from inputs is escaped.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import torch
from PIL import Image

from pipeline.common import storage
from pipeline.web.charts import Curve, lines
from pipeline.web.page import asset, html_page
from training.prediction.clip_prediction import Clip, Prediction
from training.prediction.measurement import Averages, EpisodeMetrics, MeanAndBest, MeanScores, Measurement
from training.visuals import pictures

INDEX = "index.html"
_SHOWN_SAMPLES = 6  # number of samples on a page; all samples count in the scores
_LOSSLESS_SIDE = 128  # frames up to this height are embedded without loss
_THUMBNAIL_SIDE = 64
_LEGEND = (
    ("mean", "prediction, mean of samples"),
    ("sample", "each sample"),
    ("repeat", "repeating the last context frame"),
    ("ceiling", "the tokenizer's reconstruction (ceiling)"),
)


class Timing(NamedTuple):
    """Length and frame rate of a page's clips.

    Attributes:
        length: Number of frames, context included.
        context_length: Number of context frames.
        rate: Frames per second; None means 4.
    """

    length: int
    context_length: int
    rate: float | None


@dataclass(frozen=True)
class OverviewCard:
    """An episode on the overview. It holds small pictures, not the prediction, since there may be many episodes.

    Attributes:
        link: Relative link to the episode's page.
        title: Data set and key of the episode.
        truth: Data URI of the true frames side by side.
        made: Data URI of the first sample's frames side by side.
        metrics: Metrics of the episode.
    """

    link: str
    title: str
    truth: str
    made: str
    metrics: EpisodeMetrics


@dataclass(frozen=True)
class _Video:
    name: str
    frames: torch.Tensor
    is_made: bool


def write_page(path: str, prediction: Prediction, metrics: Measurement, facts: str, overview: str | None = None) -> None:
    """Writes the page of one episode.

    Args:
        path: File to publish.
        prediction: Prediction of the episode.
        metrics: Scores of the prediction.
        facts: A line that says how the prediction was made.
        overview: Relative link to the overview; None for no link.
    """
    videos = _videos(prediction)
    cells = "".join(_cell(number, video.name, video.is_made) for number, video in enumerate(videos))
    strips = "".join(
        f'<div class="film"><span class="name">{escape(video.name)}</span><div class="strip s{number}"></div></div>'
        for number, video in enumerate(videos)
    )
    back = f'<p class="soft"><a href="{escape(overview)}">All episodes</a></p>' if overview else ""
    table = _table(metrics["prediction"], metrics["repeat_last_frame"], metrics["reconstruction"])
    body = (
        f"{back}<h1>{escape(_title(prediction.clip))}</h1><p class=soft>{escape(facts)}</p>{_CONTROLS}"
        f'<div class="cells card">{cells}</div>'
        f'<h2>Scores</h2><div class="results"><div class="card">{table}</div>'
        f'<div class="card">{_chart(metrics)}{_legend(len(metrics["prediction"]["samples"]) > 1)}</div></div>'
        f'<h2>Frame by frame</h2><div class="films card">{strips}</div>'
    )
    sprites = [sprite(video.frames) for video in videos]
    storage.write_bytes(path, _document(_title(prediction.clip), body, sprites, timing_of(prediction)))


def card(link: str, prediction: Prediction, metrics: EpisodeMetrics) -> OverviewCard:
    """Returns the card of an episode whose page is at `link`."""
    truth, made = (_thumbnails(video.frames) for video in (_videos(prediction)[0], _videos(prediction)[2]))
    return OverviewCard(link, _title(prediction.clip), sprite(truth, lossless=False), sprite(made, lossless=False), metrics)


def write_overview(path: str, cards: Sequence[OverviewCard], averages: Averages, facts: str, timing: Timing) -> None:
    """Writes the overview of several episodes, with links to their pages.

    Args:
        path: File to publish.
        cards: One card per episode.
        averages: Scores averaged over the episodes.
        facts: A line that says how the predictions were made.
        timing: Length and frame rate of all clips.
    """
    entries = []
    for number, entry in enumerate(cards):
        psnr = entry.metrics["prediction"]["mean"]["mean_psnr"]
        gain = psnr - entry.metrics["repeat_last_frame"]["mean_psnr"]
        entries.append(
            f'<article class="card"><h3><a href="{escape(entry.link)}">{escape(entry.title)}</a></h3>'
            f'<div class="pair">{_cell(2 * number, "truth", False)}{_cell(2 * number + 1, "prediction", True)}</div>'
            f'<div class="numbers"><span>PSNR {psnr:.2f}</span>'
            f"<span title='gain over repeating the last context frame'>{_gain(gain)} dB</span>"
            "</div></article>"
        )
    table = _table(averages["prediction"], averages["repeat_last_frame"], averages["reconstruction"])
    body = (
        f"<h1>{len(cards)} episodes</h1><p class=soft>{escape(facts)}</p>"
        f'<h2>Average scores</h2><div class="card">{table}</div>{_CONTROLS}'
        f'<div class="episodes">{"".join(entries)}</div>'
    )
    sprites = [uri for entry in cards for uri in (entry.truth, entry.made)]
    storage.write_bytes(path, _document(f"{len(cards)} predicted episodes", body, sprites, timing))


def sprite(frames: torch.Tensor, lossless: bool | None = None) -> str:
    """Returns all frames of a clip side by side, as the data URI of one picture.

    Args:
        frames: (T, 3, S, S) in [0, 1].
        lossless: True for PNG, False for JPEG; None means PNG for frames of up to 128 pixels.
    """
    row = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(2, 0, 3, 1).flatten(1, 2).contiguous().numpy()
    exact = frames.shape[-1] <= _LOSSLESS_SIDE if lossless is None else lossless
    buffer = io.BytesIO()
    if exact:
        Image.fromarray(row).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(row).save(buffer, "JPEG", quality=90, subsampling=0)
    return f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


_CONTROLS = (
    '<div class="controls"><button id="play" type="button">Play</button>'
    '<input id="frame" type="range" min="0" value="0" aria-label="frame"><span class="place" id="place"></span></div>'
)


def _videos(prediction: Prediction) -> list[_Video]:
    """Returns the videos of a page in columns of two: truth and reconstruction, then each sample and its difference."""
    clip, context = prediction.clip, prediction.context_length
    videos = [_Video("truth", clip.frames, False), _Video("reconstruction", prediction.reconstruction, False)]
    several = len(prediction.frames) > 1
    for number, future in enumerate(prediction.frames[:_SHOWN_SAMPLES], start=1):
        whole = torch.cat([clip.frames[:context], future])
        suffix = f" {number}" if several else ""
        videos.append(_Video(f"sample{suffix}" if several else "prediction", whole, True))
        videos.append(_Video(f"difference{suffix}", pictures.difference(whole, clip.frames), True))
    return videos


def timing_of(prediction: Prediction) -> Timing:
    """Returns the length and frame rate of a prediction's clip."""
    return Timing(len(prediction.clip.frames), prediction.context_length, prediction.clip.rate)


def _title(clip: Clip) -> str:
    return f"{clip.dataset} · {clip.key}"


def _cell(number: int, name: str, is_made: bool) -> str:
    """Returns the player of sprite `number`."""
    return (
        f'<figure{" class=made" if is_made else ""}><div class="sprite s{number}" role="img" aria-label="{escape(name)}">'
        f"</div><figcaption>{escape(name)}</figcaption></figure>"
    )


def _thumbnails(frames: torch.Tensor) -> torch.Tensor:
    if frames.shape[-1] <= _THUMBNAIL_SIDE:
        return frames
    return torch.nn.functional.interpolate(frames, size=_THUMBNAIL_SIDE, mode="bilinear", antialias=True)


def _chart(metrics: Measurement) -> str:
    samples = metrics["prediction"]["samples"]
    curves = [Curve("sample", f"sample {number}", entry["psnr"]) for number, entry in enumerate(samples, start=1)]
    mean = [sum(values) / len(values) for values in zip(*(entry["psnr"] for entry in samples), strict=True)]
    repeat, ceiling = metrics["repeat_last_frame"]["psnr"], metrics["reconstruction"]["psnr"]
    means = [Curve("ceiling", "reconstruction", ceiling), Curve("repeat", "repeating", repeat), Curve("mean", "mean", mean)]
    return lines([*(curves if len(curves) > 1 else []), *means], "PSNR of each predicted frame, dB", "predicted frame")


def _legend(several: bool) -> str:
    shown = [(kind, text) for kind, text in _LEGEND if several or kind != "sample"]
    entries = (f"<span><i class={kind}></i>{escape(_label(text, several))}</span>" for kind, text in shown)
    return f'<div class="legend">{"".join(entries)}</div>'


def _table(prediction: MeanAndBest, repeated: MeanScores, reconstruction: MeanScores) -> str:
    mean, best = prediction["mean"], prediction["best"]
    several = mean != best
    rows = [
        (_label("prediction, mean of samples", several), mean),
        *([("prediction, best sample", best)] if several else []),
        ("repeating the last context frame", repeated),
        ("the tokenizer's reconstruction", reconstruction),
    ]
    columns = ("PSNR, dB", "SSIM", "gain over repeating, dB")
    head = "<tr><th></th>" + "".join(f"<th class=number>{name}</th>" for name in columns) + "</tr>"
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td class=number>{row['mean_psnr']:.2f}</td><td class=number>{row['mean_ssim']:.3f}</td>"
        f"<td class=number>{'' if row is repeated else _gain(row['mean_psnr'] - repeated['mean_psnr'])}</td></tr>"
        for name, row in rows
    )
    return f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>"


def _label(text: str, several: bool) -> str:
    """Returns the name of a row or curve, without the mean if there is only one sample."""
    return text if several else text.removesuffix(", mean of samples")


def _gain(decibels: float) -> str:
    return f'<span class="{"good" if decibels > 0 else "bad"}">{decibels:+.2f}</span>'


def _document(title: str, body: str, sprites: Sequence[str], timing: Timing) -> bytes:
    pause = max(20, round(1000 / (timing.rate or pictures.DEFAULT_RATE)))
    rules = "".join(f".s{number} {{ background-image: url({uri}); }}\n" for number, uri in enumerate(sprites))
    style = f"{asset('training.web', 'gallery.css')}:root {{ --count: {timing.length}; }}\n{rules}"
    facts = f'data-count="{timing.length}" data-context="{timing.context_length}" data-pause="{pause}"'
    return html_page(title, body, style, asset("training.web", "gallery.js"), attributes=facts)
