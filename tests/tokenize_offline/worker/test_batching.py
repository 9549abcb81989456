"""With batches across shards, every shard gets the ids of its own clips in order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_offline.worker.batching import Batcher, ShardTokens


class CountingEncoder:
    """Returns the number in a clip's only pixel as its id, and records batch sizes."""

    def __init__(self, batch):
        self.batch = batch
        self.launched = []

    def tokenize(self, clips):
        self.launched.append(len(clips))
        return torch.stack([clip.reshape(1) for clip in clips]).long()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5))
def test_every_shard_gets_its_ids_in_order_and_only_the_last_batch_is_short(batch, shards):
    encoder = CountingEncoder(batch)
    batcher = Batcher(encoder)
    number, collected = 0, []
    for episodes in shards:
        shard = ShardTokens()
        expected = []
        for clips in episodes:
            numbers = list(range(number, number + clips))
            batcher.add([torch.full((1, 1, 1, 1), value) for value in numbers], shard)
            expected += numbers
            number += clips
        collected.append((shard, expected))
    batcher.flush()
    for shard, expected in collected:
        assert shard.complete and shard.array().reshape(-1).tolist() == expected
    assert all(count == batch for count in encoder.launched[:-1]) and sum(encoder.launched) == number


@pytest.mark.parametrize("clips", [1, 4])
def test_a_shard_is_complete_when_all_its_ids_have_arrived(clips):
    batcher, shard = Batcher(CountingEncoder(2)), ShardTokens()
    batcher.add([torch.zeros(1, 1, 1, 1)] * clips, shard)
    assert not shard.complete
    batcher.flush()
    assert shard.complete
