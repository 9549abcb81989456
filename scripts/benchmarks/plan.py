"""Measures planning of an ingest with very many source files; prints one JSON line per measurement.

`disk`: real small files on a local disk. `store`: names in a made-up object store, with tags like a real one. Each is planned
three times: for the first time; again, with a lock file of all files; and again after one file in a hundred was touched.
`listing`: the bare listing, the lower bound of any plan. Each line has seconds, bytes read, files opened and peak memory. Every
measurement runs in its own process, so that peak memory is its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from pipeline.common import storage
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.ingest import head_tail
from pipeline.ingest.plan import make_plan, with_hashes
from pipeline.ingest.source_lock import FileFingerprint, SourceFingerprint, SourceLock, write_lock
from pipeline.sources.video.source import VideoSource

ENTRY = DatasetEntry("many", "many", "video", control_hz=10.0)
FOLDER_FILES = 1000
FILE_BYTES = 107_000
MADE_UP_BYTES = 40_000_000
TOUCHED = 100  # one in 100 files is changed


def name_of(number: int) -> str:
    """Path of a file; each folder holds a fixed number of files."""
    return f"{number // FOLDER_FILES:04d}/{number:07d}.mp4"


class MadeUpStore(AbstractFileSystem):  # type: ignore[misc]
    """An object store with names, sizes and tags, but without content."""

    protocol = "madeup"
    cachable = False
    count = 0
    changed: frozenset[int] = frozenset()

    def isdir(self, path: str) -> bool:
        """Every path is a folder."""
        return True

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        """All objects; see `AbstractFileSystem.find`."""
        return {entry["name"]: entry for entry in self._entries(path.rstrip("/"))}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """There are no other files; see `AbstractFileSystem.ls`."""
        return []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Every object has the same bytes."""
        return b"x" * ((end or 0) - (start or 0))

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        raise FileNotFoundError(path)

    def _entries(self, folder: str) -> Iterator[dict[str, Any]]:
        for number in range(self.count):
            tag = f'"{number + (number in self.changed):032x}"'
            yield {"name": f"{folder}/{name_of(number)}", "size": MADE_UP_BYTES, "type": "file", "ETag": tag}


def write_files(folder: Path, count: int) -> None:
    """Write files of noise with the names of videos."""
    noise = os.urandom(2 * FILE_BYTES)
    for number in range(count):
        path = folder / name_of(number)
        if number % FOLDER_FILES == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(noise[number % FILE_BYTES :][:FILE_BYTES])


def measure(folder: str, lock_path: str) -> dict[str, Any]:
    """Plan once, like the command."""
    opened = 0
    real = head_tail.head_tail_hash

    def counted(path: str, size: int) -> str | None:
        nonlocal opened
        opened += 1
        return real(path, size)

    head_tail.head_tail_hash = counted
    before, began = _bytes_read(), time.perf_counter()
    source = VideoSource(folder, ENTRY, FrameForm("jpeg", 80))
    with source.cached_listing():
        source.listing()
        lock = SourceLock(lock_path, source)
        known = lock.known_hashes()
        units = make_plan(source, None, None, 256 << 20, known)
        units = with_hashes(units, source, known, lock.files())
    seconds = time.perf_counter() - began
    files = sum(len(unit.sources) for unit in units)
    return {
        "files": files,
        "units": len(units),
        "seconds": round(seconds, 1),
        "mib_read": round((_bytes_read() - before) / 2**20, 1),
        "ends_read": opened,
        "peak_mib": _peak_mib(),
    }


def lock_all(folder: str, lock_path: str) -> None:
    """Write a lock file with the current state of all files."""
    source = VideoSource(folder, ENTRY, FrameForm("jpeg", 80))
    listed = source.listing()
    sizes = source.file_sizes()
    local = storage.is_local(folder)
    known = (
        head_tail.head_tail_hashes(folder, sizes, sizes)
        if local
        else {name: f"{place:016x}" for place, name in enumerate(sizes)}
    )
    files = {name: FileFingerprint(one.size, known[name], one.tag) for name, one in listed.items()}
    write_lock(lock_path, SourceLock(lock_path, source).name, SourceFingerprint(None, files), True)


def list_only(folder: str) -> dict[str, Any]:
    """Measure only the listing."""
    began = time.perf_counter()
    count = len(storage.listing(folder, nested=True))
    return {"files": count, "seconds": round(time.perf_counter() - began, 1), "peak_mib": _peak_mib()}


def _bytes_read() -> int:
    with Path("/proc/self/io").open() as file:
        return int(next(line for line in file if line.startswith("rchar")).split()[1])


def _peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> int:
    """Run all measurements, each in a subprocess; with `--step`, run a single one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["disk", "store"], metavar="KIND", help="disk, store")
    parser.add_argument("--files", type=int, default=20_000, help="Number of files on disk.")
    parser.add_argument("--objects", type=int, default=1_000_000, help="Number of objects in the store.")
    parser.add_argument("--step", choices=["listing", "first", "lock", "again", "touched"], help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        (kind,) = options.kinds
        fsspec.register_implementation(MadeUpStore.protocol, MadeUpStore, clobber=True)
        MadeUpStore.count = options.objects
        folder = f"{options.work}/many" if kind == "disk" else f"{MadeUpStore.protocol}://bucket/many"
        lock = f"{options.work}/{kind}.lock.json"
        if options.step == "touched" and kind == "store":
            MadeUpStore.changed = frozenset(range(0, options.objects, TOUCHED))
        elif options.step == "touched":
            for number in range(0, options.files, TOUCHED):
                os.utime(f"{folder}/{name_of(number)}")
        if options.step == "lock":
            lock_all(folder, lock)
        elif options.step == "listing":
            print(json.dumps({"name": f"{kind} listing", **list_only(folder)}))
        else:
            print(json.dumps({"name": f"{kind} {options.step}", **measure(folder, lock)}))
        return 0
    with tempfile.TemporaryDirectory() as work:
        if "disk" in options.kinds:
            write_files(Path(work) / "many", options.files)
        for kind in options.kinds:
            for step in ("listing", "first", "lock", "again", "touched"):
                sizes = ["--files", str(options.files), "--objects", str(options.objects)]
                command = [sys.executable, __file__, kind, "--step", step, "--work", work, *sizes]
                subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
