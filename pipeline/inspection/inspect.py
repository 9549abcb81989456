"""`ivideogpt-inspect`: prints what a folder of shards holds, and checks the shards against their manifests.

Episode shards and token shards have manifests of the same form, so one command inspects both, at any depth below the folder.
"""

import collections
import sys
from collections.abc import Iterator, Sequence

from jsonargparse import Namespace

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ShardError
from pipeline.common.manifests import ShardManifest, manifest_path, read_manifest
from pipeline.common.progress import progress_line
from pipeline.config.cli import CommandParser, run_command
from pipeline.config.cli_output import show
from pipeline.episodes.index import INDEX_FILE, read_index
from pipeline.episodes.naming import parse_shard_name, shard_name
from pipeline.episodes.skipped import SKIPPED_FILE, read_skipped
from pipeline.inspection.overview import FolderReport, Overview, overview
from pipeline.inspection.page import write_page
from pipeline.inspection.verify import faults_of, index_fault

_ENDINGS = ("tar", "arrow")
_DEPTH = 3


def find_shards(folder: str, depth: int = _DEPTH) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its shards) for every folder with shards or manifests at or below `folder`, in order.

    The path of one shard yields its folder and only this shard.
    """
    if is_shard(folder):
        yield folder.rpartition("/")[0] or ".", [storage.basename(folder)]
        return
    names = storage.list_files(folder)
    files = {name for name in names if parse_shard_name(name)}
    with_manifest = set()
    for name in names:
        stem, _, ending = name.rpartition(".")
        if ending == "json" and parse_shard_name(f"{stem}.tar") and not any(f"{stem}.{e}" in files for e in _ENDINGS):
            with_manifest.add(read_manifest(storage.join(folder, name)).shard)
    if files or with_manifest:
        yield folder, sorted(files | with_manifest)
    if depth:
        for name in storage.list_folders(folder):
            yield from find_shards(storage.join(folder, name), depth - 1)


def is_shard(path: str) -> bool:
    """Whether a path names one shard, and the shard or its manifest exists."""
    named = parse_shard_name(storage.basename(path)) is not None
    return named and not storage.list_folders(path) and (storage.exists(path) or storage.exists(manifest_path(path)))


def summarize(manifests: Sequence[ShardManifest]) -> dict[str, dict[str, int]]:
    """Return split -> its number of shards, samples, frames, bytes and skipped episodes."""
    splits: dict[str, collections.Counter[str]] = {}
    for manifest in manifests:
        parsed = parse_shard_name(manifest.shard)
        counts = splits.setdefault(parsed[0] if parsed else manifest.shard, collections.Counter())
        counts["shards"] += 1
        counts["samples"] += manifest.samples
        counts["frames"] += manifest.frames
        counts["bytes"] += manifest.bytes
        counts["left_out"] += len(manifest.left_out)
    return {split: dict(counts) for split, counts in sorted(splits.items())}


def parser() -> CommandParser:
    """Return the command-line parser."""
    command = CommandParser(
        prog="ivideogpt-inspect", description="Print what a folder of shards holds. Exits with status 1 if there are faults."
    )
    command.add_argument("folder", type=str, nargs="?", help="Folder or URL with shards at any depth, or one shard.")
    command.add_argument("--verify", action="store_true", help="Read every shard: check its SHA-256 and count its samples.")
    command.add_argument("--html", metavar="FILE", type=str, help="Write a self-contained HTML page.")
    command.add_argument("--doctor", metavar="SOURCE", type=str, help="Compare a source's data sets with the catalog.")
    command.add_argument(
        "--dataset", type=str, nargs="+", help="With --doctor: names of the data sets; by default the folders' names."
    )
    return command


def _doctor(path: str, options: Namespace) -> int:
    """Print one JSON line per data set to stdout, and differences from the catalog to stderr."""
    # Imported here because the doctor needs the `ingest` extra; inspecting shards doesn't.
    try:
        from pipeline.inspection.doctor import diagnose, entries_at
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'ivideogpt-pipeline[ingest]'") from error

    diagnoses = [diagnose(entry, path) for entry in entries_at(path, options.dataset)]
    show([diagnosis.as_dict() for diagnosis in diagnoses], options)
    for diagnosis in diagnoses:
        for difference in diagnosis.differences:
            print(f"{diagnosis.dataset}: {difference}", file=sys.stderr)
    return 1 if any(diagnosis.differences for diagnosis in diagnoses) else 0


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and inspect; see `run_inspection`."""
    return run_inspection(parser().parse_args(list(arguments) if arguments is not None else None))


def run_inspection(options: Namespace) -> int:
    """Print one JSON line per folder of shards to stdout and faults to stderr; return the exit status."""
    if (options.folder is None) == (options.doctor is None):
        raise ConfigError("pass a folder of shards, or --doctor SOURCE, and not both")
    if options.doctor is not None:
        return _doctor(options.doctor.rstrip("/"), options)
    found = list(find_shards(options.folder.rstrip("/")))
    if not found:
        raise ShardError(_why_none(options.folder))
    reports = []
    for folder, shards in found:
        reports.append(_inspect(folder, shards, options.verify, whole=not is_shard(options.folder)))
    if options.html is not None:
        write_page(options.html, options.folder.rstrip("/"), reports, verified=options.verify)
    show([report.as_dict() for report in reports], options, look_at=options.html)
    faults = [fault for report in reports for fault in report.faults]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _why_none(path: str) -> str:
    if not storage.exists(path):
        return f"{path} doesn't exist: pass a folder of shards, or one shard"
    if storage.is_local(path) and storage.local_path(path).is_file():
        example = shard_name("train", 0, "tar")
        return f"{path} doesn't have the name of a shard, such as {example} or .arrow; pass the folder of the shards"
    return f"{path} holds no shards, and neither does any folder up to {_DEPTH} levels below it"


def _inspect(folder: str, shards: Sequence[str], every_byte: bool, whole: bool) -> FolderReport:
    faults = {}
    with progress_line(len(shards), "shard", f"inspect {storage.basename(folder)}", shown=every_byte) as line:
        for shard, fault in faults_of(folder, shards, every_byte):
            if fault is not None:
                faults[shard] = fault
            line.update()
    manifests = [read_manifest(manifest_path(storage.join(folder, shard))) for shard in shards if shard not in faults]
    messages = list(faults.values())
    has_episodes = any(shard.endswith(".tar") for shard in shards)
    if has_episodes and whole and every_byte and not faults and (fault := index_fault(folder, manifests)) is not None:
        messages.append(fault)
    if not has_episodes:
        return FolderReport(folder, summarize(manifests), messages, None, "tokens")
    # The index covers all shards of a folder, so it doesn't describe a single shard.
    return FolderReport(folder, summarize(manifests), messages, _overview(folder) if whole else None)


def _overview(folder: str) -> Overview | None:
    """Return the statistics of a data set; None if it has no index, because its first ingest has not finished."""
    if not storage.exists(storage.join(folder, INDEX_FILE)):
        return None
    skipped = read_skipped(folder) if storage.exists(storage.join(folder, SKIPPED_FILE)) else None
    return overview(read_index(folder), skipped)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ivideogpt-inspect`."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
