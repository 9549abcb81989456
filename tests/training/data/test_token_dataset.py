"""The token store finds finished shards of the given splits, reads exact rows, and refuses incompatible shards."""

import dataclasses
import json
import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_tokens import LAYOUT, clip_ids, write_shard

from pipeline.common.errors import ConfigError, ShardError
from pipeline.inspection.verify import fault_of
from tokenize_offline.inspect import main as inspect
from tokenize_offline.shards.token_shards import open_token_shard
from training import TokenStore
from training.data.sampler import DatasetSize


def test_rows_run_through_the_shards_of_a_data_set_in_order(tmp_path):
    for number, positions in enumerate((3, 0, 5)):
        write_shard(tmp_path, "alpha", number, positions, views=2)
    store = TokenStore.open(tmp_path)
    expected = np.concatenate([clip_ids(LAYOUT, 6, 0), clip_ids(LAYOUT, 10, 2000)])
    assert store.sizes == {"alpha": DatasetSize(8, 2)}
    assert np.array_equal(store.rows("alpha", np.arange(16)).ids, expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=1, max_size=20))
def test_a_mixed_batch_has_the_requested_rows_in_order(tmp_path, picks):
    if not (tmp_path / "beta").exists():
        write_shard(tmp_path, "alpha", 0, 7, action_dim=2, has_reward=True, seed=1)
        write_shard(tmp_path, "beta", 0, 7, action_dim=2, has_reward=True, seed=2)
    store = TokenStore.open([tmp_path])
    dataset, rows = np.array(picks).T
    clips = store.read(("alpha", "beta"), dataset, rows, actions=True, rewards=True)
    tables = [open_token_shard(tmp_path / name / "train-000000.arrow")[1].to_pydict() for name in ("alpha", "beta")]
    for i, (number, row) in enumerate(picks):
        assert clips.ids[i].tolist() == tables[number]["ids"][row]
        assert clips.action[i].reshape(-1).tolist() == tables[number]["action"][row]
        assert clips.reward[i].tolist() == tables[number]["reward"][row]


def test_held_out_clips_are_opened_only_by_the_name_of_their_split(tmp_path):
    write_shard(tmp_path, positions=4)
    write_shard(tmp_path, positions=9, split="train_heldout")
    assert TokenStore.open(tmp_path).positions("alpha") == 4
    assert TokenStore.open(tmp_path, splits=("train_heldout",)).positions("alpha") == 9


def test_several_folders_are_one_store(tmp_path):
    write_shard(tmp_path / "one", "alpha", 0)
    write_shard(tmp_path / "two", "alpha", 1)
    write_shard(tmp_path / "two", "beta", 0)
    store = TokenStore.open([tmp_path / "one", str(tmp_path / "two")])
    assert store.sizes == {"alpha": DatasetSize(20), "beta": DatasetSize(10)}


def test_a_shard_without_its_manifest_is_ignored(tmp_path):
    write_shard(tmp_path, number=0)
    write_shard(tmp_path, number=1).with_suffix(".json").unlink()
    assert TokenStore.open(tmp_path).positions("alpha") == 10


def test_shards_on_an_object_store_are_read_from_a_local_copy_made_once(tmp_path):
    path = write_shard(tmp_path, positions=4)
    memory = fsspec.filesystem("memory")
    for file in path.parent.iterdir():
        memory.pipe_file(f"/tokens/alpha/{file.name}", file.read_bytes())
    cache = tmp_path / "cache"
    store = TokenStore.open("memory://tokens", cache_dir=cache)
    assert np.array_equal(store.rows("alpha", np.arange(4)).ids, clip_ids(LAYOUT, 4, 0))
    copies = {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")}
    TokenStore.open("memory://tokens", cache_dir=cache)
    assert len(copies) == 1 and {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")} == copies


def test_a_truncated_shard_is_an_error_that_names_the_file(tmp_path):
    path = write_shard(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardError, match=r"train-000000\.arrow has \d+ bytes, but its manifest says"):
        TokenStore.open(tmp_path)


def test_a_file_that_is_not_arrow_is_an_error_that_names_it(tmp_path):
    path = write_shard(tmp_path)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ShardError, match=r"train-000000\.arrow can't be opened"):
        TokenStore.open(tmp_path)


def test_a_missing_shard_is_an_error_that_names_its_manifest(tmp_path):
    write_shard(tmp_path, number=0)
    write_shard(tmp_path, number=1).unlink()
    with pytest.raises(ShardError, match=r"train-000001\.json exists but its token shard does not"):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("tokenizer_sha256", "cd" * 32), ("clip_length", 5), ("num_vq_embeddings", 29), ("precision", "bf16")]
)
def test_shards_of_two_layouts_are_refused_with_both_values(tmp_path, field, value):
    write_shard(tmp_path, "alpha")
    write_shard(tmp_path, "beta", layout=dataclasses.replace(LAYOUT, **{field: value}))
    with pytest.raises(ShardError, match=rf"alpha.*beta.*{field}.*{getattr(LAYOUT, field)}.*{value}"):
        TokenStore.open(tmp_path)


def test_shards_of_one_data_set_with_different_views_are_refused(tmp_path):
    write_shard(tmp_path, number=0, views=1)
    write_shard(tmp_path, number=1, views=2)
    with pytest.raises(ShardError, match="views is 1 and 2"):
        TokenStore.open(tmp_path)


def test_the_same_shard_twice_is_refused_with_both_paths(tmp_path):
    write_shard(tmp_path / "one")
    write_shard(tmp_path / "two")
    shards = "/alpha/train-000000.arrow"
    with pytest.raises(ShardError, match=rf"one{shards} and .*two{shards} are the same shard of the same data set"):
        TokenStore.open([tmp_path / "one", tmp_path / "two"])
    (tmp_path / "again").symlink_to("one")
    with pytest.raises(ShardError, match="are the same shard of the same data set"):
        TokenStore.open([tmp_path / "one", tmp_path / "again"])


def test_two_shards_with_one_name_and_different_content_are_refused(tmp_path):
    write_shard(tmp_path / "one", seed=1)
    write_shard(tmp_path / "two", seed=2)
    with pytest.raises(ShardError, match=r"one/.* and .*two/.* have the same name but different content .*remove one folder"):
        TokenStore.open([tmp_path / "one", tmp_path / "two"])


def test_a_copy_of_a_shard_under_another_name_is_refused(tmp_path):
    path = write_shard(tmp_path)
    manifest = json.loads(path.with_suffix(".json").read_text())
    shutil.copy(path, path.with_name("train-000001.arrow"))
    path.with_name("train-000001.json").write_text(json.dumps({**manifest, "shard": "train-000001.arrow"}))
    with pytest.raises(ShardError, match=r"train-000000.arrow and .*train-000001.arrow have the same content"):
        TokenStore.open(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(places=st.lists(st.integers(0, 2), min_size=4, max_size=4), order=st.permutations(range(3)))
def test_folders_and_their_order_do_not_change_the_order_of_rows(tmp_path, places, order):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    for number in range(4):
        write_shard(tmp_path / "together", "alpha", number, 3)
        write_shard(tmp_path / f"part{places[number]}", "alpha", number, 3)
    together = TokenStore.open(tmp_path / "together")
    parts = TokenStore.open([tmp_path / f"part{i}" for i in order])
    rows = np.arange(12)
    assert np.array_equal(parts.rows("alpha", rows).ids, together.rows("alpha", rows).ids)
    assert parts.digests == together.digests
    given_order = [number for i in order for number in range(4) if places[number] == i]
    assert parts.reordered == (("alpha",) if given_order != sorted(given_order) else ())


def test_a_digest_covers_names_and_content_of_one_data_set(tmp_path):
    for name in ("alpha", "beta"):
        write_shard(tmp_path / "one", name)
        write_shard(tmp_path / "other", name, seed=int(name == "beta"))
    one, other = (TokenStore.open(tmp_path / name).digests for name in ("one", "other"))
    assert one["alpha"] == other["alpha"] and one["beta"] != other["beta"]
    write_shard(tmp_path / "one", "alpha", 1)
    assert TokenStore.open(tmp_path / "one").digests["alpha"] != one["alpha"]
    assert TokenStore.open(tmp_path / "other").restrict(["beta"]).digests == {"beta": other["beta"]}


def test_data_sets_with_different_actions_serve_an_action_free_model_only(tmp_path):
    write_shard(tmp_path, "alpha", action_dim=2)
    write_shard(tmp_path, "beta", action_dim=7)
    store = TokenStore.open(tmp_path)
    assert store.read(("alpha", "beta"), np.array([0, 1]), np.array([0, 0])).action is None
    with pytest.raises(ConfigError, match=r"'alpha': 2, 'beta': 7"):
        _ = store.action_dim
    assert store.restrict(["beta"]).action_dim == 7


def test_a_token_outside_the_vocabulary_is_an_error_that_names_the_data_set(tmp_path):
    path = write_shard(tmp_path, "alpha", layout=dataclasses.replace(LAYOUT, num_dyn_embeddings=21))
    _, table = open_token_shard(path)
    metadata = json.loads(table.schema.metadata[b"ivideogpt"])
    metadata["layout"]["num_dyn_embeddings"] = 1
    _rewrite(path, table.replace_schema_metadata({b"ivideogpt": json.dumps(metadata).encode()}))
    with pytest.raises(ShardError, match=r"alpha hold token \d+, but the vocabulary has 33"):
        TokenStore.open(tmp_path).rows("alpha", np.arange(10))


def test_a_shard_with_other_columns_than_its_metadata_is_refused(tmp_path):
    path = write_shard(tmp_path)
    _, table = open_token_shard(path)
    _rewrite(path, table.drop_columns(["stride"]))
    with pytest.raises(ShardError, match="other columns than its metadata says"):
        TokenStore.open(tmp_path)


def _rewrite(path, table):
    # To a new file: the table is still mapped from the old one.
    staging = path.with_suffix(".new")
    with pa.OSFile(str(staging), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    staging.replace(path)
    manifest = path.with_suffix(".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "bytes": path.stat().st_size}))


@pytest.mark.parametrize(("splits", "hint"), [(("val",), "found shards of train"), (("train",), "give the output folder")])
def test_the_error_for_no_shards_says_what_was_found(tmp_path, splits, hint):
    if splits == ("val",):
        write_shard(tmp_path)
    with pytest.raises(ShardError, match=hint):
        TokenStore.open(tmp_path, splits)


def test_an_empty_shard_does_not_affect_the_others(tmp_path):
    write_shard(tmp_path, number=0, positions=0)
    write_shard(tmp_path, number=1, positions=5, action_dim=3, has_reward=True)
    store = TokenStore.open(tmp_path)
    assert (store.positions("alpha"), store.action_dim, store.has_reward) == (5, 3, True)


def test_rows_whose_actions_are_not_finite_are_faults(tmp_path, capsys):
    sound = write_shard(tmp_path, action_dim=2, has_reward=True)
    path = write_shard(tmp_path, number=1, action_dim=2, bad_rows=[3, 7])
    assert fault_of(str(sound), every_byte=True) is None
    fault = fault_of(str(path), every_byte=True)
    assert fault.startswith(f"{path} has 2 rows with actions or rewards that are NaN or infinite: delete it and its manifest")
    assert inspect([str(tmp_path), "--verify"]) == 1
    assert "2 rows with actions or rewards that are NaN" in "".join(capsys.readouterr())
