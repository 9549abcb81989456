"""Any measured numbers become strict JSON, and the round trip loses none."""

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
    """Whether two values are equal; NaN equals NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _finite(value):
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(map(_finite, parts)) and (not isinstance(value, float) or math.isfinite(value))


@given(values=st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_numbers_survive_the_round_trip_through_strict_json(values):
    read = parse_json(measured_json(values))
    assert _same(restored(read), values)
    assert (NOT_FINITE in read) == (not _finite(values))


def test_a_number_that_is_not_finite_is_null_and_listed_by_its_path():
    values = {"loss": 1.5, "held_out": {"alpha": math.nan, "b/c": -math.inf}, "frames": (1.0, math.inf)}
    assert json_values(values) == {
        "loss": 1.5,
        "held_out": {"alpha": None, "b/c": None},
        "frames": [1.0, None],
        NOT_FINITE: {"held_out/alpha": "nan", "held_out/b~1c": "-inf", "frames/1": "inf"},
    }
    assert describe_not_finite(values) == "held_out/alpha nan, held_out/b~1c -inf, frames/1 inf"
    assert describe_not_finite({"loss": None, "steps": 3}) == ""
