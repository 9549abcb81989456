"""Work done ahead: in order, bounded, and errors come out where they belong."""

import threading
import time

import pytest

from tokenize_offline.prefetch import Prefetcher


def test_results_come_in_the_order_of_their_items_whatever_takes_longest():
    def slow_first(number):
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number * number

    with Prefetcher(iter(range(40)), slow_first, threads=4, depth=8) as ahead:
        assert list(ahead) == [number * number for number in range(40)]


def test_no_more_is_read_ahead_than_the_depth():
    taken = []

    def source():
        for number in range(1000):
            taken.append(number)
            yield number

    with Prefetcher(source(), lambda number: number, threads=2, depth=5) as ahead:
        first = next(iter(ahead))
        time.sleep(0.3)
        assert first == 0
        # One delivered, five queued, one in the feeder's hands.
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
    with pytest.raises(KeyError, match=where), Prefetcher(source(), process, threads=2, depth=2) as ahead:
        for result in ahead:
            seen.append(result)
    assert seen == [0, 1, 2]


def test_leaving_early_stops_the_threads():
    def endless():
        number = 0
        while True:
            yield number
            number += 1

    with Prefetcher(endless(), lambda number: number, threads=2, depth=3) as ahead:
        assert next(iter(ahead)) == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("feeder", "reader"))]
