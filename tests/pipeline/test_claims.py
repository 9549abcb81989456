"""Processes of one machine share tasks: each is done once, and whoever is free takes the next."""

import multiprocessing
import time

from pipeline.runners.claims import claimed


def take(counter, seconds, results):
    for item in claimed(list(range(40)), counter):
        time.sleep(seconds)
        results.put((seconds, item))
    results.put(None)


def test_every_item_is_given_to_one_process_and_the_slow_one_gets_fewer(tmp_path):
    counter = tmp_path / "counter"
    counter.touch()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=take, args=(str(counter), seconds, results)) for seconds in (0.005, 0.5)]
    for worker in workers:
        worker.start()
    done = []
    while len(done) < 40 + len(workers):
        done.append(results.get(timeout=60))
    for worker in workers:
        worker.join()
    found = [each for each in done if each is not None]
    assert sorted(item for _, item in found) == list(range(40))
    assert sum(seconds == 0.5 for seconds, _ in found) < 20


def test_items_come_in_order_and_a_second_taker_finds_none(tmp_path):
    counter = tmp_path / "counter"
    counter.touch()
    assert list(claimed("abc" * 5, str(counter))) == list("abc" * 5)
    assert list(claimed("abc" * 5, str(counter))) == []
