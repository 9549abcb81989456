"""For any types, shapes, names and structure in a valid file, a reader gives episodes or reasons, in little memory.

`test_fuzz_readers` changes bytes, which checksums and parsers mostly catch; here every file is whole, and odd in what it says.
"""

import contextlib
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_arrays import hdf5_of_any_kind, npz, robonet, vp2
from odd_records import Draw, bair, rlds
from odd_videos import any_folder, something, video
from peak_memory import PeakMemory

from pipeline.common.errors import ProjectError
from pipeline.episodes.episode import Episode
from pipeline.ingest.plan import make_plan
from pipeline.sources.base import BadEpisode, Source
from pipeline.sources.guard import read_guarded
from pipeline.sources.hdf5 import process as hdf5_process

SHORT, LONG = 25, 5000
GIB = 1 << 30
CASES = {made.__name__: made for made in (rlds, bair, npz, robonet, vp2, hdf5_of_any_kind, video, something, any_folder)}
_UNFORESEEN = re.compile(r"\w+Error(: |$)")


def read_whole(source: Source) -> None:
    """Plan and read a whole source like a job does; an error about one input is never raised."""
    units = make_plan(source, None, None, 1 << 20)
    for unit in units:
        for shard in unit.sources:
            for _, (item,) in read_guarded(shard, [source]):
                check(item)


def check(item: Episode | BadEpisode) -> None:
    assert isinstance(item, Episode | BadEpisode)
    if isinstance(item, Episode):
        assert item.to_sample()
        for name in ("action", "reward"):
            numbers = getattr(item, name)
            assert numbers is None or (len(numbers) == item.num_frames and np.isfinite(numbers).all())
    else:
        # Of what no reader foresaw, the guard's reason begins with the error's own name.
        assert item.reason and not _UNFORESEEN.match(item.reason), item.reason


@pytest.mark.parametrize(
    ("case", "examples"),
    [(case, SHORT) for case in CASES] + [pytest.param(case, LONG, marks=pytest.mark.soak) for case in CASES],
)
def test_any_structure_gives_episodes_or_reasons_in_less_than_a_gibibyte(tmp_path, monkeypatch, case, examples):
    monkeypatch.setattr(hdf5_process, "CALL_SECONDS", 2)
    memory = PeakMemory()

    def read_one(draw: Draw) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder, contextlib.suppress(ProjectError):
            source = CASES[case](Path(folder), draw)
            with memory.measured(GIB):
                read_whole(source)

    @given(st.data())
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    def run(data):
        read_one(data.draw)

    run()
    print(f"{case}: {examples} examples, at most {memory.most >> 20} MiB")  # pytest -rP shows it
