"""Sources of arrays, npz and HDF5, that are whole and odd in what they say: types, shapes, names, attributes and links."""

import contextlib
import io
from pathlib import Path

import h5py
import numpy as np
from downstream_data import write_robonet, write_vp2
from hypothesis import strategies as st
from odd_records import FORM, Draw, entry
from rlds_data import picture

from pipeline.episodes.frames import encode_jpeg
from pipeline.sources.base import Source
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.hdf5.vp2 import Vp2Source
from pipeline.sources.locate import open_source
from pipeline.sources.npz.source import NpzSource

DTYPES = ["<f4", "<f8", "<f2", ">f4", "|u1", "|i1", "<i8", "<u8", "|b1", "<c8", "|S3", "<U2", "|V5", "<M8[s]", "|S40000000"]
SIDES = st.sampled_from([0, 1, 2, 3, 3, 3, 12, 16])
# Rows of a sound number of steps, each far wider than any robot's.
WIDE = st.sampled_from([(3, 11_000_000), (2, 16_000_000), (3, 2_000_000), (30_000_000,), (3, 2000, 2000, 3), (100_000, 40)])
MOST_BYTES = 300 << 20


@st.composite
def arrays(draw) -> np.ndarray:
    """An array of any type and shape, zeros mostly, so that its file is small."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    wide = draw(st.integers(0, 39)) == 39
    shape = draw(WIDE) if wide else tuple(draw(st.lists(SIDES, max_size=4)))
    if np.prod(shape, dtype=object) * dtype.itemsize > MOST_BYTES:
        shape = (0,)
    array = np.zeros(shape, dtype)
    if array.size and dtype.kind in "fiu" and draw(st.booleans()):
        array.reshape(-1)[-1] = draw(st.sampled_from([1, 100, np.nan, np.inf] if dtype.kind == "f" else [1, 100]))
    return array


def npz(folder: Path, draw: Draw) -> Source:
    """Members of any name beside frames and actions, or instead of them."""
    names = st.sampled_from(["image", "action", "reward", "state", "language", "is_terminal", "a/b", "x"])
    members = {"image": np.zeros((3, 12, 16, 3), np.uint8), "action": np.zeros((3, 2))} if draw(st.integers(0, 3)) else {}
    members |= draw(st.dictionaries(names, arrays(), max_size=3))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **members)
    (folder / draw(st.sampled_from(["a.npz", "test_eps_7.npz", "_eps_.npz"]))).write_bytes(buffer.getvalue())
    return NpzSource(str(folder), entry(), FORM)


ATTRIBUTES = st.sampled_from(
    [0, 1, 3, -1, 1 << 40, "x", "", "mp4", "jpg", "RGB", "BGR", b"\xff", [1, 2], [], 0.5, np.nan, "autograsp", np.zeros(900)]
)
ATTRIBUTE_NAMES = ["n_cams", "cam_encoding", "T", "shape", "image_format", "primitives", "low_bound", "high_bound"]


def _change(path: Path, draw: Draw, names: list[str]) -> None:
    """Put other data, groups, links and attributes into an HDF5 file, and take some of its own away."""
    # What HDF5 has no type for, or no place, stays as it was.
    refused = contextlib.suppress(TypeError, ValueError, OSError, KeyError, RuntimeError, AttributeError)
    with h5py.File(path, "a") as file:
        for name, array in draw(st.dictionaries(st.sampled_from(names), arrays(), max_size=3)).items():
            with refused:
                _remove(file, name)
                file.create_dataset(name, data=array, **_layout(array, draw))
        for name in draw(st.lists(st.sampled_from(names), max_size=2)):
            with refused:
                _remove(file, name)
                _special(
                    file, name, draw(st.sampled_from(["nothing", "group", "soft", "external", "loop", "null", "enum", "text"]))
                )
        for name in draw(st.lists(st.sampled_from(names), max_size=3)):
            with refused:
                file[name].attrs[draw(st.sampled_from(ATTRIBUTE_NAMES))] = draw(ATTRIBUTES)


def _remove(file: h5py.File, name: str) -> None:
    if name in file:
        del file[name]


def _layout(array: np.ndarray, draw: Draw) -> dict:
    """How an array lies in its file."""
    if not array.ndim or not array.size:
        return {}
    match draw(st.sampled_from(["gzip", "gzip", "one chunk", "long chunk", "plain"])):
        case "gzip":
            return {"compression": "gzip"}
        case "one chunk":
            return {"compression": "gzip", "chunks": array.shape}
        case "long chunk":  # Much larger than what is in it.
            return {
                "compression": "gzip",
                "chunks": (array.shape[0] + 5000, *array.shape[1:]),
                "maxshape": (None,) * array.ndim,
            }
    return {"chunks": array.shape, "compression": "gzip"} if array.nbytes > 1 << 20 else {}


def _special(file: h5py.File, name: str, what: str) -> None:
    match what:
        case "group":
            file.create_group(name)
        case "soft":
            file[name] = h5py.SoftLink("/nowhere")
        case "external":
            file[name] = h5py.ExternalLink("/etc/hostname", "/data")
        case "loop":
            file[name] = file["/"]
        case "null":
            file[name] = h5py.Empty("f4")
        case "enum":
            file.create_dataset(name, (3, 4), h5py.enum_dtype({"a": 1, "b": 2}, "i1"))
        case "text":
            file.create_dataset(name, (3,), h5py.string_dtype())
            file[name][0] = "demo_0" * 10


FRAME = np.frombuffer(encode_jpeg(picture(0, 12, 16)), np.uint8)
ROBONET_NAMES = [
    *("env", "env/cam0_video", "env/cam0_video/frame0", "env/cam0_video/frame1", "env/cam0_video/frames", "env/state"),
    *("policy/actions", "policy", "metadata", "misc/low_bound", "misc/high_bound", "env/low_bound", "env/high_bound"),
]


def robonet(folder: Path, draw: Draw) -> Source:
    """An episode of a robot of any description."""
    path = folder / "a.hdf5"
    about = draw(st.sampled_from([{}, {"primitives": "autograsp"}, {"primitives": "autograsp", "low_bound": np.zeros((1, 5))}]))
    dim = draw(st.sampled_from([1, 3, 4, 4, 5, 7]))
    write_robonet(path, encoding=draw(st.sampled_from(["jpg", "jpg", "mp4"])), frames=3, states=3, actions=2, dim=dim, **about)
    _change(path, draw, ROBONET_NAMES)
    return RobonetSource(
        str(folder), entry(camera=draw(st.sampled_from(["image", "image", "image", "image1", "cam", "x"]))), FORM
    )


VP2_NAMES = [
    *("data", "data/demo_0", "data/demo_0/obs", "data/demo_0/obs/camera_image", "data/demo_0/obs/image", "data/demo_0/actions"),
    *("data/demo_0/rewards", "mask", "mask/train", "mask/valid", "data/demo_1"),
]


def vp2(folder: Path, draw: Draw) -> Source:
    """Demos and masks of any kind."""
    path = folder / "a.hdf5"
    write_vp2(
        path, train=draw(st.sampled_from([("demo_0",), ("demo_0", "demo_0"), ("demo_9", ""), ("demo_0", "../mask", "obs/x")]))
    )
    _change(path, draw, VP2_NAMES)
    return Vp2Source(str(folder), entry(), FORM)


TOPS = ["env", "data", "observations", "transforms", "observation", "mask", "a b", "\u2603", "."]


def hdf5_of_any_kind(folder: Path, draw: Draw) -> Source:
    """Files of RoboNet, VP2, ALOHA, EgoDex, DROID or nobody, beside each other; whoever opens them has to tell."""
    for number in range(draw(st.integers(1, 3))):
        path = (
            folder
            / draw(st.sampled_from(["", "hdf5/"]))
            / f"{number}{draw(st.sampled_from(['.hdf5', '.h5', '.HDF5', '.hdf']))}"
        )
        path.parent.mkdir(exist_ok=True)
        match draw(st.sampled_from(["robonet", "vp2", "neither", "neither"])):
            case "robonet":
                write_robonet(path, frames=2, states=2, actions=1)
            case "vp2":
                write_vp2(path, train=("demo_0",))
        with h5py.File(path, "a"):
            pass
        _change(path, draw, [*TOPS, "env/state", "data/demo_0/actions"])
    return open_source(entry(), str(folder), FORM)
