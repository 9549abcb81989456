"""Truncated, damaged or hostile npz and HDF5 files lose only themselves, and never need more memory than an episode."""

import io
import zipfile

import h5py
import numpy as np
import pytest
from downstream_data import write_robonet, write_vp2
from rlds_data import picture

from pipeline.common.errors import BadEpisodeError, SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import run_unit
from pipeline.sources.base import BadEpisode
from pipeline.sources.hdf5 import files as hdf5
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.hdf5.vp2 import Vp2Source
from pipeline.sources.npz.source import NpzSource

ENTRY = DatasetEntry("arrays", "arrays", "image")
FORM = FrameForm("jpeg", 24)
SHARES = (0.0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.99)


def npz_bytes(save=np.savez, **arrays) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **{"image": np.stack([picture(t) for t in range(4)]), "action": np.ones((4, 2)), **arrays})
    return buffer.getvalue()


def only(source) -> BadEpisode:
    ((position, item),) = source.read(source.plan()[0])
    assert position == 0 and isinstance(item, BadEpisode), item
    return item


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
@pytest.mark.parametrize("share", SHARES)
def test_an_npz_truncated_at_any_byte_is_detected(tmp_path, save, share):
    whole = npz_bytes(save)
    (tmp_path / "a.npz").write_bytes(whole[: int(len(whole) * share)])
    assert only(NpzSource(str(tmp_path), ENTRY, FORM)).kind == "damaged"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_a_changed_pixel_in_an_npz_is_detected_by_its_checksum(tmp_path, save):
    whole = bytearray(npz_bytes(save))
    whole[len(whole) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(whole)
    assert "no sound npz" in only(NpzSource(str(tmp_path), ENTRY, FORM)).reason


def hostile_member(name: str, start: bytes, zeros: int) -> bytes:
    """Write an archive whose member is many zeros, which compress to almost nothing."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        member.write(start)
        for _ in range(zeros >> 20):
            member.write(bytes(1 << 20))
    return buffer.getvalue()


def stated(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (hostile_member("image.npy", stated((50_000, 1000, 1000, 3)), 64 << 20), "larger than any episode"),
        (hostile_member("image.npy", stated((5, 0, 8, 3)), 0), "empty, or larger"),
        (hostile_member("image.npy", stated((4, 8, 8, 3), "|O"), 0), "no array"),
        (hostile_member("image.npy", b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little"), 64 << 20), "no sound npz"),
        (hostile_member("../../image.npy", stated((4, 8, 8, 3)), 0), "no array|no sound npz"),
        (b"PK\x05\x06" + bytes(18), "no array"),
    ],
    ids=["bomb", "no rows", "objects", "header bomb", "path", "no members"],
)
def test_of_a_hostile_npz_only_the_header_is_read(tmp_path, content, reason):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.lib.format, "read_array", None)
        bad = only(NpzSource(str(tmp_path), ENTRY, FORM))
    assert any(word in bad.reason for word in reason.split("|"))


def test_actions_larger_than_any_episode_are_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", stated((1, 8, 8, 3)) + bytes(192))
        archive.writestr("action.npy", stated((1 << 20, 1 << 20), "<f8"))
    assert "larger than any episode's" in only(NpzSource(str(tmp_path), ENTRY, FORM)).reason


@pytest.mark.parametrize("encoding", ["jpg", "mp4"])
@pytest.mark.parametrize("share", SHARES[1:])
def test_a_robonet_file_truncated_at_any_byte_is_detected(tmp_path, encoding, share):
    path = tmp_path / "a.hdf5"
    write_robonet(path, encoding=encoding)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "no sound HDF5" in only(RobonetSource(str(tmp_path), ENTRY, FORM)).reason


def test_if_all_vp2_files_are_truncated_the_source_is_an_error(tmp_path):
    path = tmp_path / "a.hdf5"
    write_vp2(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SourceError, match=r"none of 1 files can be read. Fetch them again; .*a\.hdf5: it doesn't say"):
        Vp2Source(str(tmp_path), ENTRY, FORM).plan()


def test_a_damaged_file_loses_only_itself(tmp_path):
    (tmp_path / "set").mkdir()
    whole = npz_bytes()
    for n, data in enumerate([whole, b"", whole[:5000], b"version https://git-lfs.github.com/spec/v1\n", whole]):
        (tmp_path / "set" / f"train_eps_{n:08d}.npz").write_bytes(data)
    source = NpzSource(str(tmp_path / "set"), ENTRY, FORM)
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, source, str(tmp_path / "out"))
    (record,) = index.read_manifests(str(tmp_path / "out"))
    assert [entry["source_file"] for entry in record.entries] == ["train_eps_00000000.npz", "train_eps_00000004.npz"]
    left_out = [(item.source_file, item.kind) for item in record.left_out]
    assert left_out == [(f"train_eps_{n:08d}.npz", "damaged") for n in (1, 2, 3)]
    assert len({item.key for item in record.left_out} | {entry["key"] for entry in record.entries}) == 5


def test_invalid_numbers_and_texts_are_bad_episodes(tmp_path):
    path = tmp_path / "a.hdf5"
    for name, value in (("n_cams", np.inf), ("n_cams", "many"), ("n_cams", np.zeros(3))):
        path.unlink(missing_ok=True)
        write_robonet(path)
        with h5py.File(path, "a") as file:
            file["env"].attrs[name] = value
        assert only(RobonetSource(str(tmp_path), ENTRY, FORM)).reason


def test_the_size_of_texts_and_chunks_is_checked_before_they_are_read(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["names"] = np.array([b"demo_0", b"demo_1"], h5py.string_dtype())
        file["long"] = np.array([b"x" * 20_000] * 3, h5py.string_dtype())
        file["ragged"] = np.array([np.zeros(3), np.zeros(5)], h5py.vlen_dtype(float))
        file.create_dataset("chunk", (2, 2), "u1", maxshape=(None, None), chunks=(1 << 16, (1 << 16) - 1), compression="gzip")
    for name, reason in (("long", "20000 bytes"), ("ragged", "not a list of texts"), ("chunk", "larger than any episode")):
        with pytest.raises(BadEpisodeError, match=reason), hdf5.opened(str(path)) as file:
            hdf5.array(file, name)
    with hdf5.opened(str(path)) as file:
        assert list(hdf5.array(file, "names")) == [b"demo_0", b"demo_1"]
