"""Files are added and removed: existing shards keep their files, and new files get new shards."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.episodes.naming import shard_name
from pipeline.ingest.shard_assignment import assigned_files, numbered_shards
from pipeline.sources.base import SourceShard

NAMES = st.sets(st.sampled_from([f"{letter}.npz" for letter in "abcdefghijklmnop"]))


def files(names):
    return [SourceShard("train", None, name) for name in sorted(names)]


def in_pairs(chosen):
    return [list(chosen[start : start + 2]) for start in range(0, len(chosen), 2)]


def assignment(plan):
    return {shard_name(split, number, "tar"): [(file.file, None) for file in chosen] for split, number, chosen in plan}


@given(before=NAMES, after=NAMES, lost=st.sets(st.integers(0, 8)))
def test_every_file_is_in_one_shard_and_existing_shards_keep_their_files_and_number(before, after, lost):
    first = assignment(numbered_shards(files(before), in_pairs, {}, False))
    existing = {shard: ranges for number, (shard, ranges) in enumerate(first.items()) if number not in lost}
    second = assignment(numbered_shards(files(after), in_pairs, existing, False))
    assert sorted(file for ranges in second.values() for file, _ in ranges) == sorted(after)
    fresh = assignment(numbered_shards(files(after), in_pairs, {}, False))
    if all(fresh.get(shard) == ranges for shard, ranges in existing.items()):
        assert second == fresh
    else:
        for shard, ranges in existing.items():
            assert second.get(shard, []) == [item for item in ranges if item[0] in after]
        new_files = [file for shard, ranges in second.items() if shard not in existing for file, _ in ranges]
        assert assigned_files(existing).isdisjoint(new_files)


@given(names=NAMES, lost=st.sets(st.integers(0, 8)))
def test_a_killed_job_gets_the_same_plan_again(names, lost):
    whole = assignment(numbered_shards(files(names), in_pairs, {}, False))
    existing = {shard: ranges for number, (shard, ranges) in enumerate(whole.items()) if number not in lost}
    assert assignment(numbered_shards(files(names), in_pairs, existing, False)) == whole


def test_ranges_of_one_file_are_distinguished_by_their_first_record():
    ranges = [SourceShard("train", None, "a.hdf5", first=first) for first in (0, 32, 64)]
    existing = {"train-000000.tar": [("a.hdf5", 0), ("a.hdf5", 32)]}
    plan = list(numbered_shards(ranges, lambda files: [[file] for file in files], existing, True))
    assert [(number, [file.first for file in files]) for _, number, files in plan] == [(0, [0, 32]), (1, [64])]
