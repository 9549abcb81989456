"""Whatever types, shapes, names and structure a sound file has, a reader gives episodes or reasons, in little memory.

`test_fuzz_readers` changes bytes, which checksums and parsers mostly catch; here every file is whole, and odd in what it says.
"""

import contextlib
import io
import json
import re
import resource
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rlds_data import NAME, episode, picture, write_set
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.common.errors import ProjectError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, encode_jpeg
from pipeline.sources.base import BadEpisode, Source
from pipeline.sources.guard import read_guarded
from pipeline.sources.hdf5 import process as hdf5_process
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.hdf5.vp2 import Vp2Source
from pipeline.sources.npz.source import NpzSource
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.tfrecord.reader import read_records, write_record

FORM = FrameForm("jpeg", 24)
SHORT, LONG = 60, 5000
GIB = 1 << 30
DTYPES = ["<f4", "<f8", "<f2", ">f4", "|u1", "|i1", "<i8", "<u8", "|b1", "<c8", "|S3", "<U2", "|V5", "<M8[s]", "|S40000000"]
SIDES = st.sampled_from([0, 1, 2, 3, 3, 3, 12, 16])
Draw = Callable[..., object]
_UNFORESEEN = re.compile(r"\w+Error(: |$)")


def entry(robot: str) -> DatasetEntry:
    """Specs are read once a folder and entry."""
    return DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0, robot=robot)


def read_whole(source: Source) -> None:
    """Read all of a source as units do; what concerns one input never comes out as an error."""
    with contextlib.suppress(ProjectError):
        for shard in source.plan():
            for _, (item,) in read_guarded(shard, [source]):
                assert isinstance(item, Episode | BadEpisode)
                if isinstance(item, Episode):
                    assert item.to_sample()
                    for name in ("action", "reward"):
                        numbers = getattr(item, name)
                        assert numbers is None or (len(numbers) == item.num_frames and np.isfinite(numbers).all())
                else:
                    # Of what no reader foresaw, the guard's reason begins with the error's own name.
                    assert item.reason and not _UNFORESEEN.match(item.reason), item.reason


# --- RLDS ---

TYPES = ["float32", "float64", "bfloat16", "bool", "uint8", "int32", "int64", "uint64", "string", "float8", "complex64", ""]
DIMENSIONS = st.lists(st.sampled_from(["-1", "0", "1", "2", "3", "3", "16000", "99999999999", "x"]), max_size=4)


@st.composite
def specs(draw, depth: int = 0) -> object:
    """A feature of a spec."""
    kinds = ["tensor", "tensor", "tensor", "text", "image", "classLabel", "odd", "sequence", "dict", "json"]
    match draw(st.sampled_from(kinds if depth < 3 else kinds[:7])):
        case "tensor":
            encoding = draw(st.sampled_from(["none", "none", "zlib", "bytes", "brotli"]))
            return {
                "tensor": {
                    "shape": {"dimensions": draw(DIMENSIONS)},
                    "dtype": draw(st.sampled_from(TYPES)),
                    "encoding": encoding,
                }
            }
        case "text":
            return {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
        case "image":
            return {
                "image": {"shape": {"dimensions": draw(DIMENSIONS)}, "dtype": draw(st.sampled_from(["uint8", "uint16", ""]))}
            }
        case "classLabel":
            return {"classLabel": {"numClasses": "4"}}
        case "odd":
            return draw(st.sampled_from([{}, 3, None, [], "x", {"video": 1}, {"audio": {}}, {"type": "lab.A", "content": "{"}]))
        case "sequence":
            return {"sequence": {"feature": draw(specs(depth + 1)), "length": draw(st.sampled_from(["-1", "3", 4]))}}
        case "dict":
            names = draw(st.lists(st.sampled_from(["a", "b", "type", "features", "a/b"]), max_size=3))
            return {"featuresDict": {"features": {name: draw(specs(depth + 1)) for name in names}}}
        case _:
            return {"pythonClassName": "lab.Own", "jsonFeature": {"json": draw(st.sampled_from(["{}", "{", '{"type": "a"}']))}}


ENCODED = [
    b"",
    b"move it",
    encode_jpeg(picture(1, 12, 16)),
    np.ones(3, "<f4").tobytes(),
    zlib.compress(np.ones(3, "<f4").tobytes()),
    zlib.compress(bytes(30_000_000)),
    bytes(200),
]


@st.composite
def values(draw) -> Callable:
    """What fills a feature of a record."""
    count = draw(st.sampled_from([0, 1, 2, 3, 3, 3, 6, 9, 12, 300]))
    match draw(st.sampled_from(["floats", "whole", "bytes", "bytes", "nothing"])):
        case "floats":
            number = draw(st.sampled_from([0.5, float("nan"), float("inf"), 3.4e38, 255.0]))
            return lambda feature: feature.float_list.value.extend([number] * count)
        case "whole":
            number = draw(st.sampled_from([0, 1, 3, 65, -1, 1 << 62, -(1 << 63), 10**9]))
            return lambda feature: feature.int64_list.value.extend([number] * count)
        case "bytes":
            value = draw(st.sampled_from(ENCODED))
            return lambda feature: feature.bytes_list.value.extend([value] * min(count, 12))
    return lambda feature: None


def rlds_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        small = lambda t: encode_jpeg(picture(t, 12, 16))  # noqa: E731
        made = write_set(Path(place), [episode(n, frames=3, image=small) for n in range(2)], 2)
        return {path.name: path.read_bytes() for path in made.iterdir()}


RLDS = rlds_files()
TRAIN = next(name for name in RLDS if "-train." in name)
STEP_FEATURES = ["action", "reward", "is_terminal", "language_instruction", "unused"]
KEYS = [
    *(f"steps/{name}" for name in STEP_FEATURES),
    *(f"steps/action{below}" for below in ("/a", "/b", "/value", "/shape", "/ragged_flat_values", "/ragged_row_lengths_0")),
    "steps/observation/image",
    "steps/observation/state",
    "episode_metadata/file_path",
]


def rlds(folder: Path, draw: Draw) -> Source:
    spec = json.loads(RLDS["features.json"])
    steps = spec["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    inner = steps["observation"]["featuresDict"]["features"]
    for name in draw(st.lists(st.sampled_from([*STEP_FEATURES, "image", "state"]), max_size=3)):
        (inner if name in ("image", "state") else steps)[name] = draw(specs())
    changes = draw(st.dictionaries(st.sampled_from(KEYS), values(), max_size=4))
    for name, data in RLDS.items():
        (folder / name).write_bytes(data)
    (folder / "features.json").write_text(json.dumps(spec))
    records = [tf_example_pb2.Example.FromString(record) for record in read_records(str(folder / TRAIN))]
    with (folder / TRAIN).open("wb") as file:
        for example in records:
            for name, fill in changes.items():
                example.features.feature[name].Clear()
                fill(example.features.feature[name])
            write_record(file, example.SerializeToString())
    source = RldsSource(str(folder), entry(str(hash(json.dumps(spec)))), FORM)
    source.entry = source.entry if draw(st.booleans()) else DatasetEntry(**{**vars(source.entry), "actions": False})
    return source


# --- arrays ---


@st.composite
def arrays(draw) -> np.ndarray:
    """An array of any type and shape, small in itself."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(SIDES, max_size=4)))
    if np.prod(shape, dtype=object) * dtype.itemsize > GIB >> 3:
        shape = (0,)
    return np.zeros(shape, dtype)


def npz(folder: Path, draw: Draw) -> Source:
    names = st.sampled_from(["image", "action", "reward", "state", "language", "is_terminal", "a/b", "x"])
    members = {"image": np.zeros((3, 12, 16, 3), np.uint8), "action": np.zeros((3, 2))} if draw(st.booleans()) else {}
    members |= draw(st.dictionaries(names, arrays(), max_size=4))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **members)
    (folder / "a.npz").write_bytes(buffer.getvalue())
    return NpzSource(str(folder), entry(""), FORM)


def hdf5(folder: Path, draw: Draw, names: list[str], sound: dict[str, np.ndarray]) -> None:
    path = folder / "a.hdf5"
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in (sound | draw(st.dictionaries(st.sampled_from(names), arrays(), max_size=4))).items():
            with contextlib.suppress(TypeError, ValueError, OSError):  # What HDF5 has no type for, or no place.
                file.create_dataset(name, data=array, compression="gzip" if array.ndim else None)
        for name in draw(st.lists(st.sampled_from([*names, "data/demo_0", "data", "env"]), max_size=2)):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                file.require_group(name).attrs["num_samples"] = draw(st.sampled_from([0, 3, "x", 1 << 40, [1, 2]]))


def robonet(folder: Path, draw: Draw) -> Source:
    names = ["env/cam0_video/frame0", "env/cam0_video/frame1", "env/state", "policy/actions", "metadata", "env/low_bound"]
    frame = np.frombuffer(encode_jpeg(picture(0, 12, 16)), np.uint8)
    sound = {f"env/cam0_video/frame{t}": frame for t in range(3)} if draw(st.booleans()) else {}
    hdf5(folder, draw, names, {**sound, "policy/actions": np.zeros((2, 4)), "env/state": np.zeros((3, 5))} if sound else {})
    return RobonetSource(str(folder), entry(""), FORM)


def vp2(folder: Path, draw: Draw) -> Source:
    names = ["data/demo_0/obs/image", "data/demo_0/actions", "data/demo_0/rewards", "mask/train", "mask/valid", "data/demo_1"]
    sound = {"data/demo_0/obs/image": np.zeros((3, 12, 16, 3), np.uint8), "data/demo_0/actions": np.zeros((3, 4))}
    hdf5(folder, draw, names, {**sound, "mask/train": np.array([b"demo_0"])} if draw(st.booleans()) else {})
    return Vp2Source(str(folder), entry(""), FORM)


CASES = {made.__name__: made for made in (rlds, npz, robonet, vp2)}


@pytest.mark.parametrize(
    ("case", "examples"),
    [(case, SHORT) for case in CASES] + [pytest.param(case, LONG, marks=pytest.mark.soak) for case in CASES],
)
def test_any_structure_gives_episodes_or_reasons_in_little_memory(tmp_path, monkeypatch, case, examples):
    monkeypatch.setattr(hdf5_process, "CALL_SECONDS", 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @given(st.data())
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    def run(data):
        read_whole(CASES[case](tmp_path, data.draw))

    run()
    # In KiB, and of the whole process, so that nothing is missed; what ran before only hides a little.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < GIB
