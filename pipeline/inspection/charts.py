"""Distributions as inline SVG (and one bar of boxes): coloured by the page's style sheet, readable without a script.

No plotting library: a chart of thirty bars is a page of text, follows light and dark, and its numbers show under the pointer.
"""

from collections.abc import Mapping
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 320, 128
_TOP, _FLOOR = 22, 104
_BINS = 28
_ROW = 24
_BARS = 5
# Of many values, how many a histogram shows apart; the rest, far away, share its last bin.
_SHOWN, _MANY = 0.99, 200


def histogram(values: np.ndarray, title: str, unit: str, domain: tuple[float, float] | None = None) -> str:
    """How values are distributed, with their median marked.

    Args:
        values: (N,), at least one.
        title: What they are.
        unit: Of them, for the pointer; may be empty.
        domain: Least and greatest value of the axis; by default those of the values, of many without the farthest hundredth.
    """
    farthest = np.quantile(values, _SHOWN, method="higher") if len(values) >= _MANY else values.max()
    low, high = domain or (float(values.min()), float(farthest))
    high = high if high > low else low + 1
    edges = np.linspace(low, high, _BINS + 1)
    counts, _ = np.histogram(np.clip(values, low, high), edges)
    beyond = domain is None and values.max() > high
    pitch, most = _WIDTH / _BINS, counts.max()
    bars = []
    for number, count in enumerate(counts.tolist()):
        if count:
            tall = max(2.0, count / most * (_FLOOR - _TOP))
            last = beyond and number == _BINS - 1
            upper = f"{values.max():.4g}" if last else f"{edges[number + 1]:.4g}"
            label = f"{edges[number]:.4g} to {upper} {unit}: {count:,}"
            bars.append(
                f'<rect class="bar" x="{number * pitch + 0.75:.1f}" y="{_FLOOR - tall:.1f}" width="{pitch - 1.5:.1f}" '
                f'height="{tall:.1f}" rx="1.5"><title>{escape(label)}</title></rect>'
            )
    median = float(np.median(values))
    at = min(max((median - low) / (high - low), 0), 1) * _WIDTH
    anchor = "start" if at < _WIDTH / 2 else "end"
    mark = (
        f'<line class="median" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{_FLOOR}"/>'
        f'<text class="median" x="{at + (4 if anchor == "start" else -4):.1f}" y="{_TOP - 8}" text-anchor="{anchor}">'
        f"median {median:.4g}</text>"
    )
    axis = (
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_FLOOR + 0.5}" y2="{_FLOOR + 0.5}"/>'
        f'<text x="0" y="{_FLOOR + 17}">{low:.4g}</text>'
        f'<text x="{_WIDTH}" y="{_FLOOR + 17}" text-anchor="end">{"≥ " if beyond else ""}{high:.4g}</text>'
    )
    return _figure(title, _HEIGHT, "".join(bars) + mark + axis)


def bars(counts: Mapping[str, int], title: str) -> str:
    """How often values occur, the most frequent first.

    Args:
        counts: Value -> how often, in the order to be shown.
        title: What they are.
    """
    shown = list(counts.items())[:_BARS]
    if rest := sum(list(counts.values())[_BARS:]):
        shown.append((f"{len(counts) - _BARS} others", rest))
    total, most = sum(counts.values()), max(count for _, count in shown)
    rows = []
    for number, (name, count) in enumerate(shown):
        y = number * _ROW
        short = name if len(name) <= 26 else name[:25] + "…"
        rows.append(
            f'<g><title>{escape(name)}: {count:,}</title><rect class="bar faint" x="0" y="{y + 2}" '
            f'width="{max(3, count / most * _WIDTH):.1f}" height="{_ROW - 6}" rx="3"/>'
            f'<text class="name" x="7" y="{y + 15.5}">{escape(short)}</text>'
            f'<text x="{_WIDTH - 4}" y="{y + 15.5}" text-anchor="end">{count / total:.0%}</text></g>'
        )
    return _figure(title, len(shown) * _ROW, "".join(rows))


def shares(counts: Mapping[str, int], title: str, links: Mapping[str, str]) -> str:
    """One bar that parts share, each a link, in colours `part0` to `part7` in turn; boxes, whose text can't be stretched.

    Args:
        counts: Part -> its size, at least one above zero.
        title: What is shared.
        links: Part -> where its place in the bar leads to.
    """
    total = sum(counts.values())
    parts = (
        f'<a class="part{number % 8}" style="flex-grow:{count / total:.5f}" href="{escape(links[name])}" '
        f'title="{escape(name)}: {count:,}, {count / total:.1%}">{escape(name)}</a>'
        for number, (name, count) in enumerate(counts.items())
    )
    return f'<nav class="shares" aria-label="{escape(title)}">{"".join(parts)}</nav>'


def _figure(title: str, height: float, body: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg></figure>'
    )
