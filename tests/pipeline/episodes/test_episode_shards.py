"""Episode shards read back as written, equal episodes give equal bytes, and any loss is an error."""

import dataclasses
import hashlib
import io
import subprocess
import sys
import tarfile

import msgpack
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from rlds_data import plain_episode

from pipeline import Episode, open_shard
from pipeline.common import manifests, storage
from pipeline.common.errors import ShardError
from pipeline.common.manifests import ShardManifest
from pipeline.episodes.shards import EpisodeShardWriter, read_sample

arrays = st.one_of(st.none(), st.integers(1, 4))


@st.composite
def episodes(draw):
    frames = draw(st.lists(st.binary(min_size=1, max_size=700), min_size=1, max_size=6))
    width = draw(arrays)
    values = st.floats(width=32, allow_nan=False, allow_infinity=False)
    action = None
    if width:
        action = np.array(draw(st.lists(values, min_size=len(frames) * width, max_size=len(frames) * width)), np.float32)
        action = action.reshape(len(frames), width)
    return Episode(
        key=f"train-{draw(st.integers(0, 99999)):05d}-{draw(st.integers(0, 999999)):06d}",
        dataset="any",
        frames=frames,
        height=draw(st.integers(1, 5000)),
        width=draw(st.integers(1, 5000)),
        rate=draw(st.one_of(st.none(), st.floats(0.1, 240))),
        base_step=draw(st.floats(1, 30)),
        camera="image",
        language=draw(st.text(max_size=40)),
        source_file="file",
        source_record=draw(st.integers(0, 10**9)),
        action=action,
        action_meaning="" if action is None else f"action: {width}",
        reward=draw(st.one_of(st.none(), st.just(np.zeros(len(frames), np.float32)))),
    )


def write(path, several):
    with EpisodeShardWriter(path) as writer:
        for one in several:
            writer.add(one)
    return writer


def same(a: Episode, b: Episode) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Episode))


@given(several=st.lists(episodes(), max_size=5, unique_by=lambda e: e.key))
@settings(max_examples=30, deadline=None)
def test_written_episodes_are_read_back(tmp_path_factory, several):
    path = tmp_path_factory.mktemp("shard") / "train-000000.tar"
    writer = write(path, several)
    back = list(open_shard(path))
    assert len(back) == len(several) and all(same(a, b) for a, b in zip(several, back, strict=True))
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and writer.size == path.stat().st_size
    for entry, one in zip(writer.entries, several, strict=True):
        assert same(read_sample(str(path), entry["offset"], entry["size"]), one)


def test_equal_episodes_give_equal_bytes_without_time_owner_or_host(tmp_path):
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    for path in (first, second):
        write(path, [plain_episode(seed) for seed in range(3)])
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_webdataset_opens_a_shard(tmp_path):
    path = tmp_path / "train-000000.tar"
    several = [plain_episode(seed) for seed in range(3)]
    write(path, several)
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [one.key for one in several]
    for sample, one in zip(samples, several, strict=True):
        assert sample["frames.mp"] == one.frames
        assert np.array_equal(sample["steps.npz"]["action"], one.action)
        assert sample["json"]["language"] == one.language


@pytest.mark.parametrize("where", ["inside a header", "inside a member", "between members", "between samples", "end marker"])
def test_a_shard_that_lost_its_tail_is_an_error(tmp_path, where):
    path = tmp_path / "train-000000.tar"
    writer = write(path, [plain_episode(seed) for seed in range(3)])
    data = path.read_bytes()
    start = writer.entries[2]["offset"]
    with tarfile.open(path) as archive:
        member = archive.getmembers()[-1]
    length = {
        "inside a header": start + 100,
        "inside a member": start + 700,
        "between members": member.offset,
        "between samples": start,
        "end marker": writer.entries[2]["offset"] + writer.entries[2]["size"],
    }[where]
    path.write_bytes(data[:length])
    with pytest.raises(ShardError, match=r"train-000000\.tar"):
        list(open_shard(path))


def test_a_shard_must_match_the_manifest_next_to_it(tmp_path):
    path = tmp_path / "train-000000.tar"
    writer = write(path, [plain_episode(0), plain_episode(1)])

    def manifest(samples, size):
        written = ShardManifest("train-000000.tar", "f", {}, samples, writer.frames, size, writer.sha256)
        manifests.write_manifest(str(tmp_path), written)

    manifest(2, writer.size)
    assert len(list(open_shard(path))) == 2
    manifest(3, writer.size)
    with pytest.raises(ShardError, match="holds 2 episodes, but its manifest says 3"):
        list(open_shard(path))
    manifest(2, writer.size + 1)
    with pytest.raises(ShardError, match="bytes"):
        next(iter(open_shard(path)))


def test_a_sample_that_lost_its_actions_is_an_error(tmp_path):
    path = tmp_path / "shard.tar"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for ending, pieces in list(plain_episode(0).to_sample().items())[:2]:
            data = b"".join(pieces)
            info = tarfile.TarInfo(f"train-00000-000000.{ending}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ShardError, match="actions"):
        list(open_shard(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_a_member_that_is_not_a_file_is_refused(tmp_path, kind):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("train-00000-000000.json")
        info.type, info.linkname = kind, "/etc/hostname"
        archive.addfile(info)
    with pytest.raises(ShardError, match="not a member of an episode shard"):
        list(open_shard(path))


def test_a_failed_writer_leaves_no_valid_shard(tmp_path):
    path = tmp_path / "shard.tar"
    with pytest.raises(RuntimeError), EpisodeShardWriter(path) as writer:
        writer.add(plain_episode(0))
        raise RuntimeError("stop")
    with pytest.raises(ShardError, match="is truncated"):
        list(open_shard(path))


def test_keys_that_webdataset_would_misread_are_refused(tmp_path):
    with EpisodeShardWriter(tmp_path / "shard.tar") as writer:
        writer.add(plain_episode(0))
        for key in ("a.b", "a/b", plain_episode(0).key):
            with pytest.raises(ValueError, match="can't be a key"):
                writer.add(plain_episode(1, key=key))


def test_a_killed_writers_file_is_hidden_and_removed_by_the_next_writer(tmp_path):
    path, other = str(tmp_path / "a.tar"), str(tmp_path / "b.tar")
    killed = """if True:
        import os, sys
        from pipeline.common import storage
        with storage.staged(sys.argv[1]) as staging:
            staging.write_bytes(b"half")
            os._exit(9)
        """
    for target in (path, other):
        assert subprocess.run([sys.executable, "-c", killed, target], check=False).returncode == 9
    assert len(list(tmp_path.rglob("*.partial"))) == 4
    assert storage.list_files(str(tmp_path)) == storage.list_folders(str(tmp_path)) == []
    assert storage.file_sizes(str(tmp_path), nested=True) == {}
    storage.write_bytes(path, b"whole")
    left = {place.relative_to(tmp_path).parts[0] for place in tmp_path.rglob("*")}
    assert left == {"a.tar", ".b.tar.partial"} and storage.list_files(str(tmp_path)) == ["a.tar"]


def test_shards_open_by_url():
    path = "memory://shards/train-000000.tar"
    with storage.staged(path) as staging:
        write(staging, [plain_episode(0)])
    assert [e.key for e in open_shard(path)] == [plain_episode(0).key]
    with pytest.raises(ShardError, match="does not exist"):
        list(open_shard("memory://shards/train-000009.tar"))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 70_000])
def test_pieces_of_frames_equal_what_msgpack_packs(count):
    sizes = (0, 1, 255, 256, 65535, 65536) if count < 100 else (1,)
    frames = [bytes(sizes[n % len(sizes)]) for n in range(count)]
    packed = b"".join(dataclasses.replace(plain_episode(0), frames=frames).to_sample()["frames.mp"])
    assert packed == msgpack.packb(frames, use_bin_type=True)
