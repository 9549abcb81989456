"""TFRecord files are read as written, and all damage is detected."""

import gzip
import io
import struct
import zlib

import pytest
from apache_beam.io.tfrecordio import _TFRecordUtil
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import SourceError
from pipeline.sources.base import BadEpisode, SourceShard
from pipeline.sources.tfrecord.example import read_examples
from pipeline.sources.tfrecord.reader import count_records, read_records, write_record

several = st.lists(st.binary(max_size=200), min_size=1, max_size=5)


def framed(records) -> bytes:
    buffer = io.BytesIO()
    for record in records:
        write_record(buffer, record)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tfrecord") / "a.tfrecord-00000-of-00001"


@given(records=several)
@settings(max_examples=50, deadline=None)
def test_written_records_are_read_back_and_beam_reads_the_same(path, records):
    path.write_bytes(framed(records))
    assert list(read_records(str(path))) == records
    assert count_records(str(path)) == len(records)
    with path.open("rb") as file:
        assert [_TFRecordUtil.read_record(file) for _ in records] == records


@given(records=several, data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_file_truncated_inside_a_record_is_detected(path, records, data):
    whole = framed(records)
    ends = [len(framed(records[:n])) for n in range(len(records) + 1)]
    length = data.draw(st.integers(1, len(whole) - 1).filter(lambda n: n not in ends))
    path.write_bytes(whole[:length])
    assert count_records(str(path)) is None
    with pytest.raises(SourceError, match="cut short"):
        list(read_records(str(path)))


@given(records=several, data=st.data())
@settings(max_examples=50, deadline=None)
def test_every_changed_byte_is_detected(path, records, data):
    damaged = bytearray(framed(records))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match=r"a\.tfrecord-00000-of-00001, record \d"):
        list(read_records(str(path)))


def test_a_hostile_length_is_not_allocated(path):
    length = struct.pack("<Q", 1 << 62)
    honest = io.BytesIO()
    write_record(honest, length)
    # The checksum of these eight bytes as data is the one that belongs behind them as a length.
    path.write_bytes(length + honest.getvalue()[-4:] + b"short")
    with pytest.raises(SourceError, match="cut short"):
        list(read_records(str(path)))


def test_a_missing_file_is_named(path):
    with pytest.raises(SourceError, match="nowhere"):
        list(read_records(str(path.with_name("nowhere"))))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
def test_a_file_that_is_compressed_as_a_whole_is_reported_as_compressed_not_damaged(tmp_path, pack):
    write_record(buffer := io.BytesIO(), b"a" * 100)
    (tmp_path / "a").write_bytes(pack(buffer.getvalue()))
    shard = SourceShard("train", 0, "a", records=2)
    found = [record.columns for record in read_examples(str(tmp_path / "a"), shard)]
    assert len(found) == 2 and all(isinstance(bad, BadEpisode) and bad.kind == "unusable" for bad in found)
    assert found[0].reason.startswith(f"the file is compressed as a whole, with {pack.__module__}: unpack it")
