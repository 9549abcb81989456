"""Measures how fast a sample is found among a billion clips, compared with a thousand; the last line is one JSON object.

In one process: a mixture of data sets of very different sizes with a change of weights, and blocks far into the run, so that
nothing is cached. `ratio` is the speed with a billion clips divided by that with a thousand; 1 means that size costs nothing.
"""

import argparse
import json
import sys
import time
import tracemalloc

import numpy as np

from training.data.sampler import BLOCK, DatasetSize, SampleOrder

DATASETS = 32
REPEATS = 5


def build(clips: int, far: int) -> tuple[SampleOrder, int]:
    """Create an order over about `clips` clips in 4 views; returns it with its size in bytes."""
    sizes = {
        f"data{i:02d}": DatasetSize(max(1, clips * (i + 1) * 2 // (DATASETS * (DATASETS + 1))), 4) for i in range(DATASETS)
    }
    weights = {name: 1 + number % 5 for number, name in enumerate(sizes)}
    changed = {name: 1 + number % 3 for number, name in enumerate(sizes)}
    tracemalloc.start()
    order = SampleOrder(sizes, weights, 0, {far // 2: changed})
    order.samples(far, BLOCK)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return order, held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10**9)
    parser.add_argument("--blocks", type=int, default=40, help="Blocks of samples per run.")
    options = parser.parse_args()
    far = 10**12
    orders = {clips: build(clips, far) for clips in (options.clips, 1000)}
    best = dict.fromkeys(orders, float("inf"))
    for repeat in range(REPEATS):
        # Alternating, so that other load affects both alike.
        for clips, (order, _) in orders.items():
            start = far + (1 + repeat) * options.blocks * BLOCK
            began = time.perf_counter()
            dataset, _ = order.samples(start, options.blocks * BLOCK)
            best[clips] = min(best[clips], time.perf_counter() - began)
            assert len(np.unique(dataset)) == DATASETS
    rates = {clips: options.blocks * BLOCK / seconds for clips, seconds in best.items()}
    (large, small), (held, held_small) = rates.values(), [held for _, held in orders.values()]
    result = {"measured": large, "ceiling": small, "ratio": large / small, "unit": "samples/s", "clips": options.clips}
    print(json.dumps({**result, "bytes_held": held, "bytes_held_for_a_thousand": held_small}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
