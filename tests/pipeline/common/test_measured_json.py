"""Measured numbers become JSON that every reader takes, whatever they are, and none is lost in it."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.json_files import parse_json
from pipeline.common.measured_json import NOT_FINITE, describe_not_finite, json_values, measured_json, restored

NAMES = st.text(max_size=4).filter(lambda name: name != NOT_FINITE)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


def _same(one, other):
    """Whether two values are the same, NaN like NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _finite(value):
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(map(_finite, parts)) and (not isinstance(value, float) or math.isfinite(value))


@given(values=st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_numbers_become_strict_json_and_come_back_from_it(values):
    read = parse_json(measured_json(values))
    assert _same(restored(read), values)
    assert (NOT_FINITE in read) == (not _finite(values))


def test_what_is_not_finite_is_null_and_said_by_its_place():
    values = {"loss": 1.5, "held_out": {"alpha": math.nan, "b/c": -math.inf}, "frames": (1.0, math.inf)}
    assert json_values(values) == {
        "loss": 1.5,
        "held_out": {"alpha": None, "b/c": None},
        "frames": [1.0, None],
        NOT_FINITE: {"held_out/alpha": "nan", "held_out/b~1c": "-inf", "frames/1": "inf"},
    }
    assert describe_not_finite(values) == "held_out/alpha nan, held_out/b~1c -inf, frames/1 inf"
    assert describe_not_finite({"loss": None, "steps": 3}) == ""
