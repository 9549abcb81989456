"""Sources of TFRecord files, RLDS and BAIR, that are whole and odd in what they say: types, shapes, names and structure."""

import functools
import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from downstream_data import bair_record
from hypothesis import strategies as st
from rlds_data import NAME, episode, picture, write_set
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm, encode_jpeg
from pipeline.sources.bair import BairSource
from pipeline.sources.base import Source
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.tfrecord.reader import read_records, write_record

FORM = FrameForm("jpeg", 24)
Draw = Callable[..., object]
TYPES = ["float32", "float64", "bfloat16", "bool", "uint8", "int32", "int64", "uint64", "string", "float8", "complex64", ""]
DIMENSIONS = st.lists(st.sampled_from(["-1", "0", "1", "2", "3", "3", "16000", "99999999999", "x"]), max_size=4)


def entry(robot: str = "", camera: str = "image") -> DatasetEntry:
    """Specs are read once a folder and entry, so `robot` tells one spec from the next."""
    return DatasetEntry(NAME, NAME, camera, version="0.1.0", control_hz=10.0, robot=robot)


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
    picture(1, 64, 64).tobytes(),
]


@st.composite
def values(draw) -> Callable:
    """What fills a feature of a record."""
    count = draw(st.sampled_from([0, 1, 2, 3, 3, 3, 4, 6, 9, 12, 300]))
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


@functools.cache
def _rlds_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        small = lambda t: encode_jpeg(picture(t, 12, 16))  # noqa: E731
        made = write_set(Path(place), [episode(n, frames=3, image=small) for n in range(2)], 2)
        return {path.name: path.read_bytes() for path in made.iterdir()}


STEP_FEATURES = ["action", "reward", "is_terminal", "language_instruction", "unused"]
KEYS = [
    *(f"steps/{name}" for name in STEP_FEATURES),
    *(f"steps/action{below}" for below in ("/a", "/b", "/value", "/shape", "/ragged_flat_values", "/ragged_row_lengths_0")),
    "steps/observation/image",
    "steps/observation/state",
    "episode_metadata/file_path",
]


def rlds(folder: Path, draw: Draw) -> Source:
    """A spec some of whose features are others, and records some of whose values are."""
    files = _rlds_files()
    train = next(name for name in files if "-train." in name)
    spec = json.loads(files["features.json"])
    steps = spec["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    inner = steps["observation"]["featuresDict"]["features"]
    for name in draw(st.lists(st.sampled_from([*STEP_FEATURES, "image", "state"]), max_size=3)):
        (inner if name in ("image", "state") else steps)[name] = draw(specs())
    changes = draw(st.dictionaries(st.sampled_from(KEYS), values(), max_size=4))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "features.json").write_text(json.dumps(spec))
    records = [tf_example_pb2.Example.FromString(record) for record in read_records(str(folder / train))]
    _write(folder / train, records, changes)
    source = RldsSource(str(folder), entry(str(hash(json.dumps(spec)))), FORM)
    source.entry = source.entry if draw(st.booleans()) else DatasetEntry(**{**vars(source.entry), "actions": False})
    return source


def _write(path: Path, records: list[tf_example_pb2.Example], changes: dict[str, Callable]) -> None:
    with path.open("wb") as file:
        for example in records:
            for name, fill in changes.items():
                example.features.feature[name].Clear()
                fill(example.features.feature[name])
            write_record(file, example.SerializeToString())


BAIR_STEPS = ["0", "1", "2", "3", "-1", "00", "x", "999999", "1000000", ""]
BAIR_FEATURES = ["image_aux1/encoded", "image_main/encoded", "action", "endeffector_pos", "image_aux1", "encoded"]
BAIR_FILES = [
    *("traj_0_to_1", "traj_0_to_1", "traj_0_to_1", "traj_1_to_0", "traj_7_to_7", "traj_0_to_999999999"),
    *("traj_٣_to_٣", "traj_0_to_0.part", "traj_0_to_1(1)", "traj__to_"),
]


def bair(folder: Path, draw: Draw) -> Source:
    """Records with steps, features and values of every kind, in files of any name."""
    split = folder / draw(st.sampled_from(["train", "test", "train", "valid"]))
    names = st.builds("{}/{}".format, st.sampled_from(BAIR_STEPS), st.sampled_from(BAIR_FEATURES))
    changes = draw(st.dictionaries(names, values(), max_size=4))
    records = [tf_example_pb2.Example.FromString(bair_record(seed, steps=3)) for seed in range(draw(st.integers(0, 2)))]
    for lost in draw(st.lists(names, max_size=2)):
        for record in records:
            record.features.feature.pop(lost, None)
    split.mkdir(parents=True)
    for name in draw(st.lists(st.sampled_from(BAIR_FILES), min_size=1, max_size=2, unique=True)):
        _write(split / f"{name}.tfrecords", records, changes)
    return BairSource(
        str(folder), entry(camera=draw(st.sampled_from(["aux1_image", "main_image", "image_aux1", "x", "("]))), FORM
    )
