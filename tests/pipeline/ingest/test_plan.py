"""Every source file is in the plan once and in order, and shards have about the wanted size."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlds_data import NAME, write_set

from pipeline.common.errors import ConfigError
from pipeline.common.manifests import fingerprint
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.plan import grouped, limited, make_plan
from pipeline.sources.base import SourceShard
from pipeline.sources.rlds.source import RldsSource

JPEG = FrameForm("jpeg", 40)
ENTRY = DatasetEntry(NAME, NAME, "image", control_hz=10.0, base_step=10.0)


@st.composite
def source_files(draw, unknown=False):
    counts = st.integers(0, 30)
    if unknown:
        counts = st.one_of(st.none(), counts)
    return [
        SourceShard(split, number, f"{split}-{number}", draw(counts))
        for split in draw(st.sampled_from([["train"], ["test", "train"]]))
        for number in range(draw(st.integers(1, 8)))
    ]


@given(files=source_files(unknown=True), target=st.floats(0.1, 100), data=st.data())
def test_every_file_is_in_one_group_in_order(files, target, data):
    weights = data.draw(st.lists(st.floats(0, 40), min_size=len(files), max_size=len(files)))
    groups = grouped(files, weights, target)
    assert [file for group in groups for file in group] == files
    weight = dict(zip(files, weights, strict=True))
    for group in groups:
        assert len({file.split for file in group}) == 1
        assert len(group) == 1 or sum(weight[file] for file in group) <= target * (1 + 1e-9)
    for left, right in itertools.pairwise(groups):
        if left[0].split == right[0].split:
            assert sum(weight[file] for file in left) + weight[right[0]] > target * (1 - 1e-9)


@given(files=source_files(), most=st.integers(1, 60))
def test_a_limit_takes_the_first_episodes_of_each_split(files, most):
    taken = limited(files, most)
    for split in {file.split for file in files}:
        available = sum(file.records for file in files if file.split == split)
        split_files = [file for file in taken if file.split == split]
        assert sum(file.records if file.take is None else file.take for file in split_files) == min(most, available)
        assert all(file.take is None for file in split_files[:-1])
    assert [dataclasses.replace(file, take=None) for file in taken] == [
        file for file in files if file.file in {t.file for t in taken}
    ]


def test_without_a_limit_all_files_are_taken():
    files = [SourceShard("train", 0, "a"), SourceShard("train", 1, "b", 3)]
    assert limited(files, None) == files


def test_a_plan_is_deterministic_and_changes_with_its_inputs(tmp_path):
    folder = write_set(tmp_path, episodes=6, per_shard=2)

    def plan(form=JPEG, **options):
        defaults = {"splits": None, "max_episodes": None, "shard_bytes": 1}
        return make_plan(RldsSource(str(folder), ENTRY, form), **{**defaults, **options})

    first = plan()
    assert [unit.shard for unit in first] == [f"train-{n:06d}.tar" for n in range(3)] + ["val-000000.tar"]
    assert plan() == first
    fingerprints = {unit.shard: fingerprint(unit.inputs) for unit in first}
    other_form = {unit.shard: fingerprint(unit.inputs) for unit in plan(FrameForm("png", 40))}
    assert all(fingerprints[shard] != other_form[shard] for shard in fingerprints)
    fewer = plan(max_episodes=3)
    assert [fingerprint(unit.inputs) == fingerprints[unit.shard] for unit in fewer] == [True, False, True]
    assert [unit.shard for unit in plan(splits=["val"])] == ["val-000000.tar"]
    assert len(plan(shard_bytes=1 << 30)) == 2
    file = folder / first[1].sources[0].file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    changed = {unit.shard for unit in plan() if fingerprint(unit.inputs) != fingerprints[unit.shard]}
    assert changed == {"train-000001.tar"}


def test_an_unknown_split_is_an_error_that_lists_the_known_ones(tmp_path):
    source = RldsSource(str(write_set(tmp_path, episodes=1)), ENTRY, FrameForm())
    with pytest.raises(ConfigError, match="no split 'tset'; it has train, val"):
        make_plan(source, ["tset"], None, 1)


def test_a_damaged_file_does_not_change_the_groups_of_files(tmp_path):
    folder = write_set(tmp_path, episodes=8, per_shard=1)
    source = RldsSource(str(folder), ENTRY, JPEG)

    def groups():
        return [tuple(file.number for file in unit.sources) for unit in make_plan(source, ["train"], None, 40_000)]

    before = groups()
    assert 1 < len(before) < 8
    file = folder / source.plan()[3].file
    file.write_bytes(file.read_bytes()[:100])
    assert groups() == before
    file.unlink()
    assert groups() == before
