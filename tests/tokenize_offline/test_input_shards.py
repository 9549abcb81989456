"""A run tokenizes the splits and data sets that training reads, and logs those that it skips."""

import json
import logging

import pytest
from synthetic_episodes import make_episode, tiny_tokenizer, write_shard, write_shards

from pipeline.common.errors import ConfigError, ShardError
from pipeline.config.model import TrainingConfig
from pipeline.config.recipe import ClipsConfig, DataConfig, Recipe
from tokenize_offline.__main__ import run as tokenize
from tokenize_offline.clips.sampling import is_held_out
from tokenize_offline.input_shards import select_input_shards
from tokenize_offline.tasks import find_shards


def recipe(weights=None, splits=("train",), held_out=0.5):
    return Recipe(
        data=DataConfig(weights=weights or {}), clips=ClipsConfig(held_out=held_out), training=TrainingConfig(splits=splits)
    )


@pytest.fixture
def found(tmp_path):
    """Two data sets, one of them with two splits."""
    write_shards(tmp_path, 2, 4, "one")
    write_shards(tmp_path, 1, 4, "one", "test")
    write_shards(tmp_path, 1, 4, "two")
    return find_shards([str(tmp_path)])


def taken(selected):
    return sorted({(task.dataset, task.split) for task in selected.tasks})


def test_the_training_splits_are_selected_unless_others_are_named(found):
    selected = select_input_shards(found, recipe(), None)
    assert taken(selected) == [("one", "train"), ("two", "train")]
    assert (selected.splits, selected.other_splits, selected.other_datasets) == (["train"], ["test"], [])
    assert taken(select_input_shards(found, recipe(), ["test"])) == [("one", "test")]
    assert len(select_input_shards(found, recipe(splits=("train", "test")), None).tasks) == len(found)
    with pytest.raises(ConfigError, match="no shard belongs to split val; the splits found are test, train: "):
        select_input_shards(found, recipe(splits=("val",)), None)


def test_data_sets_outside_the_mixture_are_skipped(found):
    selected = select_input_shards(found, recipe({"two": 1.0, "absent": 2.0}), None)
    assert taken(selected) == [("two", "train")] and selected.other_datasets == ["one"]
    with pytest.raises(ConfigError, match=r"none of the data sets found \(one, two\)"):
        select_input_shards(found, recipe({"three": 1.0}), None)


def test_a_data_set_without_held_out_episodes_is_listed_with_the_share_that_holds_one_out(tmp_path):
    write_shards(tmp_path, 1, 4, "small")
    tasks = find_shards([str(tmp_path)])
    keys = [make_episode(index, 2).key for index in range(4)]
    least = select_input_shards(tasks, recipe(held_out=1e-9), None).none_held_out["small"]
    assert not any(is_held_out("small", key, least) for key in keys)
    above = least + 1e-6
    assert any(is_held_out("small", key, above) for key in keys)
    assert select_input_shards(tasks, recipe(held_out=above), None).none_held_out == {}
    # Nothing is listed if nothing should be held out.
    assert select_input_shards(tasks, recipe(held_out=0.0), None).none_held_out == {}


@pytest.mark.parametrize("together", [True, False])
def test_different_action_widths_in_a_data_set_are_an_error_before_any_work(tmp_path, together):
    wide, narrow = make_episode(0, 6), make_episode(1, 6, actions=2)
    for number, episodes in enumerate([[wide, narrow]] if together else [[wide], [narrow]]):
        write_shard(tmp_path, number, episodes, "mixed")
    write_shard(tmp_path, 0, [make_episode(0, 6, "other", actions=5)], "other")
    tasks = find_shards([str(tmp_path)])
    said = r"has . action columns in .*train-000000\.tar.*ingest the episodes of each kind separately"
    with pytest.raises(ShardError, match=said) as told:
        select_input_shards(tasks, recipe(), None)
    assert ("train-000001.tar" in str(told.value)) is not together
    assert taken(select_input_shards([task for task in tasks if task.dataset == "other"], recipe(), None)) == [
        ("other", "train")
    ]


def test_the_command_reports_what_it_selects_and_what_it_skips(tmp_path, capsys, caplog):
    write_shards(tmp_path / "eps", 1, 2, "one")
    write_shards(tmp_path / "eps", 1, 2, "one", "test")
    write_shards(tmp_path / "eps", 1, 2, "two")
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    caplog.set_level(logging.INFO)
    command = ["--shards", str(tmp_path / "eps"), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "tokens")]
    assert tokenize([*command, "--clips.length=5", "--data.weights", "{one: 1.0}", "--readers", "1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {key: summary[key] for key in ("datasets", "splits", "datasets_not_taken", "splits_not_taken")} == {
        "datasets": 1,
        "splits": ["train"],
        "datasets_not_taken": ["two"],
        "splits_not_taken": ["test"],
    }
    assert summary["datasets_without_held_out"] == ["one"]
    assert sorted(path.name for path in (tmp_path / "tokens").rglob("*.arrow")) == ["train-000000.arrow"]
    for said in ("not tokenized: split test", "not tokenized: data set two", "data set one holds out no episode"):
        assert said in caplog.text
