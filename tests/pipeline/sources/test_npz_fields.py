"""An npz episode keeps its actions, rewards, states and text; other arrays are counted by name or make it bad."""

import io
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from downstream_data import write_robonet
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from rlds_data import picture

from pipeline import open_shard
from pipeline.common.errors import SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import collect_failures, run_unit
from pipeline.sources.base import BadEpisode
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.npz.source import NpzSource, read_npz

ENTRY = DatasetEntry("own", "own", "image", control_hz=10.0)
FORM = FrameForm("jpeg", 24)
IMAGE = np.stack([picture(t, 12, 16) for t in range(4)])
MOST = 300 << 20  # bytes of memory that reading any of the small files below may take


def npz_bytes(save=np.savez, **arrays) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **{"image": IMAGE, **arrays})
    return buffer.getvalue()


def read(folder, data: bytes):
    """Read a file with the guard: return the episode, or the reason why there is none."""
    (folder / "a.npz").write_bytes(data)
    source = NpzSource(str(folder), ENTRY, FORM)
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, source, str(folder / "out"))
    assert collect_failures(str(folder / "out")) == {}
    (record,) = index.read_manifests(str(folder / "out"))
    episodes = list(open_shard(str(folder / "out" / "train-000000.tar")))
    return (episodes[0] if episodes else record.left_out[0]), record.statistics["passed_over"]


def test_rewards_states_ends_and_text_are_kept(tmp_path):
    given_arrays = {
        "action": np.arange(8.0).reshape(4, 2),
        "reward": np.array([0, 0, 0, 1], np.float64),
        "state": np.arange(24).reshape(4, 2, 3),
        "is_terminal": np.array([False, False, False, True]),
        "language": np.array("pick the can"),
    }
    episode, ignored = read(tmp_path, npz_bytes(**given_arrays))
    assert episode.language == "pick the can" and ignored == {}
    assert np.array_equal(episode.action, given_arrays["action"]) and episode.reward.tolist() == [0, 0, 0, 1]
    assert episode.state.shape == (4, 6) and np.array_equal(episode.state.reshape(4, 2, 3), given_arrays["state"])
    assert episode.is_terminal.tolist() == [False, False, False, True]
    assert (episode.reward.dtype, episode.state.dtype, episode.is_terminal.dtype) == (np.float32, np.float32, np.bool_)


def test_nothing_of_the_real_episode_is_lost(shared):
    path = shared / "data" / "npz" / "fractal_sample.npz"
    with np.load(path) as arrays:
        names = set(arrays.files)
    episode = read_npz(path)
    kept = {episode.camera} | {
        name for name in ("action", "reward", "state", "is_terminal") if getattr(episode, name) is not None
    }
    assert names <= kept | {reason.split("`")[1] for reason in episode.ignored}


@pytest.mark.parametrize("text", [np.array(["", "", "turn", "x"]), np.array([b"turn"]), np.array(b"turn"), np.array("turn")])
def test_the_first_non_empty_text_is_used_in_every_form(tmp_path, text):
    assert read(tmp_path, npz_bytes(language_instruction=text))[0].language == "turn"


def test_a_reward_may_have_one_row_per_frame(tmp_path):
    assert read(tmp_path, npz_bytes(reward=np.arange(4).reshape(4, 1)))[0].reward.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward", np.zeros(3)),
        ("reward", np.zeros((4, 2))),
        ("reward", np.array(1.0)),
        ("state", np.zeros(3)),
        ("state", np.array(["a"] * 4)),
        ("language", np.zeros((4, 512))),
        ("language", np.array("text", dtype=object)),
        ("depth", np.zeros((4, 12, 16))),
        ("wrist_image", IMAGE),
    ],
)
def test_ignored_arrays_are_counted_by_name_and_the_episode_is_kept(tmp_path, name, value):
    episode, ignored = read(tmp_path, npz_bytes(**{name: value}))
    assert episode.num_frames == 4
    ((reason, count),) = ignored.items()
    assert f"`{name}`" in reason and count == 1


@pytest.mark.parametrize("name", ["action", "reward"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_number_that_is_not_finite_makes_a_bad_episode(tmp_path, name, bad):
    numbers = np.zeros(4)
    numbers[2] = bad
    left_out, _ = read(tmp_path, npz_bytes(**{name: numbers}))
    assert "not finite" in left_out.reason and left_out.kind == "unusable"


STRANGE = {
    "0-d": np.array(3.0),
    "text": np.array("left"),
    "texts": np.array(["left"] * 4),
    "bytes": np.array([b"left"] * 4),
    "empty": np.zeros((0,)),
    "no columns": np.zeros((4, 0)),
    "too few": np.zeros((2, 7)),
    "too many": np.zeros((9, 7)),
    "objects": np.array([{"a": 1}] * 4, dtype=object),
    "complex": np.zeros((4, 2), np.complex128),
    "dates": np.zeros(4, "datetime64[s]"),
    "records": np.zeros(4, [("x", "f4"), ("y", "f4")]),
    "void": np.zeros(4, "V8"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_an_invalid_action_makes_a_bad_episode_and_the_others_are_kept(tmp_path, name):
    (tmp_path / "b.npz").write_bytes(npz_bytes(action=np.zeros((4, 2))))
    (tmp_path / "a.npz").write_bytes(npz_bytes(action=STRANGE[name]))
    source = NpzSource(str(tmp_path), ENTRY, FORM)
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, source, str(tmp_path / "out"))
    (record,) = index.read_manifests(str(tmp_path / "out"))
    assert record.samples == 1 and [(item.source_file, item.kind) for item in record.left_out] == [("a.npz", "unusable")]
    assert "action" in record.left_out[0].reason and "Error" not in record.left_out[0].reason


@given(hnp.arrays(hnp.array_dtypes() | hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
@settings(max_examples=150, deadline=None)
def test_any_array_named_action_gives_an_episode_or_a_reason(array):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.npz").write_bytes(npz_bytes(action=array))
        source = NpzSource(folder, ENTRY, FORM)
        ((_, item),) = source.read(source.plan()[0])
        assert isinstance(item, BadEpisode) or item.action.shape[0] == 4


def test_two_files_with_the_same_number_are_both_read(tmp_path):
    for name in ("train_eps_1", "train_eps_00000001", "train_eps_2"):
        (tmp_path / f"{name}.npz").write_bytes(npz_bytes())
    source = NpzSource(str(tmp_path), ENTRY, FORM)
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, source, str(tmp_path / "out"))
    assert collect_failures(str(tmp_path / "out")) == {}
    (record,) = index.read_manifests(str(tmp_path / "out"))
    assert record.samples + len(record.left_out) == 3


def npy(dtype: str, shape: tuple[int, ...], fortran: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    return buffer.getvalue()


def zeros(member: str, start: bytes, count: int, **more: bytes) -> bytes:
    """Write an archive with a valid `image`, and a member of `start` and zeros, which compress to almost nothing."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if member != "image":
            archive.writestr("image.npy", npy("|u1", IMAGE.shape) + IMAGE.tobytes())
        with archive.open(f"{member}.npy", "w", force_zip64=True) as content:
            content.write(start)
            for _ in range(count >> 20):
                content.write(bytes(1 << 20))
        for name, data in more.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def many_members() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.npy", npy("|u1", IMAGE.shape) + IMAGE.tobytes())
        for number in range(20_000):
            archive.writestr(f"{number:080d}.npy", b"")
    return buffer.getvalue()


def nested() -> bytes:
    inner = zeros("image", npy("|u1", (400, 1000, 1000, 3)), 64 << 20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy("|u1", IMAGE.shape) + IMAGE.tobytes())
        archive.writestr("more.npz", inner)
    return buffer.getvalue()


GIGA = 1 << 30
BOMBS = {
    "text of a gigabyte a word as action": lambda: zeros("action", npy("|S1200000000", (2, 1)), 64 << 20),
    "text of a gigabyte a word as language": lambda: zeros("language", npy("|S1200000000", ()), 64 << 20),
    "text of a gigabyte a word as state": lambda: zeros("state", npy("<U300000000", (4,)), 64 << 20),
    "an action of a gigabyte": lambda: zeros("action", npy("<f8", (4, 1 << 25)), GIGA),
    "a state of a gigabyte": lambda: zeros("state", npy("<f8", (4, 1 << 25)), GIGA),
    "a picture of a gigabyte": lambda: zeros("image", npy("<i8", (1, 6000, 7000, 3)), 960 << 20),
    "a gigabyte column by column": lambda: zeros("image", npy("<i8", (4, 3000, 3700, 3), fortran=True), GIGA),
    "states more than there is": lambda: zeros("state", npy("<f8", (4, 1 << 20)), 1 << 20),
    "holds more than it states": lambda: zeros("action", npy("<f8", (4, 2)), GIGA // 4),
    "many members": many_members,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_states_large_arrays_takes_little_memory_and_loses_only_itself(tmp_path, name):
    data = BOMBS[name]()
    (tmp_path / "a.npz").write_bytes(data)
    source = NpzSource(str(tmp_path), ENTRY, FORM)
    tracemalloc.start()
    try:
        ((_, item),) = source.read(source.plan()[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST, f"{peak >> 20} MiB for a file of {len(data) >> 10} KiB"
    # A text or state that is none is counted by name.
    assert isinstance(item, BadEpisode) or item.ignored


def test_a_nested_archive_is_not_opened(tmp_path):
    episode, ignored = read(tmp_path, nested())
    assert episode.num_frames == 4 and ignored == {"members of npz files that are no arrays": 1}


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compressions_that_numpy_never_uses_are_refused(tmp_path, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("image.npy", npy("|u1", IMAGE.shape) + IMAGE.tobytes())
    left_out, _ = read(tmp_path, buffer.getvalue())
    assert "numpy never uses" in left_out.reason and left_out.kind == "unusable"


def test_damage_after_the_numbers_of_a_member_is_detected(tmp_path):
    whole = bytearray(npz_bytes(action=np.ones((4, 2))))
    whole[whole.index(np.ones(8).tobytes()) + 7] ^= 1
    left_out, _ = read(tmp_path, bytes(whole))
    assert left_out.kind == "damaged"


def test_reading_one_invalid_file_is_an_error_in_one_line(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz_bytes(action=np.array("left")))
    with pytest.raises(SourceError, match=r"a\.npz holds no usable episode: array 'action' has the shape \(\)"):
        read_npz(tmp_path / "a.npz")


def test_an_hdf5_array_of_a_gigabyte_loses_only_itself_and_is_never_read(tmp_path):
    write_robonet(tmp_path / "a.hdf5")
    write_robonet(tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["env/state"]
        file.create_dataset("env/state", (1 << 20, 128), "f8", chunks=(1 << 10, 128), compression="gzip")
    source = RobonetSource(str(tmp_path), ENTRY, FORM)
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, source, str(tmp_path / "out"))
    (record,) = index.read_manifests(str(tmp_path / "out"))
    assert record.samples == 1 and "larger than any episode" in record.left_out[0].reason


def test_names_from_a_source_never_fill_the_manifest(tmp_path):
    names = {f"extra_{number}": np.zeros(1) for number in range(300)}
    _, ignored = read(tmp_path, npz_bytes(**names))
    assert sum(ignored.values()) == 300 and len(ignored) <= 101
