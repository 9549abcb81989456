"""Damage that hangs or crashes libhdf5 only affects a child process: the file is listed, and the next file is read."""

import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from downstream_data import write_robonet, write_vp2

from pipeline.common.errors import BadEpisodeError, SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.episodes.naming import hashed_key
from pipeline.episodes.skipped import read_skipped
from pipeline.ingest.job import ingest
from pipeline.ingest.plan import make_plan
from pipeline.sources.base import BadEpisode
from pipeline.sources.hdf5 import files as hdf5
from pipeline.sources.hdf5 import process as hdf5_process
from pipeline.sources.hdf5 import vp2
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.hdf5.vp2 import Vp2Source
from pipeline.sources.locate import open_source

FORM = FrameForm("png")
ENTRY = DatasetEntry("downstream", "downstream", "image", control_hz=10.0)
IN_PROCESS = ["--direct_running_mode=in_memory"]


def make_endless(path) -> None:
    """Set the size of the first object in the text heap to zero, so that libhdf5 2.0 searches forever for the next one."""
    data = bytearray(path.read_bytes())
    place = data.index(b"GCOL") + 24
    assert data[place] == len("jpg")
    data[place : place + 8] = bytes(8)
    path.write_bytes(data)


def robonet(folder, *names: str) -> RobonetSource:
    for name in names:
        write_robonet(folder / f"{name}.hdf5")
    return RobonetSource(str(folder), ENTRY, FORM)


def items(source) -> list:
    return [item for shard in source.plan() for _, item in source.read(shard)]


def children() -> list[int]:
    return [reader._process.pid for reader in hdf5_process._idle]


def test_a_file_that_hangs_libhdf5_is_listed_as_damaged_and_the_other_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_process, "CALL_SECONDS", 1)
    source = robonet(tmp_path, "a", "b", "c")
    make_endless(tmp_path / "b.hdf5")
    first, endless, last = items(source)
    assert (first.episode_id, last.episode_id) == ("a", "c")
    assert isinstance(endless, BadEpisode) and endless.kind == "damaged"
    assert "does not come to an end with it in 1 s. Fetch the file again" in endless.reason


def test_the_child_process_reads_the_same_episode_as_this_process(tmp_path):
    source = robonet(tmp_path, "a")
    ((_, apart),) = source.read(source.plan()[0])
    here = source.read_here(source.plan()[0], 0, "")
    assert apart.facts() == here.facts() and apart.frames == here.frames
    for name in ("action", "state"):
        one, two = getattr(apart, name), getattr(here, name)
        assert one.dtype == two.dtype and np.array_equal(one, two)


def test_one_child_reads_many_files_and_a_killed_child_is_replaced(tmp_path):
    source = robonet(tmp_path, "a", "b")
    before = [item.frames for item in items(source)]
    (pid,) = children()
    assert [item.frames for item in items(source)] == before and children() == [pid]
    os.kill(pid, signal.SIGKILL)
    assert [item.frames for item in items(source)] == before
    assert len(children()) == 1 and children() != [pid]
    (reader,) = hdf5_process._idle
    hdf5_process.forget_children()
    assert reader._process.wait(timeout=60) == 0 and children() == []


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [(-signal.SIGSEGV, BadEpisodeError, "crashes on it .SIGSEGV"), (-signal.SIGKILL, SourceError, "was killed.*Run the same")],
)
def test_a_crash_is_blamed_on_the_file_but_a_kill_is_not(monkeypatch, status, error, reason):
    class Dying:
        def ask(self, request):
            raise hdf5_process.PipeClosed

        def status(self):
            return status

    monkeypatch.setattr(hdf5_process, "_Reader", Dying)
    monkeypatch.setattr(hdf5_process, "_idle", [])
    with pytest.raises(error, match=reason):
        hdf5_process.call("group", "a.hdf5", ["env"])


def test_a_forked_process_starts_its_own_child_and_no_child_outlives_its_parent(tmp_path):
    robonet(tmp_path, "a")
    code = f"""
import os
from pipeline.sources.hdf5 import process as hdf5_process
call = lambda: hdf5_process.call("group", {str(tmp_path / "a.hdf5")!r}, ["env"])
assert call() == "env"
parent = hdf5_process._idle[0]._process.pid
pid = os.fork()
if not pid:
    fine = call() == "env" and hdf5_process._idle[0]._process.pid != parent
    os._exit(0 if fine else 1)
assert os.waitpid(pid, 0)[1] == 0
assert call() == "env" and hdf5_process._idle[0]._process.pid == parent
print(parent)
"""
    pid = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail(f"process {pid} still runs")


def test_the_size_of_attributes_is_limited(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["short"] = "RGB"
        file.attrs["long"] = "x" * 20_000
        file.attrs["wide"] = np.zeros(5000)
    with hdf5.opened(str(path)) as file:
        assert hdf5.attribute(file, "short") == "RGB" and hdf5.attribute(file, "other", 3) == 3
        for name in ("long", "wide"):
            with pytest.raises(BadEpisodeError, match=f"the attribute {name} of / takes more than 10000 bytes"):
                hdf5.attribute(file, name)
        with pytest.raises(BadEpisodeError, match="no attribute other"):
            hdf5.attribute(file, "other")


def test_a_damaged_vp2_file_of_many_is_listed_in_the_manifest_and_the_table_and_the_rest_is_kept(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b", "c"):
        write_vp2(source / f"{name}.hdf5", train=("demo_2", "demo_0"))
    (source / "b.hdf5").write_bytes((source / "a.hdf5").read_bytes()[:3000])
    opened = open_source(ENTRY, str(source), FORM)

    def run(overwrite: bool = False):
        units = make_plan(opened, None, None, 1 << 20)
        return ingest(units, opened, ENTRY.name, str(tmp_path / "out"), IN_PROCESS, overwrite)

    outcome = run()
    assert outcome.failures == {} and sum(record.samples for record in outcome.manifests) == 6
    rows = read_skipped(str(tmp_path / "out")).to_pylist()
    assert [(row["key"], row["source_file"], row["kind"]) for row in rows] == [
        (hashed_key("train", "b.hdf5", 0), "b.hdf5", "damaged"),
        (hashed_key("train", "b.hdf5", 1), "b.hdf5", "damaged"),
        (hashed_key("valid", "b.hdf5", 0), "b.hdf5", "damaged"),
    ]
    assert all("doesn't say what its episodes are, so all are left out: no sound HDF5" in row["reason"] for row in rows)
    assert run().shards_made == 0
    write_vp2(source / "b.hdf5", train=("demo_2", "demo_0"))
    assert sum(record.samples for record in run().manifests) == 9 and read_skipped(str(tmp_path / "out")).num_rows == 0


def test_a_lost_vp2_file_counts_as_much_as_the_others_and_its_repair_keeps_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(vp2, "_RANGE", 1)
    for name in ("a", "b", "c"):
        write_vp2(tmp_path / f"{name}.hdf5", train=("demo_2", "demo_0", "demo_3"))
    source = Vp2Source(str(tmp_path), ENTRY, FORM)

    def plan():
        return [[(one.file, one.first, one.records) for one in unit.sources] for unit in make_plan(source, None, None, 1000)]

    sound = plan()
    assert len(sound) > 3
    whole = (tmp_path / "b.hdf5").read_bytes()
    for left in (whole[:3000], b""):
        (tmp_path / "b.hdf5").write_bytes(left)
        assert plan() == sound
        lost = [(one.split, position) for one in source.plan() if one.file == "b.hdf5" for position, _ in source.read(one)]
        assert lost == [("train", 0), ("train", 1), ("train", 2), ("valid", 0)]
        assert sum(len(list(source.read(one))) for one in source.plan()) == 12
