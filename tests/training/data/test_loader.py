"""The loader returns exactly the plan's samples in order, for any number of threads."""

import numpy as np
import pytest
import torch
from synthetic_tokens import LAYOUT, write_shard

from pipeline.common.errors import ShardError
from pipeline.config.model import TrainingConfig
from training import SampleOrder, TokenStore
from training.data.batch_plan import plan_batches
from training.data.loader import BatchLoader, BatchReader


@pytest.fixture
def store(tmp_path):
    write_shard(tmp_path, "alpha", 0, 30, views=2, action_dim=3, has_reward=True)
    write_shard(tmp_path, "beta", 0, 11, views=2, action_dim=3, has_reward=True, seed=4)
    return TokenStore.open(tmp_path)


def _batches(store, world, micro, workers, steps):
    order = SampleOrder(store, {"alpha": 0.7, "beta": 0.3}, 5)
    reader = BatchReader(store, order, actions=True, rewards=True, pinned=False)
    config = TrainingConfig(global_batch=12, micro_batch=micro)
    return [list(BatchLoader(reader, plan_batches(config, world, rank), steps, workers)) for rank in range(world)]


@pytest.mark.parametrize(("world", "micro", "workers"), [(1, 12, 1), (1, 4, 3), (2, 3, 2), (3, 1, 1)])
def test_a_step_holds_the_same_samples_for_any_number_of_processes_threads_and_micro_batches(store, world, micro, workers):
    order = SampleOrder(store, {"alpha": 0.7, "beta": 0.3}, 5)
    ranks = _batches(store, world, micro, workers, range(7, 19))
    per_step = 12 // micro // world
    for index, step in enumerate(range(7, 19)):
        parts = [batch for rank in ranks for batch in rank[index * per_step : (index + 1) * per_step]]
        expected = store.read(order.datasets, *order.samples(step * 12, 12), actions=True, rewards=True)
        assert np.array_equal(torch.cat([part.ids for part in parts]), expected.ids)
        assert np.array_equal(torch.cat([part.action for part in parts]), expected.action)
        assert np.array_equal(torch.cat([part.reward for part in parts]), expected.reward)


def test_columns_that_the_model_does_not_take_are_not_read(store):
    reader = BatchReader(store, SampleOrder(store), actions=False, rewards=False, pinned=False)
    batch = reader.read(0, 5)
    assert batch.ids.shape == (5, LAYOUT.sequence_length) and batch.ids.dtype == torch.int64
    assert batch.action is None and batch.reward is None


def test_an_error_while_reading_ahead_reaches_the_training_loop(store, monkeypatch):
    reader = BatchReader(store, SampleOrder(store), actions=False, rewards=False, pinned=False)
    damaged = store.layout.vocabulary - 1
    monkeypatch.setattr(type(store.layout), "vocabulary", damaged)
    loader = BatchLoader(reader, plan_batches(TrainingConfig(global_batch=4), 1, 0), range(3), 2)
    with pytest.raises(ShardError, match="hold token"):
        next(iter(loader))


def test_closing_the_iterator_early_stops_the_threads(store):
    import threading

    reader = BatchReader(store, SampleOrder(store), actions=False, rewards=False, pinned=False)
    batches = iter(BatchLoader(reader, plan_batches(TrainingConfig(global_batch=4), 1, 0), range(10**9), 2))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
