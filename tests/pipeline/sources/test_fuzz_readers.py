"""For any bytes in a file, a reader ends and gives only episodes, reasons or an error for the user."""

import contextlib
import dataclasses
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from downstream_data import bair_record, mp4, write_robonet, write_vp2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rlds_data import NAME, episode, picture, write_set

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, ProjectError, ShardError
from pipeline.common.manifests import ShardManifest, SkippedEpisode, read_manifest
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, encode_jpeg, encode_png
from pipeline.episodes.image_integrity import passes_integrity_check
from pipeline.ingest.plan import make_plan
from pipeline.sources.bair import BairSource
from pipeline.sources.base import BadEpisode, Source
from pipeline.sources.hdf5 import process as hdf5_process
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.hdf5.vp2 import Vp2Source
from pipeline.sources.npz.source import NpzSource
from pipeline.sources.rlds.features import read_features
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.rlds.spec import episode_spec
from pipeline.sources.tfrecord.reader import read_records, scan_records
from pipeline.sources.tfrecord.reader import write_record as write_tfrecord
from pipeline.sources.video.containers import bytes_missing
from pipeline.sources.video.something_something import SomethingSource
from pipeline.sources.video.source import VideoSource

FORM = FrameForm("jpeg", 24)
ENTRY = DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0)
SHORT, LONG = 60, 5000


@st.composite
def damaged(draw, seeds: tuple[bytes, ...]) -> bytes:
    """Draw a valid file with bytes changed, removed, repeated or invented; or random bytes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "change", "insert", "remove", "double", "cut", "number", "random"])):
            case "change":
                data[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "insert":
                data[place:place] = draw(st.binary(max_size=20))
            case "remove":
                del data[place : place + draw(st.integers(1, 64))]
            case "double":
                data[place:place] = data[place : place + draw(st.integers(1, 200))]
            case "cut":
                del data[place:]
            case "number":
                edge = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1]))
                width = draw(st.sampled_from([1, 2, 4, 8]))
                data[place : place + width] = (edge & ((1 << 8 * width) - 1)).to_bytes(
                    width, draw(st.sampled_from(["big", "little"]))
                )
            case "random":
                data = bytearray(draw(st.binary(max_size=400)))
    return bytes(data)


Check = Callable[[Path, bytes], None]
CASES: dict[str, tuple[tuple[bytes, ...], Check]] = {}


def fuzzed(*seeds: bytes) -> Callable[[Check], Check]:
    """Run a check of one kind of file on damaged files."""

    def add(check: Check) -> Check:
        CASES[check.__name__] = (seeds, check)
        return check

    return add


def written(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def read_all(source: Source) -> list[Episode | BadEpisode]:
    """Read a whole source; an error for the user ends it."""
    items = []
    with contextlib.suppress(ProjectError):
        for shard in source.plan():
            positions = []
            for position, item in source.read(shard):
                assert isinstance(item, Episode | BadEpisode)
                positions.append(position)
                items.append(item)
            assert positions == list(range(len(positions)))
    for item in items:
        if isinstance(item, Episode):
            item.to_sample()
    return items


def saved(write, *args, **kwargs) -> bytes:
    """Return the bytes that a writer writes to a file."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.hdf5"
        write(path, *args, **kwargs)
        return path.read_bytes()


def npz(**options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.stack([picture(t, 12, 16) for t in range(3)])
    (np.savez_compressed if options.pop("compressed", False) else np.savez)(
        buffer, image=pixels, action=np.ones((3, 2)), **options
    )
    return buffer.getvalue()


def framed(*records: bytes) -> bytes:
    buffer = io.BytesIO()
    for record in records:
        write_tfrecord(buffer, record)
    return buffer.getvalue()


def rlds_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        made = write_set(
            Path(place), [episode(n, frames=2, image=lambda t: encode_jpeg(picture(t, 12, 16))) for n in range(2)], 2
        )
        return {path.name: path.read_bytes() for path in made.iterdir()}


RLDS = rlds_files()
TRAIN = next(name for name in RLDS if "-train." in name)
PICTURE = picture(3, 24, 32)
LABELS = json.dumps([{"id": "7", "label": "a b", "template": "a [something]", "placeholders": ["b"]}]).encode()
RECORD = ShardManifest(
    "train-000000.tar", "f", {"sources": [{"file": "a"}]}, 1, 2, 3, "s", [SkippedEpisode("a", 0, "why")], [{"key": "k"}]
)


def rlds_records() -> list[bytes]:
    storage.write_bytes("memory://rlds", RLDS[TRAIN])
    return list(read_records("memory://rlds"))


@fuzzed(framed(b"a" * 30, b"b" * 50, b"c"), b"")
def tfrecord_framing(folder, data):
    written(folder, "a", data)
    kept = [record for record in scan_records(str(folder / "a")) if isinstance(record, bytes)]
    assert sum(map(len, kept)) <= len(data)


@fuzzed(RLDS[TRAIN])
def rlds_files(folder, data):
    for name, sound in RLDS.items():
        written(folder, name, data if name == TRAIN else sound)
    read_all(RldsSource(str(folder), ENTRY, FORM))


@fuzzed(*rlds_records())
def rlds_records_whose_checksums_agree(folder, data):
    for name, sound in RLDS.items():
        written(folder, name, framed(data) if name == TRAIN else sound)
    items = read_all(RldsSource(str(folder), ENTRY, FORM))
    assert items


@fuzzed(RLDS["features.json"])
def rlds_specs(folder, data):
    with contextlib.suppress(ProjectError):
        spec = episode_spec(read_features(data, "features.json"), ENTRY)
        for name, sound in RLDS.items():
            written(folder, name, data if name == "features.json" else sound)
        assert spec
        read_all(RldsSource(str(folder), DatasetEntry(NAME, str(hash(data)), "image"), FORM))


@fuzzed(RLDS["dataset_info.json"], b'{"splits": [{"name": "train", "shardLengths": ["2"], "numBytes": "9"}]}')
def rlds_dataset_info(folder, data):
    for name, sound in RLDS.items():
        written(folder, name, data if name == "dataset_info.json" else sound)
    with contextlib.suppress(ProjectError):
        for unit in make_plan(RldsSource(str(folder), ENTRY, FORM), None, None, 1 << 20):
            assert unit.sources


@fuzzed(framed(bair_record(0, steps=2)))
def bair_files(folder, data):
    written(folder, "train/traj_0_to_0.tfrecords", data)
    read_all(BairSource(str(folder), DatasetEntry("bair", "bair", "aux1_image"), FORM))


@fuzzed(npz(), npz(compressed=True))
def npz_files(folder, data):
    written(folder, "a.npz", data)
    (item,) = read_all(NpzSource(str(folder), ENTRY, FORM))
    assert isinstance(item, Episode) or item.reason


@fuzzed(saved(write_robonet, frames=2, states=2, actions=1), saved(write_robonet, encoding="mp4"))
def robonet_files(folder, data):
    written(folder, "a.hdf5", data)
    (item,) = read_all(RobonetSource(str(folder), ENTRY, FORM))
    assert isinstance(item, Episode) or item.reason


@fuzzed(saved(write_vp2, train=("demo_0",)))
def vp2_files(folder, data):
    written(folder, "a.hdf5", data)
    read_all(Vp2Source(str(folder), ENTRY, FORM))


@fuzzed(mp4([PICTURE] * 3))
def videos(folder, data):
    written(folder, "a.mp4", data)
    assert read_all(VideoSource(str(folder), ENTRY, FORM))
    assert bytes_missing(io.BytesIO(data)) >= 0


@fuzzed(
    b"RIFF\0\0\1\0AVI ", b"\0\0\0\x10ftypisom\0\0\0\1\0\0\0\1mdat", bytes.fromhex("1a45dfa3844286810118538067ff"), b"G" * 400
)
def container_sizes(folder, data):
    assert bytes_missing(io.BytesIO(data)) >= 0


@fuzzed(encode_jpeg(PICTURE), encode_png(PICTURE))
def images(folder, data):
    passes_integrity_check(data)
    for form in (FrameForm("source"), FORM, FrameForm("png")):
        for checksummed in (True, False):
            with contextlib.suppress(BadEpisodeError):
                form.keep(data, checksummed=checksummed)


@fuzzed(LABELS, b"[]")
def something_labels(folder, data):
    written(folder, "labels/train.json", data)
    with contextlib.suppress(ProjectError):
        for shard in SomethingSource(str(folder), ENTRY, FORM, ["all"]).plan():
            assert "/" not in shard.file and not shard.file.startswith(".")


@fuzzed(b"7;a b\n", b'"7";"a"\n')
def something_answers(folder, data):
    written(folder, "labels/train.json", LABELS)
    written(folder, "labels/test.json", b'[{"id": "7"}]')
    written(folder, "labels/test-answers.csv", data)
    with contextlib.suppress(ProjectError):
        SomethingSource(str(folder), ENTRY, FORM, ["all"]).plan()


@fuzzed(b"file,text\na.mp4,what it shows\n", b'file,text\n"a.mp4","x\ny"\n')
def captions_as_a_table(folder, data):
    written(folder, "a.mp4", b"")
    written(folder, "metadata.csv", data)
    with contextlib.suppress(ProjectError):
        assert VideoSource(str(folder), ENTRY, FORM).plan()


@fuzzed(b'{"file": "a.mp4", "text": "what it shows"}\n')
def captions_as_lines_of_json(folder, data):
    written(folder, "a.mp4", b"")
    written(folder, "metadata.jsonl", data)
    with contextlib.suppress(ProjectError):
        assert VideoSource(str(folder), ENTRY, FORM).plan()


@fuzzed(json.dumps(dataclasses.asdict(RECORD)).encode())
def records(folder, data):
    written(folder, "train-000000.json", data)
    with contextlib.suppress(ShardError):
        read_manifest(str(folder / "train-000000.json"))


@pytest.mark.parametrize(
    ("case", "examples"),
    [(case, SHORT) for case in CASES] + [pytest.param(case, LONG, marks=pytest.mark.soak) for case in CASES],
)
def test_any_bytes_give_episodes_or_reasons_and_nothing_else(tmp_path, monkeypatch, case, examples):
    monkeypatch.setattr(hdf5_process, "CALL_SECONDS", 2)
    seeds, check = CASES[case]

    @given(damaged(seeds))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    def run(data):
        check(tmp_path, data)

    run()
