"""`ivideogpt-ingest`: one data set becomes episode shards."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConfigError
from pipeline.common.manifests import recorded_head_tail_hashes
from pipeline.common.path_errors import require_writable
from pipeline.config import catalog
from pipeline.config.cli import CommandParser, parse_recipe, recipe_parser, run_command
from pipeline.config.cli_output import show
from pipeline.config.recipe import Recipe
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.job import Engine, IngestJob, ingest_datasets
from pipeline.ingest.outcome import Outcome, check_outcomes, log_ignored
from pipeline.ingest.plan import make_plan, with_hashes
from pipeline.ingest.runners import dask, spark
from pipeline.ingest.shard_assignment import assigned_files, read_assignment
from pipeline.ingest.source_lock import LOCK_FILE, SourceLock
from pipeline.sources.base import MAX_FRAMES, Source
from pipeline.sources.locate import KINDS, open_source
from pipeline.sources.video.source import EPISODE_FRAMES


def parser() -> CommandParser:
    """The command line, without what follows a bare `--`."""
    made = recipe_parser(
        "ivideogpt-ingest",
        "Turn one data set (RLDS, BAIR, RoboNet, VP2, npz or video) into episode shards. Of a recipe, which may hold more, it "
        "takes the section `data`. What is done stays: after a failure the same command goes on.",
        helped=("data",),
    )
    made.usage = (
        f"{made.prog} --dataset NAME [NAME ...] --source PATH_OR_URL --output PATH_OR_URL [OPTION ...] [-- BEAM_OPTION ...]"
    )
    made.add_argument(
        "--dataset",
        metavar="NAME",
        type=str,
        nargs="+",
        required=True,
        help="Name of the data set, in the catalog or your own; or of several that are cameras of one, read in one pass.",
    )
    made.add_argument(
        "--source",
        metavar="PATH_OR_URL",
        type=str,
        required=True,
        help="Its folder or URL, or a root of data sets that has it.",
    )
    made.add_argument(
        "--output", metavar="PATH_OR_URL", type=str, required=True, help="Folder or URL; shards go to OUTPUT/DATASET."
    )
    made.add_argument("--splits", metavar="SPLIT", type=str, nargs="+", help="Only these splits; by default all.")
    made.add_argument("--max_episodes", metavar="N", type=int, help="Of each split, only so many from its beginning.")
    made.add_argument(
        "--max_bad_fraction",
        metavar="SHARE",
        type=float,
        default=0.01,
        help="Share of the episodes, from 0 to 1: fail where more of them are left out.",
    )
    made.add_argument(
        "--skip_missing",
        action="store_true",
        default=None,
        help="Of an RLDS data set, take the files that are there: those that are missing are counted, but are no loss.",
    )
    made.add_argument(
        "--camera",
        type=str,
        help="Image feature to take, in place of the catalog's; `image` where the catalog doesn't know the data set.",
    )
    made.add_argument(
        "--no_actions",
        action="store_true",
        default=None,
        help="Ingest without actions, where those of an RLDS or npz data set can't be read or aren't wanted.",
    )
    made.add_argument(
        "--rate",
        metavar="HZ",
        type=float,
        help="Steps per second, in place of the catalog's, where it knows the data set. Videos are sampled to it.",
    )
    made.add_argument(
        "--kind",
        choices=KINDS,
        help="Kind of the source, in place of what its files tell; data of other kinds is passed over.",
    )
    made.add_argument(
        "--classes",
        metavar="TEMPLATE",
        type=str,
        nargs="+",
        help="Of Something-Something-v2, in place of the 95; `all` takes all.",
    )
    made.add_argument(
        "--episode_frames",
        metavar="N",
        type=int,
        help=f"Longer videos are cut into such episodes. (default: {EPISODE_FRAMES})",
    )
    _add_work_options(made)
    return made


def _add_work_options(made: CommandParser) -> None:
    """Where the work is done, and what becomes of what was done before."""
    made.add_argument(
        "--dask", metavar="ADDRESS", type=str, help="Scheduler of a Dask cluster that does the work, e.g. tcp://host:8786."
    )
    made.add_argument(
        "--spark", metavar="ADDRESS", type=str, help="Master of a Spark cluster that does the work, e.g. spark://host:7077."
    )
    made.add_argument(
        "--lock", metavar="FILE", type=str, help=f"Lock file of source fingerprints; by default {LOCK_FILE} beside the shards."
    )
    made.add_argument(
        "--overwrite",
        action="store_true",
        help="Make shards anew that were made in another way, and those that lost episodes to damaged files; without it these "
        "are made anew only where a file's size or one of its ends differs.",
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """The body of the command. Shows a summary of each data set; see `run_command` for errors."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, beam_options = given, []
    if "--" in given:
        own, beam_options = given[: given.index("--")], given[given.index("--") + 1 :]
    recipe, options = parse_recipe(parser(), own)
    if options.max_episodes is not None and options.max_episodes < 1:
        raise ConfigError(f"--max_episodes must be at least 1, not {options.max_episodes}")
    if options.episode_frames is not None and not 1 <= options.episode_frames <= MAX_FRAMES:
        raise ConfigError(f"--episode_frames must be 1 to {MAX_FRAMES}, not {options.episode_frames}")
    if not 0 <= options.max_bad_fraction <= 1:
        raise ConfigError(f"--max_bad_fraction must be 0 to 1, not {options.max_bad_fraction}")
    engine = _engine(options, beam_options)
    require_writable(options.output)
    ends: dict[str, dict[str, str]] = {}
    planned = [_job(name, recipe, options, ends) for name in dict.fromkeys(options.dataset)]
    jobs = [job for job, _ in planned]
    folders = {job.source.folder for job in jobs}
    if len(folders) > 1 or (len(jobs) > 1 and options.camera):
        raise ConfigError(
            f"--dataset {' '.join(options.dataset)}: several can be read at once only where they are the catalog's cameras of "
            f"one data set, without --camera; these lie in {', '.join(sorted(folders))}. Run the command once for each"
        )
    outcomes = ingest_datasets(jobs, beam_options, options.overwrite, engine)
    summaries = []
    for (job, lock), outcome in zip(planned, outcomes, strict=True):
        lock.add(job.units, outcome.records, options.overwrite)
        summaries.append(_summary(job.dataset, job.folder, outcome))
    show(summaries, options)
    check_outcomes({job.dataset: outcome for job, outcome in zip(jobs, outcomes, strict=True)}, options.max_bad_fraction)
    return 0


def _engine(options: Any, beam_options: Sequence[str]) -> Engine | None:
    """What does the work in place of Beam; None where nothing does."""
    chosen = [(module, address) for module, address in ((dask, options.dask), (spark, options.spark)) if address]
    if len(chosen) + bool(beam_options) > 1:
        raise ConfigError("--dask, --spark and options for Beam after -- exclude each other: keep one of them")
    return functools.partial(chosen[0][0].run, address=chosen[0][1]) if chosen else None


def _job(name: str, recipe: Recipe, options: Any, ends: dict[str, dict[str, str]]) -> tuple[IngestJob, SourceLock]:
    """The plan of one data set, held against its lock file. `ends` are hashes that plans of the same folder share."""
    entry = catalog.dataset(name, options.camera, options.rate)
    if options.no_actions:
        entry = dataclasses.replace(entry, actions=False)
    if Path(entry.name).name != entry.name or entry.name.startswith("."):
        raise ConfigError(f"--dataset {entry.name!r} can't be the name of a folder")
    source = open_source(
        entry,
        options.source,
        FrameForm.of(recipe.data),
        options.classes,
        options.episode_frames or EPISODE_FRAMES,
        options.kind,
    )
    _require_effect(options, source)
    source.skips_missing = bool(options.skip_missing)
    folder = storage.join(options.output, entry.name)
    with source.cached_listing():
        # A store's client takes much memory to list many objects, which is free again when the lock file comes to be read.
        source.listing()
        lock = SourceLock(options.lock or storage.join(folder, LOCK_FILE), source)
        made = read_assignment(folder, source.divides_files) if source.grows else {}
        known = ends.setdefault(source.folder, lock.known_hashes())
        units = make_plan(source, options.splits, options.max_episodes, recipe.data.shard_mib << 20, known, made)
        if source.many_files:
            units = with_hashes(units, source, known, lock.files() | assigned_files(made))
        known.update(
            (file, hashed)
            for unit in units
            for file, hashed in recorded_head_tail_hashes(unit.inputs).items()
            if hashed is not None
        )
        log_ignored(entry.name, source.ignored)
        if not options.overwrite:
            lock.check(units)
    return IngestJob(units, source, entry.name, folder), lock


# Options that some kinds of source have no use for, and the kinds that do.
_HEEDED = {
    "camera": ("rlds", "npz", "bair", "robonet", "vp2"),
    "classes": ("something-something-v2",),
    "episode_frames": ("video",),
    "no_actions": ("rlds", "npz"),
    "skip_missing": ("rlds",),
}


def _require_effect(options: Any, source: Source) -> None:
    """Refuse an option that this kind of source has no use for.

    Raises:
        ConfigError: There is one.
    """
    for name, kinds in _HEEDED.items():
        if getattr(options, name) is not None and source.kind not in kinds:
            raise ConfigError(
                f"--{name} has no effect on {source.kind}, which {source.folder} is; it is for {', '.join(kinds)}. Leave it out"
            )


def _summary(dataset: str, folder: str, outcome: Outcome) -> dict[str, Any]:
    records = outcome.records
    return {
        "dataset": dataset,
        "folder": folder,
        "shards": len(records),
        "made": outcome.made,
        "episodes": sum(record.samples for record in records),
        "frames": sum(record.frames for record in records),
        "frames_made": outcome.frames_made,
        "bytes": sum(record.bytes for record in records),
        "left_out": sum(len(record.left_out) for record in records),
        "passed_over": dict(sorted(outcome.ignored.items())),
        "failed": outcome.failures,
        "seconds": round(outcome.seconds, 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ivideogpt-ingest`."""
    try:
        return run_command(run, arguments)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install 'ivideogpt-pipeline[ingest]'", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
