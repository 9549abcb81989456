"""A data set that is rewritten in place under the same version is detected; repaired and added files are accepted."""

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlds_data import NAME, VERSION, episode, write_set

from pipeline.__main__ import main
from pipeline.common import storage
from pipeline.common.errors import ConflictError, ShardError
from pipeline.ingest.source_lock import LOCK_FILE, FileFingerprint, SourceFingerprint, compare, read_lock, write_lock

FILE = f"{NAME}-train.tfrecord-00001-of-00003"
# One process makes the test fast.
BEAM = ["--", "--direct_running_mode=in_memory"]


def ingest(source, output, *more: str) -> int:
    described = ["--dataset", NAME, "--camera", "image", "--rate", "10", "--max_bad_fraction", "1"]
    return main([*described, "--source", str(source), "--output", str(output), *more, *BEAM])


def rewrite(folder) -> None:
    """Write other episodes to the second file."""
    other = write_set(folder.parent.parent / "other", episodes=[episode(40 + n) for n in range(5)], per_shard=2)
    (folder / FILE).write_bytes((other / FILE).read_bytes())


def test_a_file_rewritten_in_place_stops_the_next_ingest_to_any_output_and_overwrite_accepts_it(tmp_path, capsys):
    folder = write_set(tmp_path, episodes=5, per_shard=2)
    lock = tmp_path / "team.lock.json"
    assert ingest(folder, tmp_path / "out", "--lock", str(lock)) == 0
    assert ingest(folder, tmp_path / "out", "--lock", str(lock)) == 0
    before = read_lock(str(lock))[f"{NAME}/{VERSION}"]
    assert len(before.files) == 4 and before.spec_sha256
    rewrite(folder)
    capsys.readouterr()
    assert ingest(folder, tmp_path / "elsewhere", "--lock", str(lock)) == 1
    error = capsys.readouterr().err
    assert f"{NAME}/{VERSION} was rewritten in place" in error and FILE in error and "--overwrite" in error
    assert len(set(re.findall(r"\b[0-9a-f]{16}\b", error))) == 2 and before.fingerprint() in error
    assert not (tmp_path / "elsewhere" / NAME / "train-000000.json").exists()
    assert ingest(folder, tmp_path / "elsewhere", "--lock", str(lock), "--overwrite") == 0
    assert read_lock(str(lock))[f"{NAME}/{VERSION}"].fingerprint() != before.fingerprint()
    assert ingest(folder, tmp_path / "elsewhere", "--lock", str(lock)) == 0


def test_the_lock_lies_next_to_the_shards_and_the_error_names_a_changed_spec_or_a_lost_file(tmp_path, capsys):
    folder = write_set(tmp_path, episodes=5, per_shard=2)
    assert ingest(folder, tmp_path / "out") == 0
    lock = json.loads((tmp_path / "out" / NAME / LOCK_FILE).read_text())
    assert list(lock["sources"]) == [f"{NAME}/{VERSION}"]
    moved = (folder / FILE).rename(tmp_path / "moved")
    assert ingest(folder, tmp_path / "out") == 1
    assert f"{FILE} (gone)" in capsys.readouterr().err
    moved.rename(folder / FILE)
    spec = folder / "features.json"
    spec.write_text(spec.read_text().replace("{", "{ ", 1))
    assert ingest(folder, tmp_path / "out") == 1
    assert "differences: its spec." in capsys.readouterr().err


def test_damaged_files_and_files_of_other_splits_are_not_locked(tmp_path, capsys):
    folder = write_set(tmp_path, episodes=5, per_shard=2)
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:-30])
    ingest(folder, tmp_path / "out")
    locked = read_lock(str(tmp_path / "out" / NAME / LOCK_FILE)).get(f"{NAME}/{VERSION}", SourceFingerprint())
    assert FILE not in locked.files
    (folder / FILE).write_bytes(whole)
    assert ingest(folder, tmp_path / "out") == 0, capsys.readouterr().err
    assert FILE in read_lock(str(tmp_path / "out" / NAME / LOCK_FILE))[f"{NAME}/{VERSION}"].files
    assert ingest(folder, tmp_path / "val", "--splits", "val") == 0
    assert len(read_lock(str(tmp_path / "val" / NAME / LOCK_FILE))[f"{NAME}/{VERSION}"].files) == 1
    assert ingest(folder, tmp_path / "val", "--splits", "val") == 0


FINGERPRINTS = st.builds(
    FileFingerprint,
    st.integers(0, 3),
    st.sampled_from("ab"),
    st.sampled_from([None, "ETag:1", "ETag:2", "ETag:1-2", "ETag:2-2", "time:1", "time:2"]),
)
SOURCES = st.builds(SourceFingerprint, st.sampled_from([None, "x"]), st.dictionaries(st.sampled_from("abcd"), FINGERPRINTS))


@given(locked=SOURCES, now=SOURCES)
def test_only_known_differences_are_a_conflict(locked, now):
    gone = locked.files.keys() - now.files.keys()
    rewritten = {
        name
        for name in locked.files.keys() & now.files.keys()
        if dataclasses.replace(locked.files[name], tag=None) != dataclasses.replace(now.files[name], tag=None)
        or {locked.files[name].tag, now.files[name].tag} == {"ETag:1", "ETag:2"}
    }
    if gone or rewritten or locked.spec_sha256 != now.spec_sha256:
        with pytest.raises(ConflictError) as caught:
            compare("lock", "set/1", locked, now, now.files)
        assert all(name in str(caught.value) for name in gone | rewritten)
    else:
        compare("lock", "set/1", locked, now, now.files)


@given(first=SOURCES, second=SOURCES, replace=st.booleans())
def test_a_lock_file_returns_what_was_written_and_keeps_other_data_sets(first, second, replace):
    path = "memory://lock/sources.lock.json"
    storage.remove(path)
    write_lock(path, "a/1", first, replace)
    write_lock(path, "b/1", second, replace)
    write_lock(path, "b/1", first, replace)
    found = read_lock(path)
    assert found.get("a/1", first) == first or not first.files
    wanted = first.files if replace else {**second.files, **first.files}
    if first.files:
        assert found["b/1"] == SourceFingerprint(first.spec_sha256, wanted)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "sources": {}}', '{"format": 1, "sources": {"a": {"files": 3}}}'])
def test_a_damaged_lock_file_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / LOCK_FILE
    path.write_text(text)
    with pytest.raises(ShardError, match=re.escape(f"{path} is not a lock file")):
        read_lock(str(path))
