"""Draws charts as inline SVG: histograms, bars and lines, plus one bar of linked boxes.

The theme's style sheet colours them, so they follow light and dark. They need no script, and values show under the pointer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 320, 128
_TOP, _FLOOR = 22, 104
_BINS = 28
_ROW = 24
_MAX_BARS = 5
# From `_MANY` values on, a histogram's axis ends at this quantile; values beyond it fall into the last bin.
_AXIS_QUANTILE, _MANY = 0.99, 200
_LINES_WIDTH, _LINES_HEIGHT = 640, 240
_LINES_LEFT, _LINES_RIGHT, _LINES_TOP, _LINES_FLOOR = 34, 12, 10, 202
_MAX_TICKS = 12


@dataclass(frozen=True)
class Curve:
    """One line of a line chart.

    Attributes:
        kind: CSS class of the line.
        label: Text that shows under the pointer.
        values: One value for each place on the x axis.
    """

    kind: str
    label: str
    values: Sequence[float]


def histogram(values: np.ndarray, title: str, unit: str, domain: tuple[float, float] | None = None) -> str:
    """Returns a histogram with the median marked.

    Args:
        values: (N,), at least one.
        title: What the values are.
        unit: Unit that shows under the pointer; may be empty.
        domain: Lower and upper end of the axis. By default the axis covers all values; with many values it leaves out the
            largest hundredth.
    """
    largest = np.quantile(values, _AXIS_QUANTILE, method="higher") if len(values) >= _MANY else values.max()
    low, high = domain or (float(values.min()), float(largest))
    high = high if high > low else low + 1
    edges = np.linspace(low, high, _BINS + 1)
    counts, _ = np.histogram(np.clip(values, low, high), edges)
    beyond = domain is None and values.max() > high
    pitch, most = _WIDTH / _BINS, counts.max()
    parts = []
    for number, count in enumerate(counts.tolist()):
        if count:
            height = max(2.0, count / most * (_FLOOR - _TOP))
            upper = values.max() if beyond and number == _BINS - 1 else edges[number + 1]
            label = f"{edges[number]:.4g} to {upper:.4g} {unit}: {count:,}"
            parts.append(
                f'<rect class="bar" x="{number * pitch + 0.75:.1f}" y="{_FLOOR - height:.1f}" width="{pitch - 1.5:.1f}" '
                f'height="{height:.1f}" rx="1.5"><title>{escape(label)}</title></rect>'
            )
    median = float(np.median(values))
    x = min(max((median - low) / (high - low), 0), 1) * _WIDTH
    anchor, shift = ("start", 4) if x < _WIDTH / 2 else ("end", -4)
    parts += [
        _line("median", (x, x), (_TOP - 6, _FLOOR)),
        _text(x + shift, _TOP - 8, f"median {median:.4g}", anchor, "median"),
        _line("axis", (0, _WIDTH), (_FLOOR + 0.5, _FLOOR + 0.5)),
        _text(0, _FLOOR + 17, f"{low:.4g}"),
        _text(_WIDTH, _FLOOR + 17, f"{'≥ ' if beyond else ''}{high:.4g}", "end"),
    ]
    return _figure(title, (_WIDTH, _HEIGHT), parts)


def bars(counts: Mapping[str, int], title: str) -> str:
    """Returns a chart of how often each value occurs; values beyond the first five share one bar.

    Args:
        counts: Value -> number of occurrences, in the order of the bars.
        title: What the values are.
    """
    shown = list(counts.items())[:_MAX_BARS]
    if rest := sum(list(counts.values())[_MAX_BARS:]):
        shown.append((f"{len(counts) - _MAX_BARS} others", rest))
    total, most = sum(counts.values()), max(count for _, count in shown)
    rows = []
    for number, (name, count) in enumerate(shown):
        y = number * _ROW
        short = name if len(name) <= 26 else name[:25] + "…"
        rows.append(
            f'<g><title>{escape(name)}: {count:,}</title><rect class="bar faint" x="0" y="{y + 2}" '
            f'width="{max(3, count / most * _WIDTH):.1f}" height="{_ROW - 6}" rx="3"/>'
            f"{_text(7, y + 15.5, short, kind='name')}{_text(_WIDTH - 4, y + 15.5, f'{count / total:.0%}', 'end')}</g>"
        )
    return _figure(title, (_WIDTH, len(shown) * _ROW), rows)


def shares(counts: Mapping[str, int], title: str, links: Mapping[str, str]) -> str:
    """Returns one bar divided among parts; each part is a link with a colour class from `part0` to `part7`.

    Args:
        counts: Part -> its size; at least one is above zero.
        title: What is divided.
        links: Part -> target of its link.
    """
    total = sum(counts.values())
    # Boxes, because SVG would stretch their text.
    parts = (
        f'<a class="part{number % 8}" style="flex-grow:{count / total:.5f}" href="{escape(links[name])}" '
        f'title="{escape(name)}: {count:,}, {count / total:.1%}">{escape(name)}</a>'
        for number, (name, count) in enumerate(counts.items())
    )
    return f'<nav class="shares" aria-label="{escape(title)}">{"".join(parts)}</nav>'


def lines(curves: Sequence[Curve], title: str, axis: str) -> str:
    """Returns a line chart over places +1, +2, ..., with a hidden cursor that a script can move.

    Args:
        curves: At least one, all of the same length.
        title: What the values are, with their unit.
        axis: What the places are.
    """
    count = len(curves[0].values)
    low, high, step = _scale([value for curve in curves for value in curve.values])
    right = _LINES_WIDTH - _LINES_RIGHT
    pitch = (right - _LINES_LEFT) / max(1, count - 1)

    def y(value: float) -> float:
        return _LINES_FLOOR - (value - low) / (high - low) * (_LINES_FLOOR - _LINES_TOP)

    parts = []
    for value in np.linspace(low, high, round((high - low) / step) + 1).tolist():
        parts.append(_line("grid", (_LINES_LEFT, right), (y(value), y(value))))
        parts.append(_text(_LINES_LEFT - 6, y(value) + 4, f"{value:g}", "end"))
    for place in range(0, count, -(-count // _MAX_TICKS)):
        parts.append(_text(_LINES_LEFT + place * pitch, _LINES_FLOOR + 17, f"+{place + 1}", "middle"))
    parts.append(_text((_LINES_LEFT + right) / 2, _LINES_HEIGHT - 4, axis, "middle"))
    for curve in curves:
        points = " ".join(f"{_LINES_LEFT + place * pitch:.1f},{y(value):.1f}" for place, value in enumerate(curve.values))
        parts.append(f'<polyline class="{curve.kind}" points="{points}"><title>{escape(curve.label)}</title></polyline>')
    cursor = f'data-left="{_LINES_LEFT}" data-pitch="{pitch:.4f}" y1="{_LINES_TOP}" y2="{_LINES_FLOOR}"'
    parts.append(f'<line class="cursor" {cursor} visibility="hidden"/>')
    return _figure(title, (_LINES_WIDTH, _LINES_HEIGHT), parts)


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the lower end, upper end and distance of three to nine grid lines around values."""
    span = max(values) - min(values)
    step = next((step for step in (1, 2, 5, 10) if span / step <= 6), 20)
    low = math.floor(min(values) / step) * step
    return low, max(math.ceil(max(values) / step) * step, low + 2 * step), step


def _line(kind: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    return f'<line class="{kind}" x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y[0]:.1f}" y2="{y[1]:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "note") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, size: tuple[float, float], parts: Sequence[str]) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )
