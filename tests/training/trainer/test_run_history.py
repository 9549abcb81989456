"""A run's history never changes for steps already made, whatever later starts ask for."""

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


def _histories(starts):
    history = RunHistory((Phase(0, {"a": "1"}, 100),))
    for step, weights, steps in starts:
        yield step, history, (history := history.continued(Phase(step, weights, steps)))


def _at(history, step):
    return next(phase for phase in reversed(history.phases) if phase.first_step <= step)


@given(starts=STARTS)
@settings(max_examples=40, deadline=None)
def test_a_start_does_not_change_the_steps_before_it(starts):
    for step, before, after in _histories(starts):
        assert all(_at(after, earlier).holds(_at(before, earlier)) for earlier in range(0, step, 5))
        assert all(after.steps_at(earlier) == before.steps_at(earlier) for earlier in range(0, step, 5))


@given(starts=STARTS)
@settings(max_examples=40, deadline=None)
def test_a_start_gets_its_settings_from_its_step_on_or_repeats_the_known_phases(starts):
    for (step, weights, steps), (_, before, after) in zip(starts, _histories(starts), strict=True):
        wanted = Phase(step, weights, steps)
        assert after.phases[-1].holds(wanted)
        assert after == before or all(_at(after, later).holds(wanted) for later in range(step, 80, 5))


@given(starts=STARTS)
@settings(max_examples=40, deadline=None)
def test_phases_differ_from_their_neighbours_and_mixtures_too(starts):
    *_, (_, _, history) = _histories(starts)
    assert history.phases[0].first_step == 0
    for one, other in zip(history.phases, history.phases[1:], strict=False):
        assert one.first_step < other.first_step and not one.holds(other)
    mixtures = list(history.mixtures(8).items())
    assert mixtures[0][0] == 0 and all(start % 8 == 0 for start, _ in mixtures)
    assert len(mixtures) <= len(history.phases)


def test_weights_with_equal_shares_are_not_a_change():
    history = RunHistory((Phase(0, {"a": "1", "b": "3/2"}, 10),))
    assert history.continued(Phase(5, {"b": "3", "a": "2"}, 10)) is history
    longer = history.continued(Phase(5, {"b": "3", "a": "2"}, 20))
    assert longer.mixtures(4) == {0: {"a": 1, "b": Fraction(3, 2)}}
    assert [longer.steps_at(step) for step in (4, 5)] == [10, 20]


def test_a_history_is_read_back_unchanged(tmp_path):
    assert read_history(tmp_path) is None
    history = RunHistory((Phase(0, {"a": "1/3"}, 10), Phase(4, {"a": "1/3", "b": "2"}, 12)))
    write_history(tmp_path, history)
    assert read_history(tmp_path) == history


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
def test_a_damaged_history_is_refused(tmp_path, text):
    (tmp_path / HISTORY_NAME).write_text(text)
    with pytest.raises(ConflictError, match=r"record\.json is damaged"):
        read_history(tmp_path)
