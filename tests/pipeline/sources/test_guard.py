"""An error about one input loses only that input; an error of storage or the machine stops the unit."""

import dataclasses
import errno
import logging
from collections.abc import Iterator

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlds_data import NAME, picture, write_set

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, KilledError, SourceError, StorageError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.job import ingest
from pipeline.ingest.outcome import Outcome, check_outcomes
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import collect_failures, run_unit
from pipeline.sources.base import BadEpisode, Source, SourceShard, make_episode
from pipeline.sources.guard import lost_positions, read_guarded
from pipeline.sources.npz.source import NpzSource
from pipeline.sources.rlds.source import RldsSource

ENTRY = DatasetEntry("odd", "odd", "image", control_hz=5.0, base_step=5.0)
FORM = FrameForm("jpeg", 24)
IN_PROCESS = ["--direct_running_mode=in_memory"]


class OddSource(Source):
    """Three files of three records each; reading record 1 of the second file raises a given error."""

    kind = "odd"

    def __init__(self, raises: BaseException | None, records: int | None = 3) -> None:
        super().__init__("memory://odd", ENTRY, FORM)
        self.raises, self.records = raises, records

    def plan(self) -> list[SourceShard]:
        self.ignored.clear()
        self.ignored["files of no use"] = 4
        return [SourceShard("train", number, f"{number}.odd", self.records) for number in range(3)]

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        for position in range(3)[: shard.take]:
            if (shard.number, position) == (1, 1) and self.raises is not None:
                raise self.raises
            kept = [self.form.keep_pixels(picture(shard.number * 10 + position + t)) for t in range(2)]
            episode = make_episode(self.entry, shard, position, kept)
            yield position, dataclasses.replace(episode, ignored={"frames without a time": 2})


def make_shard(source: Source, folder: str) -> index.ShardManifest:
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, source, folder)
    assert collect_failures(folder) == {}
    (record,) = index.read_manifests(folder)
    return record


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


ABOUT_ONE_INPUT = [
    TypeError("unhashable type"),
    MemoryError(),
    RecursionError("too deep"),
    AttributeError("no such thing at 0x7f34deadbeef"),
    UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"),
    SourceError("this file contradicts itself"),
    BadEpisodeError("no frames"),
    OSError("h5py says so"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "1.odd"),
    PermissionError(errno.EACCES, "Permission denied", "1.odd"),
    caused(SourceError("1.odd can't be opened"), OSError(errno.ELOOP, "Too many levels of symbolic links")),
    av.error.InvalidDataError(1, "Invalid data found", "1.odd"),
]
ABOUT_MORE = [
    StorageError("s3://bucket: EndpointConnectionError"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    caused(SourceError("1.odd can't be opened"), OSError(errno.ESTALE, "Stale file handle")),
    KilledError("the process that reads HDF5 was killed"),
]


@pytest.mark.parametrize("error", ABOUT_ONE_INPUT, ids=lambda error: type(error).__name__)
def test_any_error_about_one_input_loses_the_rest_of_it_and_keeps_the_others(tmp_path, error, caplog):
    record = make_shard(OddSource(error), str(tmp_path))
    assert [entry["key"][-6:] for entry in record.entries] == [f"00000{n}" for n in (0, 1, 2, 0, 0, 1, 2)]
    assert [(item.source_file, item.source_record) for item in record.left_out] == [("1.odd", 1), ("1.odd", 2)]
    assert all(item.reason and "0x7f" not in item.reason for item in record.left_out)
    if type(error) in (TypeError, MemoryError, SourceError):
        logged = [entry for entry in caplog.records if entry.exc_info]
        assert (len(logged) == 1 and "1.odd" in logged[0].getMessage()) or error.__cause__
    outcome = Outcome([record], 1, {}, 1.0)
    with pytest.raises(SourceError, match=r"odd: 2 of 9 episodes were left out"):
        check_outcomes({"odd": outcome}, 0.2)


@pytest.mark.parametrize("error", ABOUT_MORE, ids=lambda error: type(error).__name__)
def test_an_infrastructure_error_stops_the_unit_and_leaves_the_reason(tmp_path, error):
    source = OddSource(None)
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, OddSource(error), str(tmp_path))
    assert storage.list_files(str(tmp_path)) == ["train-000000.tar.failed"]
    assert str(error) in collect_failures(str(tmp_path))["train-000000.tar"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_is_not_an_error_about_an_input(stop):
    source = OddSource(stop)
    with pytest.raises(type(stop)):
        list(read_guarded(source.plan()[1], [source]))


def test_a_file_with_an_unknown_number_of_records_loses_one(tmp_path):
    record = make_shard(OddSource(ValueError("odd"), records=None), str(tmp_path))
    assert [item.source_record for item in record.left_out] == [1]


def test_ignored_inputs_are_counted_by_reason_in_manifests_summary_and_log(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    source = OddSource(None)
    units = make_plan(source, None, None, 1 << 30)
    outcome = ingest(units, source, "odd", str(tmp_path), IN_PROCESS, overwrite=False)
    wanted = {"files of no use": 4, "frames without a time": 18}
    assert dict(outcome.ignored) == index.read_summary(str(tmp_path))["passed_over"] == wanted
    assert outcome.manifests[0].statistics["passed_over"] == {"frames without a time": 18}
    assert "odd: ignored 18: frames without a time" in caplog.text
    # Existing shards are counted like new ones.
    assert dict(ingest(units, source, "odd", str(tmp_path), IN_PROCESS, overwrite=False).ignored) == wanted


def test_a_lost_input_counts_as_the_episodes_that_it_would_have_held(tmp_path):
    record = make_shard(OddSource(ValueError("odd")), str(tmp_path))
    heavy = [dataclasses.replace(item, episodes=50.5) for item in record.left_out]
    with pytest.raises(SourceError, match=r"101 of 108 episodes were left out"):
        check_outcomes({"odd": Outcome([dataclasses.replace(record, left_out=heavy)], 1, {}, 1.0)}, 0.9)


def test_a_shard_that_lacks_an_unopenable_file_is_made_again_when_the_file_is_back(tmp_path):
    folder, output = tmp_path / "npz", str(tmp_path / "out")
    folder.mkdir()
    for name in "ab":
        np.savez(folder / f"{name}.npz", image=np.stack([picture(t) for t in range(2)]))
    source = open_npz(folder)
    units = make_plan(source, None, None, 1 << 30)
    (folder / "a.npz").rename(tmp_path / "away")
    first = ingest(units, source, "odd", output, IN_PROCESS, overwrite=False)
    assert [item.kind for item in first.manifests[0].left_out] == ["missing"]
    (tmp_path / "away").rename(folder / "a.npz")
    second = ingest(units, source, "odd", output, IN_PROCESS, overwrite=False)
    assert (second.shards_made, second.manifests[0].left_out) == (1, [])
    assert ingest(units, source, "odd", output, IN_PROCESS, overwrite=False).shards_made == 0


def open_npz(folder) -> Source:
    return NpzSource(str(folder), ENTRY, FORM)


@given(
    records=st.none() | st.integers(0, 20),
    first=st.integers(0, 50),
    take=st.none() | st.integers(1, 20),
    seen=st.integers(0, 20),
    divided=st.booleans(),
)
def test_lost_records_follow_the_read_ones_up_to_the_stated_number(records, first, take, seen, divided):
    shard = SourceShard("train", 0, "a", records, take=take, first=first)
    start = first if divided else 0
    lost = lost_positions(shard, divided, start + seen - 1 if seen else None)
    assert list(lost) == list(range(start + seen, start + seen + len(lost))) and lost
    promised = min(records or 0, take or 100)
    assert len(lost) == max(1, promised - seen)


def test_the_lost_records_of_a_file_with_selected_records_are_among_these():
    assert list(lost_positions(SourceShard("test", 0, "a", 3, only=(2, 5, 7)), False, 2)) == [5, 7]


def test_an_unexpected_error_about_a_record_loses_only_this_record(tmp_path):
    class Surprised(RldsSource):
        def _episode(self, columns, spec, shard, position):
            return super()._episode(columns, spec, shard, position) if position != 1 else columns.nothing_of_the_kind

    write_set(tmp_path / "rlds", episodes=3, per_shard=3)
    source = Surprised(str(tmp_path / "rlds" / NAME / "0.1.0"), DatasetEntry(NAME, NAME, "image", version="0.1.0"), FORM)
    unit = make_plan(source, ["train"], None, 1 << 30)[0]
    run_unit(unit, source, str(tmp_path / "out"))
    (record,) = index.read_manifests(str(tmp_path / "out"))
    assert record.samples == 2 and [item.source_record for item in record.left_out] == [1]
    assert "AttributeError" in record.left_out[0].reason
