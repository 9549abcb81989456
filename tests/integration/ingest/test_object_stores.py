"""Sources, outputs and recipes on object stores, over HTTP, give the same bytes as on a disk and no partial objects."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from downstream_data import write_vp2
from fsspec.core import url_to_fs
from object_stores import environment, gcs_server, s3_server, upload
from rlds_data import NAME, VERSION, write_set
from synthetic_episodes import tiny_tokenizer, write_shards
from video_data import write_video

from pipeline import open_shard
from pipeline.__main__ import run as ingest_command
from pipeline.common import storage
from pipeline.common.errors import ConflictError, StorageError
from pipeline.config.catalog import DatasetEntry, dataset
from pipeline.episodes import index
from pipeline.episodes.frames import FrameForm
from pipeline.ingest import head_tail
from pipeline.ingest.job import ingest
from pipeline.ingest.plan import make_plan
from pipeline.ingest.source_lock import LOCK_FILE, SourceLock
from pipeline.inspection.inspect import run as inspect
from pipeline.sources.locate import open_source
from tokenize_offline.__main__ import main as tokenize_command
from training import TokenStore

FORM = FrameForm("jpeg", 40)
IN_PROCESS = ["--direct_running_mode=in_memory"]


def _bucket(server, protocol: str) -> Iterator[str]:
    with server() as variables, environment(variables):
        url_to_fs(f"{protocol}://bucket")[0].mkdir("bucket")
        yield f"{protocol}://bucket"


@pytest.fixture(scope="module")
def s3():
    """URL of an empty bucket that speaks S3."""
    yield from _bucket(s3_server, "s3")


@pytest.fixture(scope="module")
def gs():
    """URL of an empty bucket that speaks GCS."""
    yield from _bucket(gcs_server, "gs")


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request):
    """Return the URL of each of the two buckets."""
    return request.getfixturevalue(request.param)


def contents(folder: str) -> dict[str, bytes]:
    """Return all files except the lock file, which contains tags that a disk doesn't have."""
    names = (name for name in storage.list_files(folder) if name != LOCK_FILE)
    return {name: storage.read_bytes(storage.join(folder, name)) for name in names}


def rlds(folder: Path) -> str:
    """Write an RLDS data set below a root of data sets."""
    write_set(folder, episodes=5, per_shard=2, frames=12)
    return ""


def videos(folder: Path) -> str:
    (folder / "clips" / "more").mkdir(parents=True)
    write_video(folder / "clips" / "b.mp4")
    write_video(folder / "clips" / "more" / "a.mkv")
    (folder / "clips" / "metadata.csv").write_text("file,text\nb.mp4,wave\n")
    return "clips"


def vp2(folder: Path) -> str:
    write_vp2(folder / "vp2.hdf5")
    return ""


def npz(folder: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    np.savez(folder / "train_eps_00000000.npz", image=pixels, action=np.ones((4, 2), np.float32))
    return ""


@pytest.mark.parametrize("kind", [rlds, videos, vp2, npz])
def test_every_kind_of_source_gives_the_same_files_on_a_bucket_as_on_a_disk(bucket, tmp_path, kind):
    source = tmp_path / "source"
    source.mkdir()
    inner = kind(source)
    url = f"{bucket}/{kind.__name__}/source"
    upload(source, url)
    entry = DatasetEntry(NAME, NAME, "image", version=VERSION if kind is rlds else "", control_hz=10.0)
    made = {}
    for root, output in ((str(source), str(tmp_path / "out")), (url, f"{bucket}/{kind.__name__}/out")):
        opened = open_source(entry, storage.join(root, inner), FORM)
        units = make_plan(opened, None, None, 1 << 20)
        outcome = ingest(units, opened, NAME, output, IN_PROCESS, overwrite=False)
        assert outcome.failures == {} and sum(manifest.samples for manifest in outcome.manifests) > 0
        assert ingest(units, opened, NAME, output, IN_PROCESS, overwrite=False).shards_made == 0
        made[output] = contents(output)
    local, remote = made.values()
    assert local == remote and any(name.endswith(".tar") for name in local)
    episodes = list(open_shard(storage.join(output, units[0].shard)))
    assert index.read_episode(output, episodes[-1].key).frames == episodes[-1].frames
    assert inspect([output, "--verify"]) == 0


def test_objects_of_other_machines_are_seen_at_once_and_folder_placeholders_are_not_files(bucket):
    folder = f"{bucket}/seen"
    assert storage.list_files(folder) == [] and not storage.exists(folder)
    other, inner = url_to_fs(folder, skip_instance_cache=True)
    for name in ("one.tar", "two.tar", "below/three.tar"):
        other.pipe_file(f"{inner}/{name}", b"x" * 10)
        assert storage.exists(storage.join(folder, name))
    other.pipe_file(f"{inner}/", b"")
    other.pipe_file(f"{inner}/below/", b"")
    assert storage.file_sizes(folder) == {"one.tar": 10, "two.tar": 10}
    assert storage.file_sizes(folder, nested=True) == {"below/three.tar": 10, "one.tar": 10, "two.tar": 10}
    assert storage.list_folders(folder) == ["below"]
    tags = storage.content_tags(folder)
    assert tags["one.tar"] == tags["two.tar"] == tags["below/three.tar"]
    other.pipe_file(f"{inner}/one.tar", b"y" * 10)
    assert storage.content_tags(folder)["one.tar"] != tags["one.tar"]
    assert storage.read_range(storage.join(folder, "one.tar"), 8, 10) == b"yy"
    storage.remove(storage.join(folder, "one.tar"))
    storage.remove(storage.join(folder, "one.tar"))
    assert storage.list_files(folder) == ["two.tar"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "one.tar"))


def test_objects_with_the_same_tag_are_not_read_for_a_plan_and_a_changed_middle_is_detected(bucket, tmp_path, monkeypatch):
    upload(write_set(tmp_path, episodes=4, per_shard=2, frames=40, height=192, width=256), f"{bucket}/locked/{NAME}/{VERSION}")
    source = open_source(dataset(NAME, "image", 10.0), f"{bucket}/locked/{NAME}/{VERSION}", FORM)
    path = f"{bucket}/locked/{LOCK_FILE}"
    read = []
    real = head_tail.head_tail_hash
    monkeypatch.setattr(head_tail, "head_tail_hash", lambda name, size: read.append(storage.basename(name)) or real(name, size))
    for expected in (3, 0):
        lock = SourceLock(path, source)
        units = make_plan(source, None, None, 1 << 20, lock.known_hashes())
        lock.check(units)
        outcome = ingest(units, source, NAME, f"{bucket}/locked/out", IN_PROCESS, overwrite=False)
        lock.add(units, outcome.manifests, overwrite=False)
        assert len(read) == expected
        read.clear()
    file = storage.join(source.folder, f"{NAME}-train.tfrecord-00000-of-00002")
    data = bytearray(storage.read_bytes(file))
    assert len(data) > 3 << 16
    data[len(data) // 2] ^= 1
    fs, inner = url_to_fs(file)
    fs.pipe_file(inner, bytes(data))
    lock = SourceLock(path, source)
    with pytest.raises(ConflictError, match=f"{NAME}/{VERSION} was rewritten in place.*train.tfrecord-00000-of-00002"):
        lock.check(make_plan(source, None, None, 1 << 20, lock.known_hashes()))
    assert read == [storage.basename(file)]


# The kernel ends it after this much of its own processor time since the start of the upload, on a busy machine too.
PUBLISH = """
import signal, sys
from pipeline.common import storage
storage.exists(sys.argv[1])
with storage.staged(sys.argv[1]) as staging:
    staging.write_bytes(b"a" * (int(sys.argv[2]) << 20))
    signal.setitimer(signal.ITIMER_PROF, float(sys.argv[3]))
"""


@pytest.mark.parametrize("mebibytes", [8, 120], ids=["one PUT", "multipart upload"])
@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.soak)])
def test_a_writer_killed_during_an_upload_leaves_no_partial_object(s3, tmp_path, mebibytes, kills):
    path = f"{s3}/killed/{mebibytes}.tar"
    chance = random.Random(mebibytes)
    seen = set()
    for number in range(kills):
        # The first dies early for certain.
        spent = chance.uniform(0.001, 0.005 * mebibytes) if number else 0.001
        command = [sys.executable, "-c", PUBLISH, path, str(mebibytes), str(spent)]
        writer = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
        assert writer.returncode in (0, -signal.SIGPROF)
        seen.add(storage.size(path) if storage.exists(path) else None)
        assert seen <= {None, mebibytes << 20}
        storage.remove(path)
    assert None in seen, "no writer was killed in time for this to say anything"
    storage.write_bytes(path, bytes(mebibytes << 20))
    assert storage.size(path) == mebibytes << 20


def test_the_command_reads_recipe_and_source_from_a_bucket_and_resumes_after_a_kill(s3, tmp_path, capsys):
    # The first shard's record is the sign that work is under way; files of half a MiB become shards of their own.
    write_set(tmp_path / "oxe", episodes=8, per_shard=1, frames=30, height=192, width=256, name="bridge")
    (tmp_path / "recipe.yaml").write_text("data:\n  frames: source\n  shard_mib: 1\n")
    upload(tmp_path, f"{s3}/command")
    source = open_source(dataset("bridge"), str(tmp_path / "oxe"), FrameForm("source"))
    local = str(tmp_path / "out")
    ingest(make_plan(source, None, None, 1 << 20), source, "bridge", local, IN_PROCESS, overwrite=False)
    output = f"{s3}/command/out/bridge"
    options = ["--dataset", "bridge", "--source", f"{s3}/command/oxe", "--output", f"{s3}/command/out"]
    options += ["--config", f"{s3}/command/recipe.yaml", "--", *IN_PROCESS]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen([sys.executable, "-m", "pipeline", *options], start_new_session=True, **quiet)
    while first.poll() is None and not [name for name in storage.list_files(output) if name.endswith(".json")]:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert ingest_command(options) == 0
    summary = json.loads(capsys.readouterr().out)
    assert 0 < summary["made"] < summary["shards"]
    assert contents(output) == contents(local)


def test_tokenizing_on_a_bucket_gives_the_same_clips_and_training_reads_them(s3, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("IVIDEOGPT_CACHE", str(cache))
    tiny_tokenizer(tmp_path / "in" / "tokenizer")
    write_shards(tmp_path / "in" / "episodes", shards=2, episodes=3)
    upload(tmp_path / "in", f"{s3}/stage2/in")
    made = {}
    for root in (str(tmp_path), f"{s3}/stage2"):
        options = ["--shards", f"{root}/in/episodes", "--tokenizer", f"{root}/in/tokenizer", "--output", f"{root}/out"]
        for _ in range(2):
            assert tokenize_command([*options, "--clips.length", "4", "--clips.per_episode", "2"]) == 0
        made[root] = contents(f"{root}/out/made_up")
    local, remote = made.values()
    assert local == remote and sum(name.endswith(".arrow") for name in local) >= 2
    local_store, remote_store = (TokenStore.open(f"{root}/out") for root in made)
    rows = np.arange(local_store.positions("made_up") * local_store.views("made_up"))
    assert np.array_equal(local_store.rows("made_up", rows).ids, remote_store.rows("made_up", rows).ids) and len(rows)
    copies = sorted((cache / "tokens").rglob("*.arrow"))
    assert [path.read_bytes() for path in copies] and {path.name for path in copies} <= remote.keys()
    written = [path.stat().st_mtime_ns for path in copies]
    TokenStore.open(f"{s3}/stage2/out")
    assert [path.stat().st_mtime_ns for path in copies] == written


def test_a_store_that_refuses_or_does_not_answer_is_a_clear_error(s3, monkeypatch):
    url_to_fs(f"{s3}/there")[0].pipe_file("bucket/there", b"x")
    dead = url_to_fs("s3://bucket", endpoint_url="http://127.0.0.1:1", config_kwargs={"retries": {"max_attempts": 0}})[0]
    dead.retries = 1
    monkeypatch.setattr(storage, "url_to_fs", lambda path, **_: (dead, path.removeprefix("s3://")))
    for call in (storage.exists, storage.read_bytes, storage.file_sizes, storage.size, storage.remove):
        with pytest.raises(StorageError, match=r"s3://bucket/there: .*Check the URL, the credentials and the endpoint"):
            call(f"{s3}/there")
    with pytest.raises(StorageError, match="s3://bucket/there"), storage.staged(f"{s3}/there") as staging:
        staging.write_bytes(b"y")
    monkeypatch.undo()
    assert storage.read_bytes(f"{s3}/there") == b"x"
    with pytest.raises(StorageError, match="s4://bucket can't be opened"):
        storage.exists("s4://bucket")


def test_objects_with_any_name_are_read(s3):
    names = [
        "a::b",
        "x::s3:__y",
        "zip::a",
        "x::s3://other/b",
        "a#b",
        "a?b=c",
        "a%20b",
        "a*b",
        "a[b]",
        "~x",
        "-rf",
        "é",
        "c://d",
    ]
    names += ["/a", "x//y", "//z"]
    fs, inner = url_to_fs(f"{s3}/names")
    for name in names:
        fs.pipe_file(f"{inner}/{name}", name.encode())
    assert set(storage.listing(f"{s3}/names", nested=True)) == set(names)
    for name in names:
        path = storage.join(f"{s3}/names", name)
        assert storage.read_bytes(path) == name.encode() and storage.size(path) == len(name.encode())
        assert storage.read_range(path, 0, 1) == name.encode()[:1]
        with storage.open_read(path) as file:
            assert file.read() == name.encode()
