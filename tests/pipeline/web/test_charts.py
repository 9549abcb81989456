"""Charts show every value, stay inside their frame, and treat names as text."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.web.charts import Curve, bars, histogram, lines, shares


@settings(max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_a_histogram_counts_every_value_once_and_stays_inside(values):
    chart = histogram(np.array(values), "title <&>", "frames")
    counted = [int(count.replace(",", "")) for count in re.findall(r": ([\d,]+)</title>", chart)]
    assert sum(counted) == len(values)
    for x, y, width, height in re.findall(
        r'<rect class="bar" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', chart
    ):
        assert float(x) >= 0 and float(x) + float(width) <= 320 and float(y) >= 0 and float(y) + float(height) <= 105
    assert "title &lt;&amp;&gt;" in chart


@given(st.dictionaries(st.text(min_size=1, max_size=40), st.integers(1, 10**9), min_size=1, max_size=20))
def test_bars_and_shares_name_values_as_text(counts):
    for chart in (bars(counts, "title"), shares(counts, "title", dict.fromkeys(counts, "#set0"))):
        assert "<script" not in chart.lower().replace("&lt;", "")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', bars(counts, "title"))]
    assert all(3 <= width <= 320 for width in widths) and len(widths) == min(len(counts), 6)


@given(st.lists(st.floats(-20, 100, allow_nan=False), min_size=1, max_size=40))
def test_chart_keeps_every_value_inside_and_in_order(values):
    chart = lines([Curve("mean", "mean", values)], "PSNR, dB", "predicted frame")
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', chart)[1].split()]
    assert len(points) == len(values)
    assert all(0 <= x <= 640 and 0 <= y <= 240 for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    for (_, y), (_, other), value, second in zip(points, points[1:], values, values[1:], strict=False):
        assert (y - other) * (second - value) >= -0.2
