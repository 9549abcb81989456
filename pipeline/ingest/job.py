"""The ingest job: units of work through an engine, then the index of what they made.

Nothing comes back through the engine: units publish what they made, and the driver reads that. So every engine will do, and a
job that was killed goes on where it stopped.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConflictError, ProjectError, ShardError
from pipeline.common.manifests import (
    ShardManifest,
    describe_difference,
    find_done,
    manifest_path,
    missing_file_is_back,
    read_manifest,
)
from pipeline.common.progress import progress_line
from pipeline.episodes import index
from pipeline.episodes.naming import parse_shard_name, printable_name
from pipeline.episodes.skipped import write_skipped
from pipeline.ingest.outcome import Outcome, log_ignored
from pipeline.ingest.plan import WorkUnit
from pipeline.ingest.runners import beam
from pipeline.ingest.work_unit import UnitGroup, UnitJob, collect_failures
from pipeline.sources.base import Source

_log = logging.getLogger(__name__)
Engine = Callable[[Sequence[UnitGroup]], None]
_THREADS = 16  # that look at records, which may lie on an object store
_LOCAL_POLL, _REMOTE_POLL = 0.5, 5.0  # seconds between looks at what is published


@dataclass(frozen=True)
class IngestJob:
    """One data set to be ingested.

    Attributes:
        units: The plan.
        source: Where episodes come from.
        dataset: Name of the data set.
        folder: For its shards.
    """

    units: Sequence[WorkUnit]
    source: Source
    dataset: str
    folder: str


def ingest(
    units: Sequence[WorkUnit],
    source: Source,
    dataset: str,
    folder: str,
    beam_options: Sequence[str],
    overwrite: bool,
) -> Outcome:
    """Make all shards of one data set; see `ingest_datasets`."""
    return ingest_datasets([IngestJob(units, source, dataset, folder)], beam_options, overwrite)[0]


def ingest_datasets(
    jobs: Sequence[IngestJob], beam_options: Sequence[str], overwrite: bool, engine: Engine | None = None
) -> list[Outcome]:
    """Make all shards of data sets that aren't there yet, and the index of all that are.

    Args:
        jobs: The data sets. Units of several that have their source files in common are made in one pass over these.
        beam_options: For Beam; by default a worker process for every core of this machine.
        overwrite: Make shards anew that were made in another way.
        engine: Has tasks done in place of Beam.

    Raises:
        ConflictError: Shards are there that were made in another way, or that this plan doesn't have.
    """
    work = [_unfinished(job, overwrite) for job in jobs]
    parts = [UnitJob(unit, job.source, job.folder) for job, units in zip(jobs, work, strict=True) for unit in units]
    started = time.monotonic()
    if parts:
        # Large ones first, so that the last to end are small.
        tasks = sorted(group_by_files(parts), key=lambda task: -task[0].unit.source_bytes)
        with _progress(parts, " ".join(job.dataset for job in jobs)):
            (engine or functools.partial(beam.run, options=beam_options))(tasks)
    seconds = time.monotonic() - started
    return [_finish(job, units, seconds) for job, units in zip(jobs, work, strict=True)]


def _unfinished(job: IngestJob, overwrite: bool) -> list[WorkUnit]:
    """The units of a job that are still to be done; what is left of them is cleared away."""
    if overwrite and job.source.grows:
        remove_emptied_shards(job.units, job.source, job.folder)
    refuse_strays(job.units, job.folder)
    sizes = storage.file_sizes(job.folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        done = list(pool.map(lambda unit: _is_done(unit, job.folder, sizes, overwrite), job.units))
    work = [unit for unit, is_done in zip(job.units, done, strict=True) if not is_done]
    for unit in work:
        storage.remove(manifest_path(storage.join(job.folder, unit.shard)))
    collect_failures(job.folder, {unit.shard for unit in job.units})
    return work


def _finish(job: IngestJob, work: Sequence[WorkUnit], seconds: float) -> Outcome:
    """Write the index of a data set and say what became of the units that were to be done."""
    reasons = collect_failures(job.folder, {unit.shard for unit in work})
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda unit: find_done(job.folder, unit.shard, unit.inputs), work))
    # Of two attempts at a unit one may have failed.
    failures = {
        unit.shard: reasons.get(unit.shard, "its worker left neither a record nor a reason: see the runner's own log")
        for unit, record in zip(work, found, strict=True)
        if record is None
    }
    planned = job.source.ignored
    records = _write_tables(job, sorted(failures))
    log_ignored(job.dataset, index.count_ignored(records, {}))
    ignored = index.count_ignored(records, planned)
    frames = sum(record.frames for record in found if record is not None)
    return Outcome(records, len(work) - len(failures), failures, seconds, ignored, frames)


def _write_tables(job: IngestJob, missing: Sequence[str]) -> list[ShardManifest]:
    """Write the index and the ledger of all records in the folder; these, without their entries.

    Another run may publish shards of other splits meanwhile. Whichever of the two looks last sees all records of both, because
    each looks again after it has written.
    """
    planned = job.source.ignored
    while True:
        there = index.listed_manifests(job.folder)
        made = index.read_manifests(job.folder)
        lacking = sorted({*missing, *_missing_of_others(job, there)})
        records = index.write_index(job.folder, job.dataset, made, lacking, planned, job.source.filtered)
        write_skipped(job.folder, job.dataset, records)
        if index.listed_manifests(job.folder) == there:
            return records


def _missing_of_others(job: IngestJob, there: Collection[str]) -> list[str]:
    """Shards of other splits that a run before could not make, by the summary that it left, and that are not there since."""
    own = {unit.split for unit in job.units}
    try:
        before = map(str, index.read_summary(job.folder).get("missing_shards", []))
    except ShardError:  # it is written anew
        return []
    split_of = {shard: parsed[0] for shard in before if (parsed := parse_shard_name(shard)) is not None}
    return [shard for shard, split in split_of.items() if split not in own and manifest_path(shard) not in there]


def _is_done(unit: WorkUnit, folder: str, sizes: dict[str, int], overwrite: bool) -> bool:
    """Whether the shard is there, whole as far as its size tells, and made from the same inputs."""
    record = find_done(folder, unit.shard, unit.inputs, overwrite)
    if record is None:
        return False
    if missing_file_is_back(record, unit.inputs):
        _log.warning("%s lacks files that could not be opened; it is made again", storage.join(folder, unit.shard))
        return False
    if sizes.get(unit.shard) != record.bytes:
        _log.warning("%s has lost its file or part of it; it is made again", storage.join(folder, unit.shard))
        return False
    return True


def refuse_strays(units: Sequence[WorkUnit], folder: str) -> None:
    """Refuse to mix shards of two plans in one folder.

    Shards of splits that this run leaves alone may stay if they were made in the same way.

    Raises:
        ConflictError: The message names a shard that doesn't belong.
    """
    planned = {unit.shard for unit in units}
    splits = {unit.split for unit in units}
    common = _common(units[0].inputs) if units else {}
    for name in storage.list_files(folder):
        shard = name.removesuffix(".json") + ".tar" if name.endswith(".json") else name
        parsed = parse_shard_name(shard)
        if parsed is None or shard in planned:
            continue
        path = storage.join(folder, name)
        if parsed[0] in splits:
            raise ConflictError(
                f"{path} is not among the {len(planned)} shards of this plan: another source, --max_episodes or "
                "data.shard_mib made it. Choose another output folder, or remove it"
            )
        if not name.endswith(".json"):
            continue
        try:
            made_with = _common(read_manifest(path).inputs)
        except FileNotFoundError:  # another run makes it anew
            continue
        if made_with != common:
            raise ConflictError(
                f"{path} was made in another way: {describe_difference(made_with, common)}. Choose another output folder"
            )


def remove_emptied_shards(units: Sequence[WorkUnit], source: Source, folder: str) -> None:
    """Remove shards that are not in a plan because none of their files is there any more."""
    planned, splits = {unit.shard for unit in units}, {unit.split for unit in units}
    strays = [record for record in index.read_manifests(folder) if record.shard not in planned]
    there = {printable_name(name) for name in source.listing()} if strays else set()
    for record in strays:
        of_split = (parse_shard_name(record.shard) or ("",))[0] in splits
        if of_split and there.isdisjoint(one["file"] for one in record.inputs["sources"]):
            path = storage.join(folder, record.shard)
            _log.warning("%s is removed: none of its files is there any more", path)
            storage.remove(manifest_path(path))
            storage.remove(path)


def _common(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in inputs.items() if key not in ("sources", "split")}


def group_by_files(parts: Sequence[UnitJob]) -> list[list[UnitJob]]:
    """The parts that have all their source files in common, together."""
    tasks: dict[Any, list[UnitJob]] = {}
    for part in parts:
        tasks.setdefault((part.source.folder, part.unit.shard, part.unit.sources), []).append(part)
    return list(tasks.values())


@contextlib.contextmanager
def _progress(parts: Sequence[UnitJob], name: str) -> Iterator[None]:
    """The progress line, which counts the shards that are published."""
    stop = threading.Event()
    with progress_line(len(parts), "shard", f"ingest {name}") as line:
        watcher = threading.Thread(target=_watch, args=(parts, line, stop), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def _watch(parts: Sequence[UnitJob], line: Any, stop: threading.Event) -> None:
    """Count what is published until told to stop; what is wrong with that is said, and the count goes on."""
    waiting = {storage.join(part.folder, manifest_path(part.unit.shard)) for part in parts}
    folders = {part.folder for part in parts}
    interval = _LOCAL_POLL if all(map(storage.is_local, folders)) else _REMOTE_POLL
    started = time.monotonic()
    frames = 0
    last = failing = False
    while not last:
        last = stop.wait(interval)
        try:
            there = {storage.join(folder, name) for folder in folders for name in storage.list_files(folder)}
            failing = False
        except (ProjectError, OSError) as error:
            # Only the progress line depends on it; the work itself says what it can't do.
            if not failing:
                _log.warning("what is published can't be listed for the progress line: %s", error)
            failing = True
            continue
        for path in waiting & there:
            waiting.remove(path)
            try:
                frames += read_manifest(path).frames
            except (ProjectError, OSError) as error:
                _log.warning("a shard's record can't be read: %s", error)
            line.set_postfix_str(f"{frames / (time.monotonic() - started):.0f} frames/s", refresh=False)
            line.update()
