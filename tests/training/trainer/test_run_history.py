"""The record of a run: what held at which step never changes afterwards, whatever later starts ask for."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import ConflictError
from training.trainer.run_history import HISTORY_NAME, Phase, RunHistory, read_history, write_history

STARTS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.dictionaries(st.sampled_from("abc"), st.integers(1, 3).map(str), min_size=1),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=8,
)


def _record(starts):
    record = RunHistory((Phase(0, {"a": "1"}, 100),))
    for step, weights, steps in starts:
        yield step, record, (record := record.continued(Phase(step, weights, steps)))


def _at(record, step):
    return next(phase for phase in reversed(record.phases) if phase.first_step <= step)


@given(starts=STARTS)
@settings(max_examples=40, deadline=None)
def test_a_start_leaves_all_steps_before_it_as_they_were(starts):
    for step, before, after in _record(starts):
        assert all(_at(after, earlier).holds(_at(before, earlier)) for earlier in range(0, step, 5))
        assert all(after.steps_at(earlier) == before.steps_at(earlier) for earlier in range(0, step, 5))


@given(starts=STARTS)
@settings(max_examples=40, deadline=None)
def test_a_start_gets_what_it_asks_for_from_its_step_on_or_repeats_what_led_there(starts):
    for (step, weights, steps), (_, before, after) in zip(starts, _record(starts), strict=True):
        wanted = Phase(step, weights, steps)
        assert after.phases[-1].holds(wanted)
        assert after == before or all(_at(after, later).holds(wanted) for later in range(step, 80, 5))


@given(starts=STARTS)
@settings(max_examples=40, deadline=None)
def test_phases_differ_from_their_neighbours_and_mixtures_too(starts):
    *_, (_, _, record) = _record(starts)
    assert record.phases[0].first_step == 0
    for one, other in zip(record.phases, record.phases[1:], strict=False):
        assert one.first_step < other.first_step and not one.holds(other)
    mixtures = list(record.mixtures(8).items())
    assert mixtures[0][0] == 0 and all(start % 8 == 0 for start, _ in mixtures)
    assert len(mixtures) <= len(record.phases)


def test_weights_that_keep_all_shares_are_no_change():
    record = RunHistory((Phase(0, {"a": "1", "b": "3/2"}, 10),))
    assert record.continued(Phase(5, {"b": "3", "a": "2"}, 10)) is record
    longer = record.continued(Phase(5, {"b": "3", "a": "2"}, 20))
    assert longer.mixtures(4) == {0: {"a": 1, "b": Fraction(3, 2)}}
    assert [longer.steps_at(step) for step in (4, 5)] == [10, 20]


def test_a_record_reads_back_as_it_was(tmp_path):
    assert read_history(tmp_path) is None
    record = RunHistory((Phase(0, {"a": "1/3"}, 10), Phase(4, {"a": "1/3", "b": "2"}, 12)))
    write_history(tmp_path, record)
    assert read_history(tmp_path) == record


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[]",
        "{}",
        "[1]",
        '[{"first_step": 3, "weights": {"a": "1"}, "steps": 2}]',
        '[{"first_step": 0, "weights": {"a": "1/0"}, "steps": 2}]',
        '[{"first_step": 0, "weights": {}, "steps": 2}]',
        '[{"first_step": 0, "weights": {"a": "1"}, "steps": 2, "more": 1}]',
    ],
)
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / HISTORY_NAME).write_text(text)
    with pytest.raises(ConflictError, match=r"record\.json is damaged"):
        read_history(tmp_path)
