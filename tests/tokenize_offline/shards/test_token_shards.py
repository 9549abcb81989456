"""Token shards read back as written, also with other libraries; damaged and mixed shards are errors."""

import dataclasses

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.common.errors import ShardError
from tokenize_offline.shards.token_shards import (
    TokenRows,
    TokenShardInfo,
    fixed_size_column,
    open_token_shard,
    require_same_layout,
    write_token_shard,
)
from tokenize_offline.token_layout import TokenLayout

LAYOUT = TokenLayout(
    context_length=2,
    context_grid=3,
    future_grid=1,
    num_vq_embeddings=40000,
    num_dyn_embeddings=20000,
    clip_length=5,
    resolution=12,
    goal=False,
    precision="fp32",
    tokenizer_sha256="ab" * 32,
    clips_fingerprint="c" * 16,
)
INFO = TokenShardInfo(LAYOUT, "bridge", "train", 2, 3, "xyz", True, "train-000000.tar", "cd" * 32)


def rows(count: int, actions: int = 3, seed: int = 0) -> TokenRows:
    random = np.random.default_rng(seed)
    return TokenRows(
        ids=random.integers(0, LAYOUT.vocabulary, (count, LAYOUT.sequence_length)),
        episode=[f"train-00000-{number // 2:06d}" for number in range(count)],
        start=np.arange(count),
        stride=np.full(count, 1.65),
        view=np.arange(count) % 2,
        action=random.random((count, 5, actions), np.float32) if actions else None,
        reward=random.random((count, 5), np.float32),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(count=st.integers(0, 9), actions=st.integers(0, 4), seed=st.integers(0, 100))
def test_rows_read_back_as_written(tmp_path, count, actions, seed):
    written, info = rows(count, actions, seed), dataclasses.replace(INFO, action_dim=actions)
    write_token_shard(tmp_path / "a.arrow", info, written)
    found, table = open_token_shard(tmp_path / "a.arrow")
    assert found == info
    assert table.num_rows == count
    ids = np.concatenate([*fixed_size_column(table, "ids", LAYOUT.sequence_length), np.empty((0, LAYOUT.sequence_length))])
    assert np.array_equal(ids, written.ids)
    if actions:
        action = [array.reshape(-1, 5, actions) for array in fixed_size_column(table, "action", 5 * actions)]
        assert np.array_equal(np.concatenate([*action, np.empty((0, 5, actions))]), written.action)
    assert table.column("episode").to_pylist() == written.episode
    assert table.column("view").to_pylist() == written.view.tolist()


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_token_shard(tmp_path / name, INFO, rows(6))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_hugging_face_datasets_and_pyarrow_can_open_a_shard(tmp_path):
    path, written = tmp_path / "train-000000.arrow", rows(6)
    write_token_shard(path, INFO, written)
    table = pa.ipc.open_file(str(path)).read_all()
    assert table.schema.field("ids").type == pa.list_(pa.uint16(), LAYOUT.sequence_length)
    loaded = datasets.load_dataset("arrow", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(loaded.with_format("numpy")["ids"][:], written.ids)
    assert loaded[3]["episode"] == written.episode[3]


def test_a_truncated_shard_is_an_error(tmp_path):
    path = tmp_path / "a.arrow"
    write_token_shard(path, INFO, rows(6))
    whole = path.read_bytes()
    for kept in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ShardError, match=r"a\.arrow"):
            open_token_shard(path)


def test_other_arrow_files_and_other_versions_are_errors(tmp_path):
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(path), pa.schema([("ids", pa.int32())])):
        pass
    with pytest.raises(ShardError, match="not a token shard"):
        open_token_shard(path)
    write_token_shard(path, dataclasses.replace(INFO, version=99), rows(2))
    with pytest.raises(ShardError, match="format 99"):
        open_token_shard(path)


def test_two_layouts_are_an_error_that_names_both_values():
    other = dataclasses.replace(INFO, layout=dataclasses.replace(LAYOUT, precision="bf16", tokenizer_sha256="ef" * 32))
    with pytest.raises(ShardError) as caught:
        require_same_layout(INFO, "one.arrow", other, "two.arrow")
    for expected in ("one.arrow", "two.arrow", "fp32", "bf16", "abab", "efef"):
        assert expected in str(caught.value)
    require_same_layout(INFO, "one.arrow", dataclasses.replace(INFO, dataset="kuka"), "three.arrow")


def test_rows_that_do_not_match_the_layout_are_not_written(tmp_path):
    for wrong in (
        dataclasses.replace(rows(4), ids=np.zeros((4, 3), np.int64)),
        dataclasses.replace(rows(4), action=None),
        dataclasses.replace(rows(4), reward=np.zeros((4, 6), np.float32)),
    ):
        with pytest.raises(ValueError, match="shape"):
            write_token_shard(tmp_path / "a.arrow", INFO, wrong)
    wide = dataclasses.replace(INFO, layout=dataclasses.replace(LAYOUT, num_vq_embeddings=60000))
    with pytest.raises(ValueError, match="16-bit"):
        write_token_shard(tmp_path / "a.arrow", wide, rows(4))
    assert not (tmp_path / "a.arrow").exists()
