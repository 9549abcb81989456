"""Files come and go: shards that are there keep what they are, and what is new gets shards of its own."""

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


def layout_of(plan):
    return {shard_name(split, number, "tar"): [(file.file, None) for file in chosen] for split, number, chosen in plan}


@given(before=NAMES, after=NAMES, lost=st.sets(st.integers(0, 8)))
def test_every_file_is_in_one_shard_and_what_is_made_keeps_its_files_and_number(before, after, lost):
    first = layout_of(numbered_shards(files(before), in_pairs, {}, False))
    made = {shard: places for number, (shard, places) in enumerate(first.items()) if number not in lost}
    second = layout_of(numbered_shards(files(after), in_pairs, made, False))
    placed = [file for places in second.values() for file, _ in places]
    assert sorted(placed) == sorted(after)
    anew = layout_of(numbered_shards(files(after), in_pairs, {}, False))
    agrees = all(anew.get(shard) == places for shard, places in made.items())
    if agrees:
        assert second == anew
    else:
        there = assigned_files(made)
        for shard, places in made.items():
            assert second.get(shard, []) == [place for place in places if place[0] in after]
        assert all(file not in there for shard, places in second.items() if shard not in made for file, _ in places)


@given(names=NAMES, lost=st.sets(st.integers(0, 8)))
def test_a_job_that_was_killed_is_planned_as_it_was(names, lost):
    whole = layout_of(numbered_shards(files(names), in_pairs, {}, False))
    made = {shard: places for number, (shard, places) in enumerate(whole.items()) if number not in lost}
    assert layout_of(numbered_shards(files(names), in_pairs, made, False)) == whole


def test_parts_of_one_file_are_told_apart_by_where_they_begin():
    parts = [SourceShard("train", None, "a.hdf5", first=first) for first in (0, 32, 64)]
    made = {"train-000000.tar": [("a.hdf5", 0), ("a.hdf5", 32)]}
    plan = list(numbered_shards(parts, lambda chosen: [[one] for one in chosen], made, True))
    assert [(number, [one.first for one in chosen]) for _, number, chosen in plan] == [(0, [0, 32]), (1, [64])]
