"""Predictions as web pages that open by themselves: pictures, script and numbers in one file, no request to anywhere.

Every clip travels as one picture of all its frames side by side, and a style sheet moves it behind a window: players, film
strips and the chart's cursor stay in step, and a page of 64 x 64 frames stays below a few MiB. Texts that come from inputs
are escaped, and the page's own policy allows no script but its own.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import torch
from PIL import Image

from pipeline.common import storage
from pipeline.web.charts import Curve, lines
from pipeline.web.page import asset, html_page
from training.prediction.clip_prediction import Clip, Prediction
from training.visuals import pictures

INDEX = "index.html"
# Samples on a page; all are in the numbers.
_SHOWN_SAMPLES = 6
# Frames up to this side are embedded without loss.
_LOSSLESS_SIDE = 128
_THUMBNAIL_SIDE = 64
_LEGEND = (
    ("mean", "prediction, mean of samples"),
    ("sample", "each sample"),
    ("repeat", "repeating the last context frame"),
    ("ceiling", "the tokenizer's reconstruction (ceiling)"),
)


class Timing(NamedTuple):
    """When a page's frames are shown.

    Attributes:
        length: Frames of a clip, context included.
        context_length: Of them, context.
        rate: Frames a second; None takes 4.
    """

    length: int
    context_length: int
    rate: float | None


@dataclass(frozen=True)
class Card:
    """An episode on the overview; holds small pictures rather than the prediction, since there may be many.

    Attributes:
        link: Of its page, relative.
        title: Data set and episode.
        truth: Data URI of the true frames side by side.
        made: Likewise of the first sample.
        metrics: What `measure` found.
    """

    link: str
    title: str
    truth: str
    made: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Film:
    name: str
    frames: torch.Tensor
    is_made: bool


def write_page(path: str, prediction: Prediction, metrics: dict[str, Any], facts: str, overview: str | None = None) -> None:
    """Write the page of one episode.

    Args:
        path: File to publish.
        prediction: Of the episode.
        metrics: What `measure` found.
        facts: A line on how the prediction was made.
        overview: Relative link to the overview; None where there is none.
    """
    films = _films(prediction)
    cells = "".join(_cell(number, film.name, film.is_made) for number, film in enumerate(films))
    strips = "".join(
        f'<div class="film"><span class="name">{escape(film.name)}</span><div class="strip s{number}"></div></div>'
        for number, film in enumerate(films)
    )
    back = f'<p class="soft"><a href="{escape(overview)}">All episodes</a></p>' if overview else ""
    body = (
        f"{back}<h1>{escape(_title(prediction.clip))}</h1><p class=soft>{escape(facts)}</p>{_CONTROLS}"
        f'<div class="cells card">{cells}</div>'
        f'<h2>How close</h2><div class="results"><div class="card">{_table(metrics)}</div>'
        f'<div class="card">{_chart(metrics)}{_legend(len(metrics["prediction"]["samples"]) > 1)}</div></div>'
        f'<h2>Frame by frame</h2><div class="films card">{strips}</div>'
    )
    sprites = [sprite(film.frames) for film in films]
    storage.write_bytes(path, _document(_title(prediction.clip), body, sprites, timing_of(prediction)))


def card(link: str, prediction: Prediction, metrics: dict[str, Any]) -> Card:
    """The card of an episode whose page lies at `link`."""
    truth, made = (_thumbnails(film.frames) for film in (_films(prediction)[0], _films(prediction)[2]))
    return Card(link, _title(prediction.clip), sprite(truth, lossless=False), sprite(made, lossless=False), metrics)


def write_overview(path: str, cards: Sequence[Card], averages: dict[str, Any], facts: str, timing: Timing) -> None:
    """Write the page that leads to those of several episodes.

    Args:
        path: File to publish.
        cards: One an episode.
        averages: Of all episodes, in the form of `measure` without single samples.
        facts: A line on how the predictions were made.
        timing: Of all clips.
    """
    entries = []
    for number, entry in enumerate(cards):
        predicted, repeated = (entry.metrics[row] for row in ("prediction", "repeat_last_frame"))
        psnr = predicted["mean"]["mean_psnr"]
        entries.append(
            f'<article class="card"><h3><a href="{escape(entry.link)}">{escape(entry.title)}</a></h3>'
            f'<div class="pair">{_cell(2 * number, "truth", False)}{_cell(2 * number + 1, "prediction", True)}</div>'
            f'<div class="numbers"><span>PSNR {psnr:.2f}</span>'
            f"<span title='beside repeating the last context frame'>{_gain(psnr - repeated['mean_psnr'])} dB</span>"
            "</div></article>"
        )
    body = (
        f"<h1>{len(cards)} episodes</h1><p class=soft>{escape(facts)}</p>"
        f'<h2>How close, on average</h2><div class="card">{_table(averages)}</div>{_CONTROLS}'
        f'<div class="episodes">{"".join(entries)}</div>'
    )
    sprites = [uri for entry in cards for uri in (entry.truth, entry.made)]
    storage.write_bytes(path, _document(f"{len(cards)} predicted episodes", body, sprites, timing))


def sprite(frames: torch.Tensor, lossless: bool | None = None) -> str:
    """All frames (T, 3, S, S) in [0, 1] side by side as the data URI of one picture.

    Args:
        frames: Of one clip.
        lossless: PNG rather than JPEG; None takes PNG for frames of up to 128 pixels.
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


def _films(prediction: Prediction) -> list[_Film]:
    """What a page shows, in pairs that stand above each other: truth and reconstruction, a sample and its difference."""
    clip, context = prediction.clip, prediction.context_length
    films = [_Film("truth", clip.frames, False), _Film("reconstruction", prediction.reconstruction, False)]
    several = len(prediction.frames) > 1
    for number, future in enumerate(prediction.frames[:_SHOWN_SAMPLES], start=1):
        whole = torch.cat([clip.frames[:context], future])
        number_of = f" {number}" if several else ""
        films.append(_Film(f"sample{number_of}" if several else "prediction", whole, True))
        films.append(_Film(f"difference{number_of}", pictures.difference(whole, clip.frames), True))
    return films


def timing_of(prediction: Prediction) -> Timing:
    """How a prediction's clip is shown."""
    return Timing(len(prediction.clip.frames), prediction.context_length, prediction.clip.rate)


def _title(clip: Clip) -> str:
    return f"{clip.dataset} · {clip.key}"


def _cell(number: int, name: str, is_made: bool) -> str:
    """A window on sprite `number`."""
    return (
        f'<figure{" class=made" if is_made else ""}><div class="sprite s{number}" role="img" aria-label="{escape(name)}">'
        f"</div><figcaption>{escape(name)}</figcaption></figure>"
    )


def _thumbnails(frames: torch.Tensor) -> torch.Tensor:
    if frames.shape[-1] <= _THUMBNAIL_SIDE:
        return frames
    return torch.nn.functional.interpolate(frames, size=_THUMBNAIL_SIDE, mode="bilinear", antialias=True)


def _chart(metrics: dict[str, Any]) -> str:
    samples = metrics["prediction"]["samples"]
    curves = [Curve("sample", f"sample {number}", entry["psnr"]) for number, entry in enumerate(samples, start=1)]
    mean = [sum(values) / len(values) for values in zip(*(entry["psnr"] for entry in samples), strict=True)]
    repeat, ceiling = metrics["repeat_last_frame"]["psnr"], metrics["reconstruction"]["psnr"]
    means = [Curve("ceiling", "reconstruction", ceiling), Curve("repeat", "repeating", repeat), Curve("mean", "mean", mean)]
    return lines([*(curves if len(curves) > 1 else []), *means], "PSNR of each predicted frame, dB", "predicted frame")


def _legend(several: bool) -> str:
    shown = [(kind, text) for kind, text in _LEGEND if several or kind != "sample"]
    entries = (f"<span><i class={kind}></i>{escape(_of_one(text, several))}</span>" for kind, text in shown)
    return f'<div class="legend">{"".join(entries)}</div>'


def _table(metrics: dict[str, Any]) -> str:
    repeated = metrics["repeat_last_frame"]
    mean, best = metrics["prediction"]["mean"], metrics["prediction"]["best"]
    several = mean != best
    rows = [
        (_of_one("prediction, mean of samples", several), mean),
        *([("prediction, best sample", best)] if several else []),
        ("repeating the last context frame", repeated),
        ("the tokenizer's reconstruction", metrics["reconstruction"]),
    ]
    head = (
        "<tr><th></th><th class=number>PSNR, dB</th><th class=number>SSIM</th><th class=number>beside repeating, dB</th></tr>"
    )
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td class=number>{row['mean_psnr']:.2f}</td><td class=number>{row['mean_ssim']:.3f}</td>"
        f"<td class=number>{'' if row is repeated else _gain(row['mean_psnr'] - repeated['mean_psnr'])}</td></tr>"
        for name, row in rows
    )
    return f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>"


def _of_one(text: str, several: bool) -> str:
    """What a row or curve is called where there is one sample: nothing is averaged then."""
    return text if several else text.removesuffix(", mean of samples")


def _gain(decibels: float) -> str:
    return f'<span class="{"good" if decibels > 0 else "bad"}">{decibels:+.2f}</span>'


def _document(title: str, body: str, sprites: Sequence[str], timing: Timing) -> bytes:
    pause = max(20, round(1000 / (timing.rate or pictures.DEFAULT_RATE)))
    rules = "".join(f".s{number} {{ background-image: url({uri}); }}\n" for number, uri in enumerate(sprites))
    style = f"{asset('training.web', 'gallery.css')}:root {{ --count: {timing.length}; }}\n{rules}"
    facts = f'data-count="{timing.length}" data-context="{timing.context_length}" data-pause="{pause}"'
    return html_page(title, body, style, asset("training.web", "gallery.js"), attributes=facts)
