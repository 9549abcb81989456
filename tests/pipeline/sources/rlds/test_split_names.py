"""The split of a file is found from `dataset_info.json` or from file names alone, with or without hyphens."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rlds_data import NAME, VERSION, episode, features, write_rlds

from pipeline.__main__ import main
from pipeline.episodes.index import read_index
from pipeline.episodes.naming import episode_key, held_out_split, is_split_name, parse_shard_name, shard_name, split_of_key
from pipeline.sources.base import SourceShard
from pipeline.sources.rlds.split_names import FILE, NamingInfo, splits_of

SPLIT_NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,12}", fullmatch=True)
# As tensorflow-datasets wants it: without hyphens.
DATASETS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)


@given(split=SPLIT_NAMES, number=st.integers(0, 2_000_000), ending=st.sampled_from(["tar", "arrow"]))
def test_shard_names_and_keys_contain_the_split(split, number, ending):
    assert is_split_name(split)
    assert parse_shard_name(shard_name(split, number, ending)) == (split, number)
    assert parse_shard_name(shard_name(held_out_split(split), number, ending)) == (held_out_split(split), number)
    assert split_of_key(episode_key(split, number, 3)) == split
    assert split_of_key(SourceShard(split, None, "a-b.npz").key(3)) == split


@given(dataset=DATASETS, splits=st.sets(SPLIT_NAMES, min_size=1, max_size=5))
def test_the_splits_in_dataset_info_decide(dataset, splits):
    stated = NamingInfo.of({"name": dataset, "splits": [{"name": split} for split in splits]})
    assert splits_of([f"{dataset}-{split}" for split in splits], stated) == {f"{dataset}-{split}": split for split in splits}
    without_splits = NamingInfo.of({"name": dataset})
    assert splits_of([f"{dataset}-{split}" for split in splits], without_splits) == {
        f"{dataset}-{split}": split for split in splits
    }


@given(dataset=DATASETS, splits=st.sets(SPLIT_NAMES, min_size=2, max_size=5))
def test_without_dataset_info_the_common_start_of_all_names_is_the_data_set(dataset, splits):
    firsts = {split.split("-")[0] for split in splits}
    assume(len(firsts) == len(splits) or any(first in ("train", "test", "val") for first in firsts))
    assume(dataset not in ("train", "test", "val", "valid", "eval", "dev"))
    assume(all(not split.startswith("-") and "--" not in split for split in splits))
    assert splits_of([f"{dataset}-{split}" for split in splits], NamingInfo()) == {
        f"{dataset}-{split}": split for split in splits
    }


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["ls-train-clean", "ls-train-noisy"], ["train-clean", "train-noisy"]),
        (["ls-train-clean", "ls-test"], ["train-clean", "test"]),
        (["my-set-train", "my-set-val"], ["train", "val"]),
        (["my-set-train"], ["train"]),
        (["my-set-train-clean"], ["train-clean"]),
        (["bridge-full"], ["full"]),
        (["a-b-x", "a-b-y"], ["x", "y"]),
        (["train", "test"], ["train", "test"]),
        (["a-train", "b-train"], ["train", "train"]),
    ],
)
def test_names_alone_give_the_split_that_a_person_would_see(named, expected):
    assert list(splits_of(named, NamingInfo()).values()) == expected


def test_a_custom_template_and_the_name_of_a_folder_give_the_split(tmp_path):
    split = {"name": "a-b", "filepathTemplate": "x/{SPLIT}-of-{DATASET}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
    own = NamingInfo.of({"name": "set", "splits": [split]})
    assert splits_of(["a-b-of-set"], own) == {"a-b-of-set": "a-b"}
    assert splits_of(["my-set-some-part"], NamingInfo(), ["my-set", "1.0.0"]) == {"my-set-some-part": "some-part"}


@pytest.mark.parametrize("info", [True, False])
def test_splits_with_hyphens_keep_their_names_in_shards(tmp_path, capsys, info):
    splits = {name: [episode(seed)] for seed, name in enumerate(["train-clean", "train-noisy", "Test"])}
    folder = write_rlds(tmp_path / "data", NAME, VERSION, features(), splits, episodes_per_shard=1)
    if not info:
        (folder / "dataset_info.json").unlink()
    described = [
        "--dataset",
        NAME,
        "--camera",
        "image",
        "--rate",
        "10",
        "--source",
        str(folder),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*described, "--", "--direct_running_mode=in_memory"]) == 0, capsys.readouterr().err
    rows = read_index(str(tmp_path / "out" / NAME)).to_pylist()
    assert {(row["split"], row["shard"], row["key"]) for row in rows} == {
        (split, f"{split}-000000.tar", f"{split}-00000-000000") for split in splits
    }


def test_every_file_name_of_earlier_versions_is_still_accepted(tmp_path):
    for name in ("a-train.tfrecord-00000-of-00002", "a.b-c-train.tfrecord-00003", "a-b_c.tfrecord-000001-of-000002"):
        assert FILE.fullmatch(name)
    for name in ("a.tfrecord-00000-of-00001", "a-train.tfrecord", "a-train.tfrecord-00000-of-00001.gz"):
        assert not FILE.fullmatch(name)
