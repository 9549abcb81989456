"""Batcher across shards: every shard gets the ids of its own clips, in order, whatever the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_offline.worker.batching import Batcher, ShardTokens


class CountingEngine:
    """The id of a clip is the number in its only pixel; batches are noted."""

    def __init__(self, batch):
        self.batch = batch
        self.launched = []

    def tokenize(self, clips):
        self.launched.append(len(clips))
        return torch.stack([clip.reshape(1) for clip in clips]).long()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5))
def test_every_shard_gets_its_ids_in_order_and_only_the_last_batch_is_short(batch, shards):
    engine = CountingEngine(batch)
    batches = Batcher(engine)
    number, collected = 0, []
    for episodes in shards:
        shard = ShardTokens()
        expected = []
        for clips in episodes:
            numbers = list(range(number, number + clips))
            batches.add([torch.full((1, 1, 1, 1), value) for value in numbers], shard)
            expected += numbers
            number += clips
        collected.append((shard, expected))
    batches.flush()
    for shard, expected in collected:
        assert shard.complete and shard.array().reshape(-1).tolist() == expected
    assert all(count == batch for count in engine.launched[:-1]) and sum(engine.launched) == number


@pytest.mark.parametrize("clips", [1, 4])
def test_a_shard_is_complete_only_when_all_its_ids_are_there(clips):
    batches, shard = Batcher(CountingEngine(2)), ShardTokens()
    batches.add([torch.zeros(1, 1, 1, 1)] * clips, shard)
    assert not shard.complete
    batches.flush()
    assert shard.complete
