"""Quality limits exclude exactly the episodes beyond them, in any order, and are part of a shard's inputs."""

import dataclasses
import json
import shutil
import zlib
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_episodes import TINY, make_episode, tiny_tokenizer, write_shard, write_shards

from pipeline.common.errors import ConfigError, ConflictError, ShardError
from pipeline.common.manifests import write_manifest
from pipeline.config.model import TokenizerConfig, TrainingConfig
from pipeline.config.recipe import ClipsConfig, QualityConfig, Recipe
from pipeline.episodes.index import read_manifests, write_index
from pipeline.episodes.quality import measure
from tokenize_offline.__main__ import run as tokenize
from tokenize_offline.clips.sampling import is_held_out
from tokenize_offline.estimate import estimate
from tokenize_offline.filtering import exclude, excluded_episodes
from tokenize_offline.shards.token_shards import open_token_shard
from tokenize_offline.tasks import find_shards, token_layout
from training.data.episode_index import open_episode_indexes


def with_quality(output, episodes, dataset="made_up", split="train", number=0):
    """Write a shard like ingest, with quality measurements in its manifest, and rewrite the index."""
    write_shard(output, number, episodes, dataset, split)
    folder = str(output / dataset)
    records = {record.shard: record for record in read_manifests(folder)}
    record = records[f"{split}-{number:06d}.tar"]
    of_each = {episode.key: dataclasses.asdict(measure(episode.frames)) for episode in episodes}
    records[record.shard] = dataclasses.replace(
        record,
        entries=[{**entry, **of_each[entry["key"]]} for entry in record.entries],
        statistics={"filtered": 0, "actions": {}},
    )
    write_manifest(folder, records[record.shard])
    write_index(folder, dataset, records.values(), [])


def frozen(index, frames=8):
    """An episode whose frames are all equal."""
    episode = make_episode(index, frames)
    return dataclasses.replace(episode, frames=[episode.frames[0]] * frames)


def copied(index, of, **how):
    """Another episode with the frames of episode `of`."""
    return dataclasses.replace(make_episode(index, 9, **how), frames=make_episode(of, 9).frames)


def measured(key, rank=2, frames=10, dataset="one", **quality):
    default = {"static_share": 0.1, "uniform_share": 0.0, "repeated_share": 0.0, "swap_score": -0.5}
    hashes = {"content_hash": key, "perceptual_hash": f"{zlib.crc32(key.encode()) << 300:0142x}"}
    where = {"dataset": dataset, "shard": "train-000000.tar", "key": key, "rank": rank, "num_frames": frames}
    return {**where, **default, **hashes, **quality}


def excluded(episodes, limits):
    """The episodes that `exclude` excludes, for episodes made by `measured`."""
    tables = []
    for name in sorted({episode["dataset"] for episode in episodes}):
        rows = [episode for episode in episodes if episode["dataset"] == name]
        table = pa.Table.from_pylist([{**row, "row": place, "place": place} for place, row in enumerate(rows)])
        hashes = pa.array([bytes.fromhex(row["perceptual_hash"]) for row in rows], pa.binary(71))
        table = table.set_column(table.column_names.index("perceptual_hash"), "perceptual_hash", hashes)
        for column in ("dataset", "shard"):
            encoded = table[column].dictionary_encode()
            table = table.set_column(table.column_names.index(column), column, encoded)
        shares = table["static_share"].cast("double")
        tables.append(table.set_column(table.column_names.index("static_share"), "static_share", shares))
    return listed(exclude(tables, limits))


def listed(excluded):
    return [SimpleNamespace(**row) for row in excluded.to_pylist()]


def test_each_limit_excludes_the_episodes_beyond_it():
    fine = measured("fine")
    cases = {
        "static": (measured("a", static_share=0.8), QualityConfig(max_static=0.5)),
        "uniform": (measured("b", uniform_share=0.3), QualityConfig(max_uniform=0.2)),
        "repeated": (measured("c", repeated_share=1.0), QualityConfig(max_repeated=0.9)),
        "swapped": (measured("d", swap_score=0.9), QualityConfig(max_swap_score=0.5)),
        "duplicate": (measured("z", content_hash="fine"), QualityConfig(duplicates="exact")),
    }
    for reason, (bad, limits) in cases.items():
        at_limit = measured("limit", static_share=0.5, uniform_share=0.2, repeated_share=0.9, swap_score=0.5)
        assert [(e.key, e.reason) for e in excluded([bad, fine, at_limit], limits)] == [(bad["key"], reason)]
        assert excluded([bad, fine, at_limit], QualityConfig(duplicates="keep")) == []
    assert [e.reason for e in excluded([measured("one frame", static_share=None)], QualityConfig(max_static=0.9))] == ["static"]


@given(st.permutations(range(9)))
def test_of_duplicates_an_evaluated_episode_is_kept_in_any_order(order):
    episodes = [
        measured(f"{dataset}-{rank}", rank, dataset=dataset, content_hash="same", perceptual_hash="0" * 142)
        for dataset in ("one", "two", "three")
        for rank in (0, 1, 2)
    ]
    for duplicates in ("exact", "near"):
        found = excluded([episodes[place] for place in order], QualityConfig(duplicates=duplicates))
        assert {e["key"] for e in episodes} - {e.key for e in found} == {"one-0"}
        assert len(found) == 8


@pytest.fixture
def episodes(tmp_path):
    """Two data sets: one with a frozen episode and copies, one whose training split repeats its test split."""
    with_quality(tmp_path / "eps", [make_episode(0, 9), frozen(1), copied(2, of=0), make_episode(3, 12)], "one")
    with_quality(tmp_path / "eps", [make_episode(5, 9, "two", "val")], "two", "val")
    with_quality(tmp_path / "eps", [copied(6, of=5, dataset="two"), make_episode(7, 9, "two")], "two")
    return tmp_path / "eps"


def folders(output):
    return [str(output / name) for name in ("one", "two")]


def test_limits_apply_across_all_data_sets(episodes):
    limits = QualityConfig(max_static=0.9, duplicates="exact")
    found = {(e.dataset, e.shard, e.key): e.reason for e in listed(excluded_episodes(folders(episodes), limits, 0.0))}
    assert found == {
        ("one", "train-000000.tar", "train-00000-000001"): "static",
        ("one", "train-000000.tar", "train-00000-000002"): "duplicate",
        ("two", "train-000000.tar", "train-00000-000006"): "duplicate",
    }
    assert excluded_episodes(folders(episodes), QualityConfig(), 0.0).num_rows == 0


def test_copies_of_a_held_out_episode_are_excluded_from_training(tmp_path):
    keys = [make_episode(index, 2).key for index in range(200)]
    last = max(index for index, key in enumerate(keys) if is_held_out("made_up", key, 0.05))
    with_quality(tmp_path, [copied(last - 1, of=0), copied(last, of=0), make_episode(last + 1, 9)])
    (found,) = listed(excluded_episodes([str(tmp_path / "made_up")], QualityConfig(duplicates="exact"), 0.05))
    assert found.key == keys[last - 1] and not is_held_out("made_up", found.key, 0.05)


def test_shards_without_quality_measurements_work_without_limits_and_are_an_error_with_them(tmp_path):
    write_shards(tmp_path, 1, 2, "old")
    records = [dataclasses.replace(r, statistics={"filtered": 0, "actions": {}}) for r in read_manifests(str(tmp_path / "old"))]
    write_index(str(tmp_path / "old"), "old", records, [])
    assert excluded_episodes([str(tmp_path / "old")], QualityConfig(), 0.0).num_rows == 0
    with pytest.raises(ShardError, match=r"measurements for 2 of its 2 episodes, the first in train-000000\.tar.*--overwrite"):
        excluded_episodes([str(tmp_path / "old")], QualityConfig(max_static=0.9), 0.0)


def test_invalid_limits_are_errors():
    for wrong in ({"max_static": 1.5}, {"max_uniform": -0.1}, {"max_swap_score": 2}, {"near_bits": 300}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            QualityConfig(**wrong)


def test_tokenizing_excludes_what_the_estimate_says_and_other_limits_are_a_conflict(episodes, tmp_path, capsys):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    recipe = ["--clips.length=5", "--clips.per_episode=2", "--clips.held_out=0", "--tokenizer", str(tokenizer)]
    where = ["--shards", str(episodes), "--output", str(tmp_path / "tokens"), "--training.splits", "[train, val]"]
    limits = ["--quality.max_static=0.9", "--quality.duplicates=near"]
    assert tokenize([*recipe, *where, *limits]) == 0
    made = json.loads(capsys.readouterr().out)
    shape = {name: getattr(TINY, name) for name in dataclasses.asdict(TINY)}
    whole = Recipe(
        clips=ClipsConfig(length=5, per_episode=2, held_out=0.0),
        quality=QualityConfig(max_static=0.9, duplicates="near"),
        tokenizer=TokenizerConfig(**shape, segment_length=3),
        training=TrainingConfig(splits=("train", "val")),
    )
    estimated = estimate(str(episodes), whole, None)
    assert {line["dataset"]: line["excluded"] for line in estimated} == {
        "one": {"duplicate": 1, "static": 1},
        "two": {"duplicate": 1},
    }
    assert sum(line["rows"] for line in estimated) == made["rows"] == 8
    _, table = open_token_shard(tmp_path / "tokens" / "one" / "train-000000.arrow")
    assert set(table["episode"].to_pylist()) == {"train-00000-000000", "train-00000-000003"}
    assert tokenize([*recipe, *where, *limits]) == 0
    assert json.loads(capsys.readouterr().out)["shards_done_before"] == 3
    with pytest.raises(ConflictError, match=r"quality\.max_static|layout\.clips_fingerprint"):
        tokenize([*recipe, *where, "--quality.max_static=0.5", "--quality.duplicates=near"])
    with pytest.raises(ConflictError, match="quality"):
        tokenize([*recipe, *where])


def test_a_copy_in_a_new_data_set_is_a_conflict(episodes, tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    recipe = ["--clips.length=5", "--clips.held_out=0", "--tokenizer", str(tokenizer), "--quality.duplicates=exact"]
    output = ["--output", str(tmp_path / "tokens"), "--shards"]
    shutil.copytree(episodes / "two", tmp_path / "also" / "twin")
    assert tokenize([*recipe, *output, str(episodes / "two")]) == 0
    with pytest.raises(ConflictError, match=r"quality\.excluded"):
        shutil.move(tmp_path / "also" / "twin", tmp_path / "also" / "a_twin")
        tokenize([*recipe, *output, str(episodes / "two"), str(tmp_path / "also")])


def test_token_shards_of_different_limits_are_different_layouts(episodes):
    clips = ClipsConfig(length=5)
    plain, limited, other = (
        token_layout(TINY, clips, "fp32", "ab" * 32, limits)
        for limits in (QualityConfig(), QualityConfig(max_static=0.9), QualityConfig(max_static=0.8))
    )
    assert plain == token_layout(TINY, clips, "fp32", "ab" * 32)
    assert len({layout.clips_fingerprint for layout in (plain, limited, other)}) == 3
    assert len(find_shards([str(episodes)])) == 3


def test_tokenizer_training_excludes_the_same_episodes(episodes):
    limits = QualityConfig(max_static=0.9, duplicates="exact")
    left = {(e.dataset, e.key) for e in listed(excluded_episodes(folders(episodes), limits, 0.0))}
    whole, limited = (
        {
            (name, row.shape.key)
            for name, rows in open_episode_indexes([str(episodes)], "train", 0.0, quality)[0].items()
            for row in rows
        }
        for quality in (None, limits)
    )
    assert limited == whole - left and len(left & whole) == 3
