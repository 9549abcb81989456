"""The ingest job: runs work units on an engine, then writes the index of the shards they published.

Units return nothing to the engine: they publish shards, and the driver reads what was published. So any engine works, and a
killed job resumes where it stopped.
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

from tqdm import tqdm

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
from pipeline.sources.base import Source, SourceShard

_log = logging.getLogger(__name__)
Engine = Callable[[Sequence[UnitGroup]], None]
_THREADS = 16  # threads that read manifests, which may lie on an object store
_LOCAL_POLL, _REMOTE_POLL = 0.5, 5.0  # seconds between two looks at the published shards


@dataclass(frozen=True)
class IngestJob:
    """One data set to ingest.

    Attributes:
        units: The plan of the data set.
        source: The source of its episodes.
        dataset: Name of the data set.
        folder: Output folder of its shards.
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
    """Make the missing shards of several data sets, then write the index of each data set.

    Args:
        jobs: The data sets. Units that share their source files, such as cameras of one data set, are made in a single pass.
        beam_options: Options of Beam; by default Beam uses one worker process per core of this machine.
        overwrite: Remake shards that were made from other inputs.
        engine: Runs the groups of units; by default Beam.

    Raises:
        ConflictError: The output folder holds shards that were made from other inputs, or that are not in this plan.
    """
    unfinished = [_unfinished(job, overwrite) for job in jobs]
    unit_jobs = [UnitJob(unit, job.source, job.folder) for job, units in zip(jobs, unfinished, strict=True) for unit in units]
    started = time.monotonic()
    if unit_jobs:
        # Large groups first, so that workers finish at about the same time.
        groups = sorted(group_by_files(unit_jobs), key=lambda group: -group[0].unit.source_bytes)
        with _progress(unit_jobs, " ".join(job.dataset for job in jobs)):
            (engine or functools.partial(beam.run, options=beam_options))(groups)
    seconds = time.monotonic() - started
    return [_finish(job, units, seconds) for job, units in zip(jobs, unfinished, strict=True)]


def _unfinished(job: IngestJob, overwrite: bool) -> list[WorkUnit]:
    """Return the units whose shards must be made, and remove their old manifests and failure files."""
    if overwrite and job.source.grows:
        remove_emptied_shards(job.units, job.source, job.folder)
    refuse_strays(job.units, job.folder)
    sizes = storage.file_sizes(job.folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        done = list(pool.map(lambda unit: _is_done(unit, job.folder, sizes, overwrite), job.units))
    unfinished = [unit for unit, is_done in zip(job.units, done, strict=True) if not is_done]
    for unit in unfinished:
        storage.remove(manifest_path(storage.join(job.folder, unit.shard)))
    collect_failures(job.folder, {unit.shard for unit in job.units})
    return unfinished


def _finish(job: IngestJob, units: Sequence[WorkUnit], seconds: float) -> Outcome:
    """Write the index of a data set and return the outcome of the units that were run."""
    reasons = collect_failures(job.folder, {unit.shard for unit in units})
    with ThreadPoolExecutor(_THREADS) as pool:
        published = list(pool.map(lambda unit: find_done(job.folder, unit.shard, unit.inputs), units))
    # A unit counts as failed only if none of its attempts published a manifest.
    failures = {
        unit.shard: reasons.get(unit.shard, "its worker left neither a manifest nor a reason: see the runner's own log")
        for unit, manifest in zip(units, published, strict=True)
        if manifest is None
    }
    planned = job.source.ignored
    manifests = _write_tables(job, sorted(failures))
    storage.remove_leftovers(job.folder)
    log_ignored(job.dataset, index.count_ignored(manifests, {}))
    ignored = index.count_ignored(manifests, planned)
    frames = sum(manifest.frames for manifest in published if manifest is not None)
    return Outcome(manifests, len(units) - len(failures), failures, seconds, ignored, frames)


def _write_tables(job: IngestJob, missing: Sequence[str]) -> list[ShardManifest]:
    """Write the index and the table of skipped episodes; return the folder's manifests, without their entries.

    Another run may publish shards of other splits at the same time. Both runs list the folder again after they have written,
    so the last writer has seen all manifests of both.
    """
    planned = job.source.ignored
    while True:
        listed = index.listed_manifests(job.folder)
        published = index.read_manifests(job.folder)
        all_missing = sorted({*missing, *_missing_of_others(job, listed)})
        manifests = index.write_index(job.folder, job.dataset, published, all_missing, planned, job.source.filtered)
        write_skipped(job.folder, job.dataset, manifests)
        if index.listed_manifests(job.folder) == listed:
            return manifests


def _missing_of_others(job: IngestJob, manifests: Collection[str]) -> list[str]:
    """Return shards of other splits that an earlier run failed to make, by its summary, and that still have no manifest."""
    own_splits = {unit.split for unit in job.units}
    try:
        before = map(str, index.read_summary(job.folder).get("missing_shards", []))
    except ShardError:  # the summary is written again
        return []
    split_of = {shard: parsed[0] for shard in before if (parsed := parse_shard_name(shard)) is not None}
    return [shard for shard, split in split_of.items() if split not in own_splits and manifest_path(shard) not in manifests]


def _is_done(unit: WorkUnit, folder: str, sizes: dict[str, int], overwrite: bool) -> bool:
    """Whether the shard exists, has the size that its manifest states, and was made from the same inputs."""
    manifest = find_done(folder, unit.shard, unit.inputs, overwrite)
    if manifest is None:
        return False
    if missing_file_is_back(manifest, unit.inputs):
        _log.warning("%s lacks files that could not be opened before; it is made again", storage.join(folder, unit.shard))
        return False
    if sizes.get(unit.shard) != manifest.bytes:
        _log.warning("%s is missing or has the wrong size; it is made again", storage.join(folder, unit.shard))
        return False
    return True


def refuse_strays(units: Sequence[WorkUnit], folder: str) -> None:
    """Refuse to mix shards of two plans in one folder.

    Shards of other splits may stay if they were made from the same common inputs.

    Raises:
        ConflictError: A shard doesn't belong to this plan; the message names it.
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
                f"{path} is not one of the {len(planned)} shards of this plan: it was made with another source, --max_episodes "
                "or data.shard_mib. Choose another output folder, or remove it"
            )
        if not name.endswith(".json"):
            continue
        try:
            inputs = _common(read_manifest(path).inputs)
        except FileNotFoundError:  # another run is making it again
            continue
        if inputs != common:
            raise ConflictError(
                f"{path} was made from other inputs: {describe_difference(inputs, common)}. Choose another output folder"
            )


def remove_emptied_shards(units: Sequence[WorkUnit], source: Source, folder: str) -> None:
    """Remove shards that left the plan because none of their source files exists any more."""
    planned, splits = {unit.shard for unit in units}, {unit.split for unit in units}
    strays = [manifest for manifest in index.read_manifests(folder) if manifest.shard not in planned]
    existing = {printable_name(name) for name in source.listing()} if strays else set()
    for manifest in strays:
        is_of_split = (parse_shard_name(manifest.shard) or ("",))[0] in splits
        if is_of_split and existing.isdisjoint(item["file"] for item in manifest.inputs["sources"]):
            path = storage.join(folder, manifest.shard)
            _log.warning("%s is removed: none of its source files exists any more", path)
            storage.remove(manifest_path(path))
            storage.remove(path)


def _common(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in inputs.items() if key not in ("sources", "split")}


def group_by_files(jobs: Sequence[UnitJob]) -> list[list[UnitJob]]:
    """Group the jobs that read the same source files for the same shard, so that each file is read once."""
    groups: dict[tuple[str, str, tuple[SourceShard, ...]], list[UnitJob]] = {}
    for job in jobs:
        groups.setdefault((job.source.folder, job.unit.shard, job.unit.sources), []).append(job)
    return list(groups.values())


@contextlib.contextmanager
def _progress(jobs: Sequence[UnitJob], name: str) -> Iterator[None]:
    """Show a progress line that counts the published shards."""
    stop = threading.Event()
    with progress_line(len(jobs), "shard", f"ingest {name}") as line:
        watcher = threading.Thread(target=_watch, args=(jobs, line, stop), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def _watch(jobs: Sequence[UnitJob], line: "tqdm[Any]", stop: threading.Event) -> None:
    """Count published shards until `stop` is set; log problems and go on."""
    waiting = {storage.join(job.folder, manifest_path(job.unit.shard)) for job in jobs}
    folders = {job.folder for job in jobs}
    interval = _LOCAL_POLL if all(map(storage.is_local, folders)) else _REMOTE_POLL
    started = time.monotonic()
    frames = 0
    last = failing = False
    while not last:
        last = stop.wait(interval)
        try:
            published = {storage.join(folder, name) for folder in folders for name in storage.list_files(folder)}
            failing = False
        except (ProjectError, OSError) as error:
            # Only the progress line depends on this listing; the work reports its own storage errors.
            if not failing:
                _log.warning("published shards can't be listed for the progress line: %s", error)
            failing = True
            continue
        for path in waiting & published:
            waiting.remove(path)
            try:
                frames += read_manifest(path).frames
            except (ProjectError, OSError) as error:
                _log.warning("a shard's manifest can't be read: %s", error)
            line.set_postfix_str(f"{frames / (time.monotonic() - started):.0f} frames/s", refresh=False)
            line.update()
