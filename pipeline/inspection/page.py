"""Writes a folder of data sets as one self-contained HTML page: videos, distributions, and the skipped episodes with reasons.

Pictures are data URIs, and the page has no script. Texts from inputs are escaped. The pictures of all data sets share one size
budget.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from pipeline.common import storage
from pipeline.episodes.index import read_index
from pipeline.inspection.overview import FolderReport, Overview
from pipeline.inspection.thumbnails import Thumbnail, animation, strip, thumbnails
from pipeline.web.charts import bars, histogram, shares
from pipeline.web.page import asset, html_page

# Size limits in bytes for all pictures of a page, and for the pictures of one data set.
_PAGE_BUDGET = 24 << 20
_CARD_BUDGET = 900 << 10
_PLAYING, _STRIPS = 12, 4
# Fraction of a data set's budget for the animation; the strips get the rest.
_ANIMATION_SHARE = 0.6
_BASE64 = 4 / 3
_LISTED_REASONS, _LISTED_PLACES, _LISTED_FAULTS = 30, 3, 50
_LONGEST = 300
_QUALITY = {
    "static_share": ("share of frames without motion", (0.0, 1.0)),
    "uniform_share": ("share of black or single-colour frames", (0.0, 1.0)),
    "repeated_share": ("share of repeated frames", (0.0, 1.0)),
    "swap_score": ("colours: -1 warm, +1 cold (red and blue swapped?)", (-1.0, 1.0)),
}
_CLEAN = {"uniform_share": "black or single-colour frames", "repeated_share": "repeated frames"}


def write_page(path: str, title: str, reports: Sequence[FolderReport], verified: bool) -> None:
    """Write the page.

    Args:
        path: File or URL of the page.
        title: Path of the inspected folder.
        reports: Report of each folder of shards below it.
        verified: Whether every byte was read; otherwise only sizes were compared.
    """
    # Data sets are named by their path below the folder, because several may have the same name.
    root = title.rstrip("/")
    names = {
        report.folder: report.folder.removeprefix(root).strip("/") or storage.basename(report.folder) for report in reports
    }
    shown = {report.folder: report.overview for report in reports if report.overview is not None}
    budget = int(min(_CARD_BUDGET, _PAGE_BUDGET / max(1, len(shown))) / _BASE64)
    name = storage.basename(title.rstrip("/")) or title
    body = [_head(name, title, reports, verified)]
    if shown:
        body.append(_table({names[folder]: overview for folder, overview in shown.items()}))
        cards = enumerate(shown.items())
        body += [_card(number, names[folder], folder, overview, budget) for number, (folder, overview) in cards]
    tokens = [report for report in reports if report.kind == "tokens"]
    unfinished = [report for report in reports if report.kind == "episodes" and report.overview is None]
    body.append(_shards("Token shards", "Each row is a clip. Held-out episodes have their own split.", tokens))
    body.append(_shards("Episode shards without an index", "Their ingest has not finished.", unfinished))
    storage.write_bytes(path, html_page(f"{name}: data sets", "".join(body), asset("pipeline.web", "data_page.css")))


def _head(name: str, title: str, reports: Sequence[FolderReport], verified: bool) -> str:
    faults = [fault for report in reports for fault in report.faults]
    numbers = _episode_numbers([report.overview for report in reports if report.overview is not None])
    numbers += _token_numbers([report for report in reports if report.kind == "tokens"])
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in numbers)
    how = "checked every byte and every sample" if verified else "checked sizes only; --verify reads every byte"
    state = f"{len(faults):,} fault{'s' * (len(faults) > 1)}" if faults else "no faults"
    badge = f'<span class="badge {"bad" if faults else "good"}">{state}</span> <span class="soft">{how}</span>'
    listed = "".join(f"<li>{escape(fault[:_LONGEST])}</li>" for fault in faults[:_LISTED_FAULTS])
    more = f"<li>and {len(faults) - _LISTED_FAULTS:,} more</li>" if len(faults) > _LISTED_FAULTS else ""
    return (
        f'<header><h1>{escape(name)}</h1><p class="soft path">{escape(title)}</p><p>{badge}</p></header>'
        f'<section class="tiles">{tiles}</section>{f"<ul class=faults>{listed}{more}</ul>" if faults else ""}'
    )


def _episode_numbers(overviews: Sequence[Overview]) -> list[tuple[str, str]]:
    """Return (number, label) pairs of the episode data sets; an empty list if there are none."""
    if not overviews:
        return []
    left_out = sum(len(places) for overview in overviews for places in overview.left_out.values())
    hours = [overview.hours for overview in overviews if overview.hours is not None]
    return [
        (f"{len(overviews):,}", "data sets"),
        (_count(sum(overview.episodes for overview in overviews)), "episodes"),
        (_count(sum(overview.frames for overview in overviews)), "frames"),
        (_hours(sum(hours)) if hours else "unknown", "of video"),
        (_bytes(sum(overview.bytes for overview in overviews)), "in episode shards"),
        (_count(left_out), "episodes left out"),
    ]


def _token_numbers(reports: Sequence[FolderReport]) -> list[tuple[str, str]]:
    """Return (number, label) pairs of the folders of token shards; an empty list if there are none."""
    splits = [counts for report in reports for counts in report.splits.values()]
    if not splits:
        return []
    return [
        (f"{len(reports):,}", "tokenized data sets"),
        (_count(sum(counts["shards"] for counts in splits)), "token shards"),
        (_count(sum(counts["samples"] for counts in splits)), "tokenized clips"),
        (_bytes(sum(counts["bytes"] for counts in splits)), "in token shards"),
    ]


def _table(shown: Mapping[str, Overview]) -> str:
    rows, frames, links = [], {}, {}
    for number, (name, overview) in enumerate(shown.items()):
        frames[name], links[name] = overview.frames, f"#set{number}"
        left_out = sum(map(len, overview.left_out.values()))
        cells = [
            f"{overview.episodes:,}",
            _count(overview.frames),
            _hours(overview.hours) if overview.hours is not None else "",
            _bytes(overview.bytes),
            f"{left_out:,}" if left_out else "",
            f"{overview.copies:,}" if overview.copies else "",
        ]
        cells_html = "".join(f"<td class=number>{cell}</td>" for cell in cells)
        rows.append(f'<tr><td><a href="#set{number}">{escape(name)}</a></td>{cells_html}</tr>')
    heads = ("episodes", "frames", "video", "size", "left out", "copies")
    head = "<th>data set</th>" + "".join(f"<th class=number>{text}</th>" for text in heads)
    held = {name: count for name, count in frames.items() if count}
    bar = shares(held, "frames of each data set", links) if len(held) > 1 else ""
    return f'{bar}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _card(number: int, name: str, folder: str, overview: Overview, budget: int) -> str:
    playing = list(thumbnails(folder, read_index(folder), _PLAYING))
    splits = " · ".join(f"{escape(split)} {count:,}" for split, count in overview.splits.items())
    return (
        f'<article class=card id="set{number}"><h2>{escape(name)}</h2><p class="soft">{splits}</p>'
        f'<div class="top">{_playing(playing, budget)}<div>{_facts(overview)}{_language(overview)}</div></div>'
        f"{_strips(playing, budget)}{_charts(overview)}{_left_out(overview)}</article>"
    )


def _playing(playing: Sequence[Thumbnail], budget: int) -> str:
    if not playing:
        return '<p class="soft nothing">No episode could be read.</p>'
    columns = 2 if len(playing) <= 4 else 3 if len(playing) <= 9 else 4
    moving, still = animation(playing, columns, int(budget * _ANIMATION_SHARE))
    return (
        f'<picture class="playing"><source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
        f'<img src="{moving}" alt="{len(playing)} episodes playing side by side"></picture>'
    )


def _strips(playing: Sequence[Thumbnail], budget: int) -> str:
    if not playing:
        return ""
    chosen = [playing[place] for place in np.linspace(0, len(playing) - 1, min(_STRIPS, len(playing))).astype(int)]
    each = int(budget * (1 - _ANIMATION_SHARE) / len(chosen))
    rows = "".join(
        f'<figure class="strip"><img src="{strip(thumbnail, each)}" alt="moments of {escape(thumbnail.key)}">'
        f"<figcaption><span>{escape(thumbnail.caption[:_LONGEST]) or '<i>no instruction</i>'}</span>"
        f"<code>{escape(thumbnail.key)}</code></figcaption></figure>"
        for thumbnail in chosen
    )
    return f"<h3>Contact sheet</h3><div class=strips>{rows}</div>"


def _facts(overview: Overview) -> str:
    language = overview.language
    instructions = f"{language['share']:.0%} of episodes, {language['distinct']:,} different"
    rows = [
        ("episodes", f"{overview.episodes:,}"),
        ("frames", f"{overview.frames:,}"),
        ("video", _hours(overview.hours) if overview.hours is not None else "rate unknown"),
        (
            "size",
            f"{_bytes(overview.bytes)}, {_bytes(overview.bytes / overview.frames)} per frame"
            if overview.frames
            else _bytes(overview.bytes),
        ),
        ("instructions", instructions if language["distinct"] else "none"),
    ]
    if overview.episodes and (overview.lengths == overview.lengths[0]).all():
        rows.append(("frames per episode", f"{overview.lengths[0]:,}"))
    rows += [(title, next(iter(counts))) for title, counts in _named(overview).items() if len(counts) == 1]
    if overview.copies is not None:
        rows.append(("exact copies", f"{overview.copies:,} episodes"))
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows) + "</dl>"


def _language(overview: Overview) -> str:
    language = overview.language
    if not language["distinct"]:
        return ""
    examples = "".join(f"<li>{escape(text)}</li>" for text in language["examples"])
    scripts = ", ".join(f"{escape(script)} {count:,}" for script, count in language["scripts"].items())
    facts_line = f"median of {language['words']:g} words; script: {scripts}"
    return f'<ul class="sayings">{examples}</ul><p class="soft small">{facts_line}</p>'


def _charts(overview: Overview) -> str:
    """Return charts of the properties that vary; `_facts` lists the others."""
    if not overview.episodes:
        return ""
    varies = len(np.unique(overview.lengths)) > 1
    charts = [histogram(overview.lengths, "frames per episode", "frames")] if varies else []
    charts += [bars(counts, title) for title, counts in _named(overview).items() if len(counts) > 1]
    clean = [
        name for name in ("uniform_share", "repeated_share") if name in overview.quality and not overview.quality[name].any()
    ]
    charts += [
        histogram(overview.quality[name], *_labelled(name))
        for name in _QUALITY
        if name in overview.quality and name not in clean
    ]
    notes = [f"No episode has {_CLEAN[name]}." for name in clean]
    if not overview.quality:
        notes.append("These shards have no quality measurements.")
    return f'<h3>Distributions</h3><div class=charts>{"".join(charts)}</div><p class="soft">{" ".join(notes)}</p>'


def _named(overview: Overview) -> dict[str, dict[str, int]]:
    return {"height x width": overview.resolutions, "rate in Hz": overview.rates, "camera": overview.cameras}


def _labelled(name: str) -> tuple[str, str, tuple[float, float]]:
    title, domain = _QUALITY[name]
    return title, "", domain


def _left_out(overview: Overview) -> str:
    if not overview.left_out:
        return '<p class="soft">No episode was left out.</p>'
    ordered = sorted(overview.left_out.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = []
    for (kind, reason), places in ordered[:_LISTED_REASONS]:
        listed = "; ".join(places[:_LISTED_PLACES]) + (
            f"; and {len(places) - _LISTED_PLACES:,} more" * (len(places) > _LISTED_PLACES)
        )
        rows.append(
            f'<tr><td class=number>{len(places):,}</td><td><span class="badge {escape(kind)}">{escape(kind)}</span></td>'
            f"<td>{escape(reason[:_LONGEST])}<br><span class=soft>{escape(listed[:_LONGEST])}</span></td></tr>"
        )
    total = sum(len(places) for _, places in ordered)
    more = f"<p class=soft>and {len(ordered) - _LISTED_REASONS:,} more reasons</p>" if len(ordered) > _LISTED_REASONS else ""
    return (
        f"<details open><summary>{total:,} episodes left out for {len(ordered):,} different reasons</summary>"
        f'<div class="scroll"><table class="reasons"><tbody>{"".join(rows)}</tbody></table></div>{more}</details>'
    )


def _shards(title: str, note: str, reports: Sequence[FolderReport]) -> str:
    """Return a short table of folders without an index; empty if there are none."""
    rows = "".join(
        f"<tr><td>{escape(report.folder)}</td><td>{escape(split)}</td><td class=number>{counts['shards']:,}</td>"
        f"<td class=number>{counts['samples']:,}</td><td class=number>{_bytes(counts['bytes'])}</td></tr>"
        for report in reports
        for split, counts in report.splits.items()
    )
    if not rows:
        return ""
    columns = ("shards", "clips or episodes", "size")
    head = "<th>folder</th><th>split</th>" + "".join(f"<th class=number>{name}</th>" for name in columns)
    return (
        f"<article class=card><h2>{title}</h2><p class=soft>{note}</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></article>'
    )


def _count(value: float) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:,.0f}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
