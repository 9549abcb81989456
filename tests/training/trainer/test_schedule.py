"""Learning rates, batch plans and seeds follow only from the step's number."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from pipeline.config.model import TrainingConfig
from training.data.batch_plan import plan_batches
from training.trainer.schedule import dropout_seed, learning_rate


@given(
    steps=st.integers(2, 5000),
    warmup=st.integers(0, 6000),
    final=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "constant", "wsd"]),
    decay=st.none() | st.integers(1, 6000),
)
def test_the_learning_rate_rises_to_its_peak_and_then_never_rises_or_falls_below_the_final_share(
    steps, warmup, final, schedule, decay
):
    config = TrainingConfig(steps=steps, warmup_steps=warmup, final_learning_rate=final, schedule=schedule, decay_steps=decay)
    rates = [learning_rate(config, step) for step in range(0, steps + 1, max(1, steps // 50))]
    rising = [a for a, step in zip(rates, range(0, steps + 1, max(1, steps // 50)), strict=True) if step <= warmup]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(0 < rate <= config.learning_rate for rate in rates[: len(rising)])
    falling = rates[len(rising) :]
    assert all(a >= b for a, b in itertools.pairwise(falling))
    assert all(rate >= final * config.learning_rate * (1 - 1e-12) for rate in falling)


def test_the_published_schedule_passes_through_known_points():
    config = TrainingConfig(steps=105_000, warmup_steps=5000, learning_rate=1e-4)
    assert learning_rate(config, 5000) == pytest.approx(1e-4)
    assert learning_rate(config, 55_000) == pytest.approx(0.5e-4)
    assert learning_rate(config, 30_000) == pytest.approx(1e-4 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(config, 105_000) == pytest.approx(0, abs=1e-12)


def test_warmup_stable_decay_stays_at_its_peak_until_the_last_steps_and_falls_evenly():
    config = TrainingConfig(
        steps=1000, warmup_steps=100, learning_rate=2.0, schedule="wsd", decay_steps=200, final_learning_rate=0.5
    )
    assert {learning_rate(config, step) for step in range(100, 801)} == {2.0}
    assert learning_rate(config, 900) == pytest.approx(1.5)
    assert learning_rate(config, 999) == pytest.approx(1 + 1 / 200)
    tenth = TrainingConfig(steps=1000, warmup_steps=0, learning_rate=1.0, schedule="wsd")
    assert (learning_rate(tenth, 900), learning_rate(tenth, 950)) == (1.0, pytest.approx(0.5))


@given(world=st.integers(1, 12), micro=st.integers(1, 6), accumulation=st.integers(1, 5), step=st.integers(0, 10**7))
def test_all_ranks_together_read_each_sample_of_a_step_once_in_contiguous_slices(world, micro, accumulation, step):
    config = TrainingConfig(global_batch=world * micro * accumulation, micro_batch=micro)
    plans = [plan_batches(config, world, rank) for rank in range(world)]
    starts = [plan.first_sample(step, m) for plan in plans for m in range(plan.accumulation)]
    read = [sample for start in starts for sample in range(start, start + micro)]
    assert read == list(range(step * config.global_batch, (step + 1) * config.global_batch))


@pytest.mark.parametrize(
    ("config", "world", "message"),
    [
        (TrainingConfig(global_batch=10), 4, r"global_batch 10 can't be divided by 4 processes"),
        (TrainingConfig(global_batch=2), 4, r"global_batch 2 can't be divided"),
        (
            TrainingConfig(global_batch=24, micro_batch=5),
            2,
            r"micro_batch 5 must divide .*24 / 2 = 12: choose one of 1, 2, 3, 4, 6",
        ),
        (TrainingConfig(global_batch=24, micro_batch=24), 2, r"micro_batch 24 must divide"),
    ],
)
def test_batch_sizes_that_do_not_divide_are_refused_with_valid_sizes(config, world, message):
    with pytest.raises(ConfigError, match=message):
        plan_batches(config, world, 0)


def test_dropout_seeds_differ_between_steps_micro_steps_ranks_and_runs():
    seeds = {dropout_seed(*place) for place in itertools.product(range(3), repeat=4)}
    assert len(seeds) == 81 and all(0 <= seed < 2**63 for seed in seeds)
