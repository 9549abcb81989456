"""The order of samples has exact proportions, draws every clip once per epoch, and is the same however the work is split."""

import itertools
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from training.data.sampler import BLOCK, DatasetSize, SampleOrder

GOLDEN = [
    ("kuka", 34),
    ("fractal20220817_data", 564),
    ("fractal20220817_data", 346),
    ("fractal20220817_data", 220),
    ("fractal20220817_data", 1747),
]
CHANGED_GOLDEN = [("kuka", 28), ("kuka", 64), ("kuka", 34)]
SIZES = st.integers(1, 700)
MIXTURES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=6), st.tuples(SIZES, st.integers(1, 4), st.floats(1e-3, 100)), min_size=1, max_size=6
)


def _order(mixture: dict[str, tuple[int, int, float]], seed: int = 0) -> SampleOrder:
    sizes = {name: DatasetSize(positions, views) for name, (positions, views, _) in mixture.items()}
    return SampleOrder(sizes, {name: weight for name, (_, _, weight) in mixture.items()}, seed)


@given(positions=SIZES, views=st.integers(1, 5), epochs=st.integers(1, 6), seed=st.integers(0, 2**64))
@settings(max_examples=60, deadline=None)
def test_every_position_is_visited_once_in_every_epoch_each_time_in_the_next_view(positions, views, epochs, seed):
    order = SampleOrder({"a": DatasetSize(positions, views)}, None, seed)
    _, rows = order.samples(0, positions * epochs)
    by_epoch = np.sort(rows.reshape(epochs, positions), axis=1)
    assert (by_epoch // views == np.arange(positions)).all()
    view = by_epoch % views
    assert ((view[1:] - view[:-1]) % views == 1 % views).all()


@given(mixture=MIXTURES, seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_every_data_set_of_a_mixture_completes_its_own_epochs_in_order(mixture, seed):
    order = _order(mixture, seed)
    dataset, rows = order.samples(0, 3 * BLOCK)
    for number, name in enumerate(order.datasets):
        positions, views, _ = mixture[name]
        visited = rows[dataset == number] // views
        for start in range(0, len(visited) - positions + 1, positions):
            assert np.array_equal(np.sort(visited[start : start + positions]), np.arange(positions))


@given(shares=st.lists(st.integers(1, 400), min_size=1, max_size=8), block=st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_a_block_has_the_exact_share_of_each_weight_if_it_is_whole(shares, block):
    whole = [*shares[:-1], BLOCK - sum(shares[:-1])]
    if whole[-1] <= 0:
        whole = [BLOCK]
    order = SampleOrder({str(i): DatasetSize(50) for i in range(len(whole))}, {str(i): s for i, s in enumerate(whole)})
    dataset, _ = order.samples(block * BLOCK, BLOCK)
    assert np.bincount(dataset, minlength=len(whole)).tolist() == whole


@given(mixture=MIXTURES, blocks=st.integers(1, 10**12))
@settings(max_examples=60, deadline=None)
def test_proportions_never_drift_from_the_weights(mixture, blocks):
    order = _order(mixture)
    drawn = order.drawn(blocks * BLOCK)
    total = sum(order.weights.values())
    bound = math.ceil(math.log2(len(mixture))) / 2
    assert sum(drawn.values()) == blocks * BLOCK
    for name, weight in order.weights.items():
        assert abs(drawn[name] - blocks * BLOCK * weight / total) <= bound


@given(
    mixture=MIXTURES, start=st.integers(0, 10**6), count=st.integers(1, 3000), cuts=st.lists(st.integers(0, 3000), max_size=6)
)
@settings(max_examples=40, deadline=None)
def test_samples_do_not_depend_on_how_they_are_split_among_ranks_and_batches(mixture, start, count, cuts):
    order = _order(mixture)
    whole = order.samples(start, count)
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [_order(mixture).samples(start + a, b - a) for a, b in itertools.pairwise(edges)]
    for i in (0, 1):
        assert np.array_equal(np.concatenate([part[i] for part in parts]), whole[i])
    middle = count // 2
    assert order[start + middle] == (order.datasets[whole[0][middle]], whole[1][middle])


@given(mixture=MIXTURES, number=st.integers(0, 10 * BLOCK))
@settings(max_examples=30, deadline=None)
def test_drawn_counts_what_was_drawn(mixture, number):
    order = _order(mixture)
    dataset, _ = order.samples(0, number)
    assert list(order.drawn(number).values()) == np.bincount(dataset, minlength=len(mixture)).tolist()


CHANGES = st.dictionaries(
    st.integers(1, 5 * BLOCK),
    st.dictionaries(st.integers(0, 5), st.floats(1e-3, 100), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


def _changing_order(mixture, changes, seed=0):
    """An order over all data sets of a mixture whose weights change; a change names data sets by their number."""
    names = list(mixture)
    sizes = {name: DatasetSize(positions, views) for name, (positions, views, _) in mixture.items()}
    weights = {name: weight for name, (_, _, weight) in mixture.items()}
    later = {start: {names[i % len(names)]: w for i, w in new.items()} for start, new in changes.items()}
    return SampleOrder(sizes, weights, seed, later), {0: weights, **dict(sorted(later.items()))}


@given(mixture=MIXTURES, changes=CHANGES, seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_every_clip_is_drawn_once_per_epoch_even_if_weights_change(mixture, changes, seed):
    order, _ = _changing_order(mixture, changes, seed)
    dataset, rows = order.samples(0, 6 * BLOCK)
    for number, name in enumerate(order.datasets):
        positions, views, _ = mixture[name]
        visited = rows[dataset == number] // views
        whole = len(visited) // positions * positions
        assert (np.sort(visited[:whole].reshape(-1, positions), axis=1) == np.arange(positions)).all()
        assert len(set(visited[whole:].tolist())) == len(visited) - whole


@given(mixture=MIXTURES, changes=CHANGES)
@settings(max_examples=40, deadline=None)
def test_a_change_of_weights_keeps_all_samples_before_it(mixture, changes):
    changed, _ = _changing_order(mixture, changes)
    last = max(changes)
    before, _ = _changing_order(mixture, {start: new for start, new in changes.items() if start < last})
    assert [changed[n] for n in range(0, last, 97)] == [before[n] for n in range(0, last, 97)]
    assert changed.drawn(last) == before.drawn(last)


@given(mixture=MIXTURES, changes=CHANGES)
@settings(max_examples=40, deadline=None)
def test_between_two_changes_every_block_follows_the_current_weights(mixture, changes):
    order, mixtures = _changing_order(mixture, changes)
    bound = math.ceil(math.log2(max(2, len(mixture)))) / 2
    for start, end in itertools.pairwise([*mixtures, max(mixtures) + 10**9 * BLOCK]):
        weights = mixtures[start]
        total = sum(map(Fraction, map(str, weights.values())))
        blocks = (end - start) // BLOCK
        first, last = order.drawn(start), order.drawn(start + blocks * BLOCK)
        for name in order.datasets:
            share = blocks * BLOCK * Fraction(str(weights.get(name, 0))) / total
            assert abs(last[name] - first[name] - share) <= bound


@given(mixture=MIXTURES, changes=CHANGES, start=st.integers(0, 6 * BLOCK), cuts=st.lists(st.integers(0, 3 * BLOCK), max_size=6))
@settings(max_examples=40, deadline=None)
def test_samples_around_changes_do_not_depend_on_how_they_are_split(mixture, changes, start, cuts):
    order, _ = _changing_order(mixture, changes)
    count = 3 * BLOCK
    whole = order.samples(start, count)
    parts = [
        _changing_order(mixture, changes)[0].samples(start + a, b - a) for a, b in itertools.pairwise(sorted({0, count, *cuts}))
    ]
    for i in (0, 1):
        assert np.array_equal(np.concatenate([part[i] for part in parts]), whole[i])
    counted = np.bincount(order.samples(0, start + count)[0], minlength=len(order.datasets))
    assert list(order.drawn(start + count).values()) == counted.tolist()


def test_a_data_set_that_returns_to_the_mixture_continues_its_epoch():
    sizes = {"a": DatasetSize(3000), "b": DatasetSize(50)}
    order = SampleOrder(sizes, {"a": 1}, 0, {1000: {"b": 1}, 1500: {"a": 1}})
    alone = SampleOrder(sizes, {"a": 1}, 0)
    assert order.datasets == ("a", "b") and order.weights == {"a": 1}
    assert {order[n][0] for n in range(1000, 1500)} == {"b"}
    rows = [order.samples(0, 1000)[1], order.samples(1500, 2000)[1]]
    assert np.array_equal(np.concatenate(rows), alone.samples(0, 3000)[1])


def test_two_epochs_two_seeds_and_two_data_sets_are_shuffled_differently():
    size = DatasetSize(1000)
    _, rows = SampleOrder({"a": size}).samples(0, 2000)
    first = rows[:1000]
    others = [rows[1000:], SampleOrder({"a": size}, seed=1).samples(0, 1000)[1], SampleOrder({"b": size}).samples(0, 1000)[1]]
    for other in others:
        # Two independent shuffles of 1000 agree in about one place, and neither is nearly sorted.
        assert (first == other).sum() < 10
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.parametrize("positions", [3, 6, 11])
def test_a_small_data_set_is_shuffled_evenly(positions):
    _, rows = SampleOrder({"a": DatasetSize(positions)}, seed=5).samples(0, positions * 4000)
    places = rows.reshape(-1, positions)
    counts = np.array([np.bincount(places[:, i], minlength=positions) for i in range(positions)])
    expected = 4000 / positions
    degrees = (positions - 1) ** 2
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 6 * np.sqrt(2 * degrees)


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    sizes = {"fractal20220817_data": DatasetSize(1000, 2), "kuka": DatasetSize(77)}
    order = SampleOrder(sizes, {"fractal20220817_data": 0.6, "kuka": 0.4}, seed=7)
    assert [order[n] for n in (0, 1, 2, 5000, 10**12)] == GOLDEN
    changed = SampleOrder(
        sizes, {"fractal20220817_data": 0.6, "kuka": 0.4}, 7, {3000: {"fractal20220817_data": 0.1, "kuka": 0.9}}
    )
    assert [changed[n] for n in (0, 1, 2, 3000, 5000, 10**12)] == [*GOLDEN[:3], *CHANGED_GOLDEN]


def test_a_billion_clips_take_no_more_memory_than_ten():
    changes = {10**13 + 5: {"a": 2, "b": 1}}
    large = SampleOrder({"a": DatasetSize(10**9), "b": DatasetSize(2 * 10**9, 8)}, {"a": 1, "b": 2}, 0, changes)
    small = SampleOrder({"a": DatasetSize(10), "b": DatasetSize(10, 8)}, {"a": 1, "b": 2}, 0, changes)
    dataset, rows = large.samples(10**14, 4 * BLOCK)
    assert len(set(zip(dataset.tolist(), rows.tolist(), strict=True))) == 4 * BLOCK
    assert rows[dataset == 0].max() < 10**9 and rows[dataset == 1].max() < 16 * 10**9

    def held(order: SampleOrder) -> int:
        return sum(sys.getsizeof(value) + getattr(value, "nbytes", 0) for value in vars(order).values())

    assert held(large) == held(small)


def test_a_mixture_that_names_an_absent_data_set_is_refused_with_its_name():
    with pytest.raises(ConfigError, match=r"without token shards: kuka.*Token shards exist for: a"):
        SampleOrder({"a": DatasetSize(3)}, {"a": 1, "kuka": 1})


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0}, {"a": float("nan")}, {}])
def test_invalid_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="finite and above 0"):
        SampleOrder({"a": DatasetSize(3)}, weights)


def test_a_data_set_without_clips_is_refused():
    with pytest.raises(ConfigError, match="data set a has 0 clips"):
        SampleOrder({"a": DatasetSize(0)})
