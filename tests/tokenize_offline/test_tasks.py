"""Planning finds all shards, reports conflicts and skips finished shards."""

import dataclasses
import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_episodes import SHA, TINY, make_episode, tokenize_job, write_shard, write_shards

from pipeline.common.errors import ConfigError, ConflictError, ShardError
from pipeline.common.manifests import ShardManifest, fingerprint, write_manifest
from pipeline.config.recipe import ClipsConfig
from tokenize_offline.tasks import ShardTask, find_shards, token_layout, work_order


def finish(job, task, held_out_rows):
    for held_out in (False, True)[: 1 + bool(held_out_rows)]:
        inputs = job.inputs(task, held_out)
        name = job.shard(task, held_out)
        statistics = {"held_out_rows": held_out_rows}
        write_manifest(job.folder(task), ShardManifest(name, fingerprint(inputs), inputs, 1, 1, 1, SHA, statistics=statistics))


def test_shards_are_found_from_the_output_or_the_data_set_folder_largest_first(tmp_path):
    write_shards(tmp_path, shards=2, episodes=1)
    write_shard(tmp_path, 0, [make_episode(1, 9, "other")] * 1, "other", "val")
    write_shard(tmp_path, 7, [make_episode(index, 40) for index in range(3)])
    tasks = find_shards([str(tmp_path)])
    assert (tasks[0].dataset, tasks[0].split, tasks[0].index) == ("made_up", "train", 7)
    assert [task.bytes for task in tasks] == sorted((task.bytes for task in tasks), reverse=True)
    assert len(tasks) == 4
    assert find_shards([str(tmp_path / "other") + "/"], ["val"])[0].dataset == "other"
    assert {task.split for task in find_shards([str(tmp_path)], ["train"])} == {"train"}


@given(st.lists(st.integers(1, 1 << 30), min_size=12, max_size=40), st.integers(0, 99))
def test_tasks_are_ordered_from_large_to_small_and_shuffled_differently_in_every_run(sizes, seed):
    tasks = [ShardTask("made_up", "train", index, f"{index}.tar", size, SHA, 1) for index, size in enumerate(sizes)]
    order = work_order(tasks, Random(seed))
    assert sorted(order, key=tasks.index) == tasks
    assert all(after.bytes < 2 * before.bytes for before, after in itertools.pairwise(order))
    alike = [dataclasses.replace(task, bytes=1000) for task in tasks]
    # 12! orders: two seeds practically never give the same one, and these two do not.
    assert work_order(alike, Random(1)) != work_order(alike, Random(2))


def test_wrong_folders_and_splits_are_errors_that_name_them(tmp_path):
    write_shards(tmp_path / "a", shards=1, episodes=1)
    write_shards(tmp_path / "b", shards=1, episodes=1)
    with pytest.raises(ConfigError, match="nowhere: no episode shards"):
        find_shards([str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="made_up is in both"):
        find_shards([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(ConfigError, match="--splits tset: no shard has that split; the splits found are train"):
        find_shards([str(tmp_path / "a")], ["tset"])
    (tmp_path / "a" / "made_up" / "train-000000.json").unlink()
    with pytest.raises(ShardError, match="did not finish"):
        find_shards([str(tmp_path / "a")])


def test_the_layout_follows_tokenizer_and_recipe():
    layout = token_layout(TINY, ClipsConfig(goal=True), "bf16", SHA)
    assert (layout.context_length, layout.clip_length, layout.resolution) == (2, 17, 32)
    assert (layout.context_grid, layout.future_grid, layout.precision, layout.goal) == (16, 4, "bf16", True)
    assert token_layout(TINY, ClipsConfig(context_length=1), "fp32", SHA).prefix_length == 257
    # A default and the same value written out give the same layout.
    assert token_layout(TINY, ClipsConfig(), "fp32", SHA) == token_layout(
        TINY, ClipsConfig(length=16, context_length=2), "fp32", SHA
    )
    assert token_layout(TINY, ClipsConfig(seed=1), "fp32", SHA) != token_layout(TINY, ClipsConfig(), "fp32", SHA)


def test_only_training_shards_have_augmented_views_and_held_out_episodes(tmp_path):
    write_shards(tmp_path, shards=1, episodes=1)
    (task,) = find_shards([str(tmp_path)])
    made = tokenize_job(tmp_path / "out", views=3, held_out=0.1)
    assert (made.views(task, False), made.views(task, True), made.held_out_share(task)) == (3, 1, 0.1)
    val = dataclasses.replace(task, split="val")
    assert (made.views(val, False), made.held_out_share(val)) == (1, 0.0)
    assert made.shard(task, True) == "train_heldout-000000.arrow"


def test_a_task_is_done_when_all_its_manifests_exist(tmp_path):
    write_shards(tmp_path, shards=1, episodes=1)
    (task,) = find_shards([str(tmp_path)])
    made = tokenize_job(tmp_path / "out")
    assert not made.is_done(task)
    finish(made, task, held_out_rows=0)
    assert made.is_done(task)
    finish(made, task, held_out_rows=4)
    assert made.is_done(task)
    (tmp_path / "out" / "made_up" / "train_heldout-000000.json").unlink()
    assert not made.is_done(task)


@pytest.mark.parametrize("change", [{"sha": "cd" * 32}, {"per_episode": 5}])
def test_shards_with_other_inputs_are_a_conflict_that_names_both_values(tmp_path, change):
    write_shards(tmp_path, shards=1, episodes=1)
    (task,) = find_shards([str(tmp_path)])
    finish(tokenize_job(tmp_path / "out"), task, held_out_rows=0)
    with pytest.raises(ConflictError) as caught:
        tokenize_job(tmp_path / "out", **change).is_done(task)
    assert ("layout.tokenizer_sha256" if "sha" in change else "clips.per_episode: 4 -> 5") in str(caught.value)
    assert not tokenize_job(tmp_path / "out", overwrite=True, **change).is_done(task)


def test_a_changed_episode_shard_is_a_conflict(tmp_path):
    write_shards(tmp_path, shards=1, episodes=1)
    (task,) = find_shards([str(tmp_path)])
    made = tokenize_job(tmp_path / "out")
    finish(made, task, held_out_rows=0)
    with pytest.raises(ConflictError, match="episode_shard_sha256"):
        made.is_done(dataclasses.replace(task, sha256="ef" * 32))
