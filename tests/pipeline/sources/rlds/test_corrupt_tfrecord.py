"""Damage in TFRecord files loses only the damaged records, which are listed with file, position and reason."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlds_data import NAME, episode, write_set

from pipeline import open_shard
from pipeline.common import storage
from pipeline.common.errors import ConflictError, SourceError
from pipeline.common.manifests import find_done
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.outcome import Outcome, check_outcomes
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import collect_failures, run_unit
from pipeline.sources.base import MAX_RECORDS
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.tfrecord.reader import DamagedRecord, scan_records, write_record

ENTRY = DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0, base_step=10.0)
FORM = FrameForm("source")
EPISODES = 4
FRAME = 16  # bytes of a record besides its data
several = st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5)
PLACE = "memory://tfrecord/a"


def framed(records) -> bytes:
    buffer = io.BytesIO()
    for record in records:
        write_record(buffer, record)
    return buffer.getvalue()


def scan(data: bytes) -> list[bytes | DamagedRecord]:
    storage.write_bytes(PLACE, data)
    return list(scan_records(PLACE))


@given(records=several, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_loses_only_its_record(records, data):
    damaged = bytearray(framed(records))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    hit = next(n for n in range(len(records)) if place < len(framed(records[: n + 1])))
    found = scan(bytes(damaged))
    assert isinstance(found[hit], DamagedRecord)
    assert found[:hit] + found[hit + 1 :] == records[:hit] + records[hit + 1 :]


@given(records=several, data=st.data())
@settings(max_examples=60, deadline=None)
def test_bytes_lost_or_added_in_a_record_lose_only_that_record(records, data):
    hit = data.draw(st.integers(0, len(records) - 1))
    before, own, after = framed(records[:hit]), framed([records[hit]]), framed(records[hit + 1 :])
    place = data.draw(st.integers(12, len(own) - 5))
    changed = (
        own[:place] + (data.draw(st.binary(min_size=1, max_size=30)) if data.draw(st.booleans()) else b"") + own[place + 1 :]
    )
    found = scan(before + changed + after)
    kept = [record for record in found if isinstance(record, bytes)]
    if changed == own:
        assert found == records
    else:
        assert kept == records[:hit] + records[hit + 1 :] and len(found) == len(records)


def test_after_a_damaged_length_the_record_number_is_uncertain():
    whole = framed([b"a" * 50, b"b" * 50, b"c" * 50, b"d" * 50])
    own = FRAME + 50
    gap = whole[:own] + b"\0" * (2 * own) + whole[3 * own :]
    assert [r.alone if isinstance(r, DamagedRecord) else r[:1] for r in scan(gap)] == [b"a", False, b"d"]
    flipped = bytearray(whole)
    flipped[own + 20] ^= 1
    assert [r.alone if isinstance(r, DamagedRecord) else r[:1] for r in scan(bytes(flipped))] == [b"a", True, b"c", b"d"]


def test_a_file_with_only_false_lengths_is_given_up_early():
    # Each of these headers is sound and claims nearly all that is left of the file, but no data agrees with its checksum.
    size, pieces = 2000 * 12, []
    for number in range(2000):
        length = size - 12 * number - FRAME - 5
        if length <= 0:
            break
        header = io.BytesIO()
        write_record(header, struct.pack("<Q", length))
        pieces.append(struct.pack("<Q", length) + header.getvalue()[-4:])
    found = scan(b"".join(pieces).ljust(size, b"\1"))
    assert len(found) == 65 and all(isinstance(record, DamagedRecord) for record in found)
    assert "more than 64 places" in found[-1].reason


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, bytes]:
    """Write a data set whose train split is one file of four records."""
    folder = write_set(tmp_path_factory.mktemp("sound"), episodes=[episode(n) for n in range(EPISODES)], per_shard=EPISODES)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


TRAIN = f"{NAME}-train.tfrecord-00000-of-00001"


def bounds(data: bytes) -> list[int]:
    """Return the offset of each record, and the end of the file."""
    found = [0]
    while found[-1] < len(data):
        found.append(found[-1] + FRAME + struct.unpack_from("<Q", data, found[-1])[0])
    return found


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


# Name -> (damage to the file's bytes, the lost records, the reason of the first of them)
DAMAGE = {
    "payload": (lambda d, b: flip(d, b[1] + 500), [1], "checksum of the record's data"),
    "payload checksum": (lambda d, b: flip(d, b[2] - 1), [1], "checksum of the record's data"),
    "length": (lambda d, b: flip(d, b[1] + 1), [1], "checksum of the record's length"),
    "length checksum": (lambda d, b: flip(d, b[1] + 9), [1], "checksum of the record's length"),
    "first length": (lambda d, b: flip(d, 0), [0], "checksum of the record's length"),
    "last length": (lambda d, b: flip(d, b[3] + 2), [3], "checksum of the record's length"),
    "two payloads": (lambda d, b: flip(flip(d, b[0] + 99), b[2] + 99), [0, 2], "checksum of the record's data"),
    "hole": (lambda d, b: d[: b[1] + 300] + d[b[1] + 900 :], [1], "checksum of the record's data"),
    "cut in a length": (lambda d, b: d[: b[2] + 5], [2, 3], "ends inside the record's header"),
    "cut in a length's checksum": (lambda d, b: d[: b[2] + 10], [2, 3], "ends inside the record's header"),
    "cut behind a header": (lambda d, b: d[: b[2] + 12], [2, 3], "bytes are missing"),
    "cut in a payload": (lambda d, b: d[: b[2] + 700], [2, 3], "bytes are missing"),
    "cut in a payload's checksum": (lambda d, b: d[: b[3] - 2], [2, 3], "2 bytes are missing"),
    "cut between records": (lambda d, b: d[: b[3]], [3], "ends after 3 of 4 records"),
    "one byte": (lambda d, b: d[:1], [0, 1, 2, 3], "ends inside the record's header"),
    "empty": (lambda d, b: b"", [0, 1, 2, 3], "the file is empty"),
    "pointer": (
        lambda d, b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        [0, 1, 2, 3],
        "no TFRecord",
    ),
    "page of a portal": (lambda d, b: b"<!DOCTYPE html><html>sign in</html>" * 99, [0, 1, 2, 3], "no TFRecord"),
    "zeros": (lambda d, b: bytes(len(d)), [0, 1, 2, 3], "no TFRecord"),
}


def write_damaged(folder, sound, damage):
    folder.mkdir(exist_ok=True)
    for name, data in sound.items():
        changed = damage(data, bounds(data)) if name == TRAIN else data
        (folder / name).unlink(missing_ok=True)
        if changed is not None:
            (folder / name).write_bytes(changed)
    return RldsSource(str(folder), ENTRY, FORM)


def make_all(source, output, overwrite=False):
    """Make the missing shards and return their number."""
    units = make_plan(source, None, None, 1)
    wanted = [unit for unit in units if find_done(output, unit.shard, unit.inputs, overwrite) is None]
    for unit in wanted:
        run_unit(unit, source, output)
    assert collect_failures(output) == {}
    return len(wanted)


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "unstated"])
@pytest.mark.parametrize("case", DAMAGE)
def test_the_lost_records_are_listed_and_the_others_kept(tmp_path, sound, case, stated):
    damage, lost, reason = DAMAGE[case]
    source = write_damaged(tmp_path / "set", sound, damage)
    if not stated:
        (tmp_path / "set" / "dataset_info.json").unlink()
        # Where nobody says how many there are, only the first of those at the end is known of, and nothing of a clean cut.
        lost = [] if case == "cut between records" else [n for n in lost if n - 1 not in lost or case == "two payloads"]
    output = str(tmp_path / "out")
    make_all(source, output)
    (record,) = [record for record in index.read_manifests(output) if record.shard.startswith("train")]
    assert [(item.source_file, item.source_record) for item in record.left_out] == [(TRAIN, n) for n in lost]
    assert all(item.kind == "damaged" for item in record.left_out)
    assert not lost or reason in record.left_out[0].reason
    kept = [e.source_record for e in open_shard(storage.join(output, record.shard))]
    assert not set(kept) & set(lost) and (not stated or sorted(kept + lost) == list(range(EPISODES)))
    outcome = Outcome(list(index.read_manifests(output)), 2, {}, 1.0)
    share = len(lost) / (len(kept) + len(lost) + 1)
    check_outcomes({"toy": outcome}, share)
    if lost:
        with pytest.raises(SourceError, match=f"{TRAIN}, record {lost[0]}.*: .*{reason}"):
            check_outcomes({"toy": outcome}, share - 0.01)


@pytest.mark.parametrize("stated", [True, False])
def test_the_episodes_of_a_missing_file_are_listed_and_made_when_the_file_is_back(tmp_path, stated):
    folder = write_set(tmp_path, episodes=[episode(n) for n in range(4)], per_shard=2)
    if not stated:
        # The file counts for as many episodes as the others of its split have.
        (folder / "dataset_info.json").unlink()
    lost = folder / f"{NAME}-train.tfrecord-00001-of-00002"
    data = lost.read_bytes()
    lost.unlink()
    source, output = RldsSource(str(folder), ENTRY, FORM), str(tmp_path / "out")
    make_all(source, output)
    left_out = [item for record in index.read_manifests(output) for item in record.left_out]
    assert [(item.source_file, item.source_record, item.kind) for item in left_out] == [
        (lost.name, n, "missing") for n in (0, 1)
    ]
    lost.write_bytes(data)
    assert make_all(source, output) == 1
    assert not any(record.left_out for record in index.read_manifests(output))


def test_a_split_without_any_file_is_logged(tmp_path, sound, caplog):
    source = write_damaged(tmp_path / "set", sound, lambda *_: None)
    assert {shard.split for shard in source.plan()} == {"val"}
    assert "has no file of the split train" in caplog.text


def test_the_shard_of_a_repaired_file_is_made_again_with_the_right_bytes(tmp_path, sound):
    output = str(tmp_path / "out")
    source = write_damaged(tmp_path / "set", sound, DAMAGE["cut in a payload"][0])
    assert make_all(source, output) == 2 and make_all(source, output) == 0
    write_damaged(tmp_path / "set", sound, lambda data, _: data)
    assert make_all(source, output) == 1
    make_all(source, str(tmp_path / "clean"))
    assert [p.read_bytes() for p in sorted((tmp_path / "out").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "clean").iterdir())
    ]
    # Nothing was lost now, so another change is a conflict.
    write_damaged(tmp_path / "set", sound, DAMAGE["empty"][0])
    with pytest.raises(ConflictError, match="--overwrite"):
        make_all(source, output)


def test_a_repair_with_the_same_size_head_and_tail_needs_overwrite(tmp_path):
    whole = {
        p.name: p.read_bytes() for p in write_set(tmp_path / "made", [episode(n, frames=120) for n in range(4)], 4).iterdir()
    }
    assert len(whole[TRAIN]) > 3 << 16
    output = str(tmp_path / "out")
    source = write_damaged(tmp_path / "set", whole, lambda data, b: flip(data, len(data) // 2))
    make_all(source, output)
    write_damaged(tmp_path / "set", whole, lambda data, _: data)
    assert make_all(source, output) == 0
    assert make_all(source, output, overwrite=True) == 1
    assert not next(index.read_manifests(output)).left_out and make_all(source, output, overwrite=True) == 0


def test_after_an_unknown_number_of_lost_records_no_public_test_episode_is_used_for_training(tmp_path, sound):
    source = write_damaged(tmp_path / "set", sound, DAMAGE["length"][0])
    held = DatasetEntry(NAME, NAME, "image", version="0.1.0", test_episodes="robonet_test_episodes.yaml")
    held_source = RldsSource(source.folder, held, FORM)
    items = [item for _, item in held_source.read(held_source.plan()[0])]
    assert [getattr(item, "reason", "")[:20] for item in items[2:]] == ["its index is unknown"] * 2
    payload = write_damaged(tmp_path / "set", sound, DAMAGE["payload"][0])
    items = [item for _, item in RldsSource(payload.folder, held, FORM).read(held_source.plan()[0])]
    assert not any("index" in getattr(item, "reason", "") for item in items)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("dataset_info.json", b'{"splits": [{"name": "train", "shardLengths": ["99999999999"]}]}', f"limit is {MAX_RECORDS}"),
        ("dataset_info.json", b'{"splits": [{"name": "train", "shardLengths": ["-1"]}]}', f"limit is {MAX_RECORDS}"),
        ("dataset_info.json", b'{"splits": [{"name": "train", "numBytes": 1e999}]}', "not a finite number"),
        ("dataset_info.json", b"\xff\xfe{}", "damaged"),
        ("dataset_info.json", b"[" * 100_000, "nests too deeply"),
        ("features.json", b"[" * 100_000, "nests too deeply"),
        ("features.json", b"\xff\xfe", r"features.json is not the spec[^$]* fetch it again"),
        ("features.json", b"", r"features.json is not the spec[^$]* fetch it again"),
        (f"{NAME}-train.tfrecord-00000-of-99999999999999", b"", "limit is 100000"),
    ],
)
def test_stated_numbers_of_records_and_files_are_limited_and_checked(tmp_path, sound, name, content, says):
    source = write_damaged(tmp_path / "set", sound, lambda data, _: None if "of-999" in name else data)
    (tmp_path / "set" / name).write_bytes(content)
    with pytest.raises(SourceError, match=says):
        source.plan()
