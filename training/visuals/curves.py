"""Quality over time as an inline SVG: one line a series, drawn with classes that a style sheet colours.

No plotting library: a chart of a few lines is a page of text, and it follows the page's light and dark colours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 40
_MOST_TICKS = 12


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        kind: Its class: `sample`, `mean`, `repeat` or `ceiling`.
        label: What the pointer shows.
        values: One a frame.
    """

    kind: str
    label: str
    values: Sequence[float]


def psnr_chart(curves: Sequence[Curve]) -> str:
    """An SVG element with PSNR in dB over predicted frames 1, 2, ..., and a hidden cursor that a script can move.

    Args:
        curves: At least one, all of the same length.
    """
    count = len(curves[0].values)
    low, high, step = _scale([value for curve in curves for value in curve.values])
    pitch = (_WIDTH - _LEFT - _RIGHT) / max(1, count - 1)
    floor = _HEIGHT - _BOTTOM

    def y(value: float) -> float:
        return floor - (value - low) / (high - low) * (floor - _TOP)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="PSNR of every predicted frame">']
    for tick in range(round((high - low) / step) + 1):
        value = low + tick * step
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for frame in range(0, count, -(-count // _MOST_TICKS)):
        parts.append(f'<text x="{_LEFT + frame * pitch:.1f}" y="{floor + 17}" text-anchor="middle">+{frame + 1}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">predicted frame</text>')
    parts.append(
        f'<text x="12" y="{(floor + _TOP) / 2:.0f}" transform="rotate(-90 12 {(floor + _TOP) / 2:.0f})" '
        'text-anchor="middle">PSNR, dB</text>'
    )
    for curve in curves:
        points = " ".join(f"{_LEFT + frame * pitch:.1f},{y(value):.1f}" for frame, value in enumerate(curve.values))
        parts.append(f'<polyline class="{curve.kind}" points="{points}"><title>{escape(curve.label)}</title></polyline>')
    parts.append(
        f'<line class="cursor" data-left="{_LEFT}" data-pitch="{pitch:.4f}" y1="{_TOP}" y2="{floor}" '
        'visibility="hidden"/></svg>'
    )
    return "".join(parts)


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower end, upper end and distance of three to nine grid lines around values."""
    span = max(values) - min(values)
    step = next((step for step in (1, 2, 5, 10) if span / step <= 6), 20)
    low = math.floor(min(values) / step) * step
    return low, max(math.ceil(max(values) / step) * step, low + 2 * step), step
