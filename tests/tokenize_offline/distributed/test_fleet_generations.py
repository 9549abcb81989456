"""Processes that share a store with earlier generations find those that run beside them, and nothing of the others."""

import threading

import torch.distributed as dist

from tokenize_offline.distributed.worker_group import _generation


def run_generation(store, size, task_count):
    """Claims of every rank, as one generation after the other would make them on the same store."""
    claimed = {}
    everyone = threading.Barrier(size, timeout=30)

    def rank(number):
        with _generation(store, number, size) as own:
            mine = []
            while (task := own.add("claimed", 1) - 1) < task_count:
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


def test_every_generation_counts_anew_whatever_its_size():
    store = dist.HashStore()
    # A process that took a number and died, and one that asked and died.
    store.add("arrivals", 1)
    store.set(f"arrival {store.add('arrivals', 1)}", "nobody")
    for size in (3, 1, 2):
        claimed = run_generation(store, size, 10)
        assert sorted(task for mine in claimed.values() for task in mine) == list(range(10))
