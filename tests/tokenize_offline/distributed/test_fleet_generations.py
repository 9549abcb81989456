"""Processes that share a store with earlier generations see only the processes of their own generation."""

import threading

import torch.distributed as dist

from tokenize_offline.distributed.worker_group import _generation


def run_generation(store, size, task_count):
    """The claims of every rank of a new generation on the store."""
    claimed = {}
    everyone = threading.Barrier(size, timeout=30)

    def rank(number):
        with _generation(store, number, size) as generation:
            mine = []
            while (task := generation.add("claimed", 1) - 1) < task_count:
                mine.append(task)
            claimed[number] = mine
            # The first process stays until the others are done, as the command's does.
            everyone.wait()

    threads = [threading.Thread(target=rank, args=(number,)) for number in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return claimed


def test_each_generation_counts_from_zero():
    store = dist.HashStore()
    # One process ended after it took a number, another after it wrote its request.
    store.add("requests", 1)
    store.set(f"request/{store.add('requests', 1)}", "nobody")
    for size in (3, 1, 2):
        claimed = run_generation(store, size, 10)
        assert sorted(task for mine in claimed.values() for task in mine) == list(range(10))
