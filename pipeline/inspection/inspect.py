"""`ivideogpt-inspect`: what a folder of shards holds, and whether it is still what its records say.

Episode shards and token shards keep records of one form, so one command looks at both, at any depth below the folder.
"""

import collections
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ShardError
from pipeline.common.manifests import ShardManifest, manifest_path, read_manifest
from pipeline.common.progress import progress_line
from pipeline.config.cli import CommandParser, run_command
from pipeline.config.cli_output import show
from pipeline.episodes.index import INDEX_FILE, read_index
from pipeline.episodes.naming import parse_shard_name, shard_name
from pipeline.episodes.skipped import SKIPPED_FILE, read_skipped
from pipeline.inspection.overview import Inspected, Overview, overview
from pipeline.inspection.page import write_page
from pipeline.inspection.verify import faults_of, index_fault

_ENDINGS = ("tar", "arrow")
_DEPTH = 3


def find_shards(folder: str, depth: int = _DEPTH) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its shards by files and records) of every folder of shards at or below `folder`, in order.

    A path of one shard gives its folder and that shard alone.
    """
    if is_shard(folder):
        yield folder.rpartition("/")[0] or ".", [storage.basename(folder)]
        return
    names = storage.list_files(folder)
    files = {name for name in names if parse_shard_name(name)}
    recorded = set()
    for name in names:
        stem, _, ending = name.rpartition(".")
        if ending == "json" and parse_shard_name(f"{stem}.tar") and not any(f"{stem}.{e}" in files for e in _ENDINGS):
            recorded.add(read_manifest(storage.join(folder, name)).shard)
    if files or recorded:
        yield folder, sorted(files | recorded)
    if depth:
        for name in storage.list_folders(folder):
            yield from find_shards(storage.join(folder, name), depth - 1)


def is_shard(path: str) -> bool:
    """Whether a path is that of one shard, which is there or has a record that says it was."""
    named = parse_shard_name(storage.basename(path)) is not None
    return named and not storage.list_folders(path) and (storage.exists(path) or storage.exists(manifest_path(path)))


def summarize(records: Sequence[ShardManifest]) -> dict[str, dict[str, int]]:
    """Split -> shards, samples, frames, bytes, episodes left out."""
    splits: dict[str, collections.Counter[str]] = {}
    for record in records:
        parsed = parse_shard_name(record.shard)
        counts = splits.setdefault(parsed[0] if parsed else record.shard, collections.Counter())
        counts["shards"] += 1
        counts["samples"] += record.samples
        counts["frames"] += record.frames
        counts["bytes"] += record.bytes
        counts["left_out"] += len(record.left_out)
    return {split: dict(counts) for split, counts in sorted(splits.items())}


def parser() -> CommandParser:
    """The command line."""
    made = CommandParser(prog="ivideogpt-inspect", description="Say what a folder of shards holds. Exit status 1 on faults.")
    made.add_argument(
        "folder", type=str, nargs="?", help="Folder or URL of episode shards or token shards, or of several such; or one shard."
    )
    made.add_argument(
        "--verify", action="store_true", help="Read every shard, compare its SHA-256 with its record's and count its samples."
    )
    made.add_argument("--html", metavar="FILE", type=str, help="Write a page that shows the data sets; it opens by itself.")
    made.add_argument(
        "--doctor", metavar="SOURCE", type=str, help="Hold the data sets of a source against the catalog instead."
    )
    made.add_argument(
        "--dataset",
        type=str,
        nargs="+",
        help="With --doctor: only these, of the catalog or not; by default what folders are called.",
    )
    return made


def _doctor(path: str, options: Any) -> int:
    """A JSON line per data set on stdout, differences from the catalog on stderr."""
    # Imported here because it needs the `ingest` extra, which inspecting shards does without.
    try:
        from pipeline.inspection.doctor import diagnose, entries_at
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'ivideogpt-pipeline[ingest]'") from error

    found = [diagnose(entry, path) for entry in entries_at(path, options.dataset)]
    show([diagnosis.as_dict() for diagnosis in found], options)
    for diagnosis in found:
        for difference in diagnosis.differences:
            print(f"{diagnosis.dataset}: {difference}", file=sys.stderr)
    return 1 if any(diagnosis.differences for diagnosis in found) else 0


def run(arguments: Sequence[str] | None = None) -> int:
    """The body of the command, see `carry_out`."""
    return carry_out(parser().parse_args(list(arguments) if arguments is not None else None))


def carry_out(options: Any) -> int:
    """Do what parsed `options` ask for: a JSON line per folder of shards on stdout, faults on stderr."""
    if (options.folder is None) == (options.doctor is None):
        raise ConfigError("pass a folder of shards, or --doctor SOURCE, and not both")
    if options.doctor is not None:
        return _doctor(options.doctor.rstrip("/"), options)
    found = list(find_shards(options.folder.rstrip("/")))
    if not found:
        raise ShardError(_why_none(options.folder))
    inspected = []
    for folder, shards in found:
        inspected.append(_inspect(folder, shards, options.verify, whole=not is_shard(options.folder)))
    if options.html is not None:
        write_page(options.html, options.folder.rstrip("/"), inspected, verified=options.verify)
    show([one.as_dict() for one in inspected], options, look_at=options.html)
    faults = [fault for one in inspected for fault in one.faults]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _why_none(path: str) -> str:
    if not storage.exists(path):
        return f"{path} isn't there: name a folder of shards, or one shard"
    if storage.is_local(path) and storage.local_path(path).is_file():
        return f"{path} is no shard by its name: shards are called {shard_name('train', 0, 'tar')} or .arrow; name their folder"
    return f"{path} holds no shards, nor does any folder up to {_DEPTH} levels below it"


def _inspect(folder: str, shards: Sequence[str], every_byte: bool, whole: bool) -> Inspected:
    faults = {}
    with progress_line(len(shards), "shard", f"inspect {storage.basename(folder)}", shown=every_byte) as line:
        for shard, fault in faults_of(folder, shards, every_byte):
            if fault is not None:
                faults[shard] = fault
            line.update()
    records = [read_manifest(manifest_path(storage.join(folder, shard))) for shard in shards if shard not in faults]
    found = list(faults.values())
    episodes = any(shard.endswith(".tar") for shard in shards)
    if episodes and whole and every_byte and not faults and (fault := index_fault(folder, records)) is not None:
        found.append(fault)
    if not episodes:
        return Inspected(folder, summarize(records), found, None, "tokens")
    # The index tells of all shards of a folder.
    return Inspected(folder, summarize(records), found, _overview(folder) if whole else None)


def _overview(folder: str) -> Overview | None:
    """The facts of a data set; None before its first ingest has ended, which leaves the index."""
    if not storage.exists(storage.join(folder, INDEX_FILE)):
        return None
    ledger = read_skipped(folder) if storage.exists(storage.join(folder, SKIPPED_FILE)) else None
    return overview(read_index(folder), ledger)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ivideogpt-inspect`."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
