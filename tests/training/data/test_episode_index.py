"""The episode index lists every episode, separates held-out ones, and fits in memory."""

import dataclasses
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import ConfigError, ShardError
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.index import INDEX_FILE, SUMMARY_FILE
from training.data.episode_index import open_episode_indexes
from training.evaluation.data import Wanted, open_test_data
from training.model.files.trained_on import TrainedOn

ROWS = 5000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A data set of `ROWS` training episodes and one test episode, with little more than an index."""
    root = tmp_path_factory.mktemp("shards")
    (root / "made_up").mkdir()
    (root / "made_up" / "train-000000.tar").touch()
    numbers = range(ROWS + 1)
    table = {
        "key": [f"train-{number // 100:05d}-{number:06d}" for number in numbers],
        "split": ["train"] * ROWS + ["test"],
        "shard": [f"train-{number // 100:06d}.tar" for number in numbers],
        "offset": [number % 100 * 1024 for number in numbers],
        "size": [1024 + number for number in numbers],
        "num_frames": pa.array([number % 50 + 1 for number in numbers], pa.int32()),
        "height": pa.array([80] * (ROWS + 1), pa.int32()),
        "width": pa.array([100] * (ROWS + 1), pa.int32()),
        "rate": [10.0 if number % 2 else None for number in numbers],
        "base_step": [1.0] * (ROWS + 1),
    }
    pq.write_table(pa.table(table), root / "made_up" / INDEX_FILE, row_group_size=1000)
    frames = {"encoding": "jpeg", "short_side": 80, "quality": 95}
    (root / "made_up" / SUMMARY_FILE).write_text(json.dumps({"made_with": {"frames": frames}}))
    return str(root)


def test_every_episode_of_the_split_is_held_out_or_not_and_in_the_order_of_the_index(folder):
    kept, held = (list(table["made_up"]) for table in open_episode_indexes([folder], "train", 0.1))
    assert 0.05 * ROWS < len(held) < 0.15 * ROWS
    for rows in (kept, held):
        assert [row.size for row in rows] == sorted(row.size for row in rows)
    assert sorted(row.size - 1024 for row in kept + held) == list(range(ROWS))
    for row in kept + held:
        number = row.size - 1024
        assert row.shape.key == f"train-{number // 100:05d}-{number:06d}" and row.offset == number % 100 * 1024
        assert row.shard == f"{folder}/made_up/train-{number // 100:06d}.tar"
        assert (row.shape.num_frames, row.shape.rate) == (number % 50 + 1, 10.0 if number % 2 else None)


def test_a_copy_of_a_million_episodes_takes_a_tenth_of_a_gigabyte(folder):
    kept, _ = open_episode_indexes([folder], "train", 0.0)
    data = pickle.dumps(kept)
    assert len(data) < 100 * ROWS
    assert list(pickle.loads(data)["made_up"]) == list(kept["made_up"])


def test_an_empty_split_is_an_error_and_no_held_out_episodes_are_none(folder):
    kept, held = open_episode_indexes([folder], "test", 0.0)
    assert len(kept["made_up"]) == 1 and held == {}
    with pytest.raises(ShardError, match="no episode of split 'val'"):
        open_episode_indexes([folder], "val", 0.0)


def test_a_duplicate_or_partly_ingested_data_set_is_an_error(folder, tmp_path):
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "made_up").symlink_to(f"{folder}/made_up")
    with pytest.raises(ConfigError, match="made_up is in both"):
        open_episode_indexes([folder, str(tmp_path / "twice")], "train", 0.0)
    (tmp_path / "unfinished" / "begun").mkdir(parents=True)
    (tmp_path / "unfinished" / "begun" / "train-000000.tar").touch()
    with pytest.raises(ShardError, match=r"begun.*run ivideogpt-ingest again"):
        open_episode_indexes([folder, str(tmp_path / "unfinished")], "train", 0.0)


def test_frames_shrunk_below_the_models_resolution_are_refused(folder):
    assert open_episode_indexes([folder], "train", 0.0)[0]["made_up"].shrunk == 80
    wanted = Wanted("train", False, None, ClipsConfig(length=4), start=0, context=1, side=64)
    assert len(open_test_data([folder], wanted, TrainedOn()).clips) > ROWS // 2
    with pytest.raises(ConfigError, match="made_up: frames were shrunk to 80 pixels"):
        open_test_data([folder], dataclasses.replace(wanted, side=256), TrainedOn())
