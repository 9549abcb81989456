"""Prefetched results are in order and limited, and errors come at their position in the order."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_offline.worker.prefetch import Prefetcher, ReserveBytes


def test_results_come_in_the_order_of_their_items():
    def slow_first(number):
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number * number

    with Prefetcher(iter(range(40)), slow_first, threads=4, depth=8, budget=0) as ahead:
        assert list(ahead) == [number * number for number in range(40)]


def test_at_most_depth_items_are_prefetched():
    taken = []

    def source():
        for number in range(1000):
            taken.append(number)
            yield number

    with Prefetcher(source(), lambda number: number, threads=2, depth=5, budget=0) as ahead:
        first = next(iter(ahead))
        time.sleep(0.3)
        assert first == 0
        # One is delivered, five are queued, and the feeder holds one.
        assert len(taken) <= 7


@pytest.mark.parametrize("where", ["source", "process"])
def test_an_error_reaches_the_consumer_after_the_results_before_it(where):
    def source():
        yield from range(3)
        if where == "source":
            raise KeyError("source")
        yield 3

    def process(number):
        if number == 3:
            raise KeyError("process")
        return number

    seen = []
    with pytest.raises(KeyError, match=where), Prefetcher(source(), process, threads=2, depth=2, budget=0) as ahead:
        for result in ahead:
            seen.append(result)
    assert seen == [0, 1, 2]


def test_closing_the_iterator_early_stops_the_threads():
    def endless():
        number = 0
        while True:
            yield number
            number += 1

    with Prefetcher(endless(), lambda number: number, threads=2, depth=3, budget=0) as ahead:
        assert next(iter(ahead)) == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("feeder", "reader"))]


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=40), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_prefetched_bytes_stay_within_the_budget_except_for_a_single_larger_item(items, budget, depth):
    lock = threading.Lock()
    ahead: dict[int, int] = {}
    at_once = []

    def source():
        for number, (size, skipped) in enumerate(items):
            yield ReserveBytes(size)
            with lock:
                # The item is read now; a skipped item is dropped at once.
                at_once.append((size, list(ahead.values())))
                if not skipped:
                    ahead[number] = size
            if not skipped:
                yield number

    seen = []
    with Prefetcher(source(), lambda number: number, threads=3, depth=depth, budget=budget) as results:
        for number in results:
            with lock:
                del ahead[number]
            seen.append(number)
    assert seen == [number for number, (_, skipped) in enumerate(items) if not skipped]
    for size, others in at_once:
        # An item that the consumer has just taken may still be counted.
        left = [sum(others) - taken for taken in (0, *others)]
        assert any(rest + size <= budget or rest == 0 for rest in left)


def test_an_item_larger_than_the_budget_waits_until_nothing_else_is_in_use():
    read = []

    def source():
        for size in (4, 4, 100, 1):
            yield ReserveBytes(size)
            read.append(size)
            yield size

    with Prefetcher(source(), lambda size: size, threads=2, depth=9, budget=10) as ahead:
        results = iter(ahead)
        time.sleep(0.3)
        assert read == [4, 4]
        assert [next(results), next(results)] == [4, 4]
        time.sleep(0.3)
        assert read == [4, 4, 100]
        assert list(results) == [100, 1]


def test_leaving_while_the_source_waits_for_memory_stops_the_threads():
    def source():
        while True:
            yield ReserveBytes(10)
            yield 1

    with Prefetcher(source(), lambda number: number, threads=2, depth=9, budget=10) as ahead:
        assert next(iter(ahead)) == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("feeder", "reader"))]
