"""`ivideogpt-ingest`: turns one data set into episode shards."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.common import storage
from pipeline.common.errors import ConfigError, require
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
from pipeline.sources.kinds import KINDS
from pipeline.sources.locate import open_source
from pipeline.sources.video.source import EPISODE_FRAMES


class IngestOptions(Protocol):
    """The command's own options; `build_parser` documents them."""

    dataset: list[str]
    source: str
    output: str
    splits: list[str] | None
    max_episodes: int | None
    max_bad_fraction: float
    skip_missing: bool | None
    camera: str | None
    no_actions: bool | None
    rate: float | None
    kind: str | None
    classes: list[str] | None
    episode_frames: int | None
    dask: str | None
    spark: str | None
    lock: str | None
    overwrite: bool


def build_parser() -> CommandParser:
    """Returns the parser of the command line up to a bare `--`."""
    parser = recipe_parser(
        "ivideogpt-ingest",
        "Turn one data set (RLDS, BAIR, RoboNet, VP2, npz or video) into episode shards. Reads the section `data` of a "
        "recipe and ignores the others. After a failure, run the same command again to resume.",
        helped=("data",),
    )
    parser.usage = (
        f"{parser.prog} --dataset NAME [NAME ...] --source PATH_OR_URL --output PATH_OR_URL [OPTION ...] [-- BEAM_OPTION ...]"
    )
    _add_source_options(parser)
    _add_run_options(parser)
    return parser


def _add_source_options(parser: CommandParser) -> None:
    add, add_flag = parser.add_argument, functools.partial(parser.add_argument, action="store_true", default=None)
    add("--dataset", metavar="NAME", type=str, nargs="+", required=True, help="Name of the data set, or of its cameras.")
    add("--source", metavar="PATH_OR_URL", type=str, required=True, help="Folder of the data set, or a root that contains it.")
    add("--splits", metavar="SPLIT", type=str, nargs="+", help="Take only these splits; by default all.")
    add("--max_episodes", metavar="N", type=int, help="Take only the first N episodes of each split.")
    add("--kind", choices=KINDS, help="Kind of source; by default its files tell. Data of other kinds is ignored.")
    add("--camera", type=str, help=f"Image feature to take; by default the catalog's, or `{catalog.DEFAULT_CAMERA}`.")
    add("--rate", metavar="HZ", type=float, help="Steps per second, to which videos are sampled; by default the catalog's.")
    add_flag("--no_actions", help="Ignore the actions of an RLDS or npz data set.")
    add_flag("--skip_missing", help="Take the RLDS files that exist; missing ones do not count as left out.")
    add(
        "--classes",
        metavar="TEMPLATE",
        type=str,
        nargs="+",
        help="Classes of Something-Something-v2 to take; by default the 95 of pre-training, `all` takes all.",
    )
    add(
        "--episode_frames",
        metavar="N",
        type=int,
        help=f"Cut longer videos into episodes of N frames. (default: {EPISODE_FRAMES})",
    )


def _add_run_options(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--output", metavar="PATH_OR_URL", type=str, required=True, help="Output folder; shards go to OUTPUT/DATASET.")
    add(
        "--max_bad_fraction",
        metavar="FRACTION",
        type=float,
        default=0.01,
        help="Fail if more than this fraction of episodes is left out.",
    )
    add("--overwrite", action="store_true", help="Remake shards with other settings, and shards with damaged episodes.")
    add("--lock", metavar="FILE", type=str, help=f"File of source fingerprints; by default {LOCK_FILE} next to the shards.")
    add("--dask", metavar="ADDRESS", type=str, help="Dask scheduler to run on, such as tcp://host:8786.")
    add("--spark", metavar="ADDRESS", type=str, help="Spark master to run on, such as spark://host:7077.")


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and prints a summary of each data set; see `run_command` for errors."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, beam_options = words, []
    if "--" in words:
        own, beam_options = words[: words.index("--")], words[words.index("--") + 1 :]
    recipe, options = parse_recipe(build_parser(), own)
    _check_ranges(options)
    engine = _engine(options, beam_options)
    require_writable(options.output)
    hashes: dict[str, dict[str, str]] = {}
    planned = [_plan(name, recipe, options, hashes) for name in dict.fromkeys(options.dataset)]
    jobs = [job for job, _ in planned]
    _require_one_dataset(jobs, options)
    outcomes = ingest_datasets(jobs, beam_options, options.overwrite, engine)
    for (job, lock), outcome in zip(planned, outcomes, strict=True):
        lock.add(job.units, outcome.manifests, options.overwrite)
    show([_summary(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)], options)
    check_outcomes({job.dataset: outcome for job, outcome in zip(jobs, outcomes, strict=True)}, options.max_bad_fraction)
    return 0


def _check_ranges(options: IngestOptions) -> None:
    require(
        options.max_episodes is None or options.max_episodes >= 1,
        f"--max_episodes must be at least 1, not {options.max_episodes}",
    )
    require(
        options.episode_frames is None or 1 <= options.episode_frames <= MAX_FRAMES,
        f"--episode_frames must be 1 to {MAX_FRAMES}, not {options.episode_frames}",
    )
    require(0 <= options.max_bad_fraction <= 1, f"--max_bad_fraction must be 0 to 1, not {options.max_bad_fraction}")


def _require_one_dataset(jobs: Sequence[IngestJob], options: IngestOptions) -> None:
    folders = {job.source.folder for job in jobs}
    require(
        len(folders) == 1 and (len(jobs) == 1 or not options.camera),
        f"--dataset {' '.join(options.dataset)}: several names must be the catalog's cameras of one data set, "
        f"without --camera; these are in {', '.join(sorted(folders))}. Run the command once for each",
    )


def _engine(options: IngestOptions, beam_options: Sequence[str]) -> Engine | None:
    """Returns the engine to use instead of Beam; None if it is Beam."""
    chosen = [(module, address) for module, address in ((dask, options.dask), (spark, options.spark)) if address]
    if len(chosen) + bool(beam_options) > 1:
        raise ConfigError("--dask, --spark and options for Beam after -- exclude each other: keep one of them")
    return functools.partial(chosen[0][0].run, address=chosen[0][1]) if chosen else None


def _open_source(name: str, recipe: Recipe, options: IngestOptions) -> Source:
    entry = catalog.dataset(name, options.camera, options.rate)
    if options.no_actions:
        entry = dataclasses.replace(entry, actions=False)
    if Path(entry.name).name != entry.name or entry.name.startswith("."):
        raise ConfigError(f"--dataset {entry.name!r} can't be the name of a folder")
    form = FrameForm.of(recipe.data)
    source = open_source(entry, options.source, form, options.classes, options.episode_frames or EPISODE_FRAMES, options.kind)
    _require_effect(options, source)
    source.skips_missing = bool(options.skip_missing)
    return source


def _plan(name: str, recipe: Recipe, options: IngestOptions, hashes: dict[str, dict[str, str]]) -> tuple[IngestJob, SourceLock]:
    """Plans one data set and compares it with its lock file.

    Args:
        name: Name of the data set.
        recipe: The recipe.
        options: The command's options.
        hashes: Source folder -> file -> head-tail hash. Plans of the same folder share and extend it.
    """
    source = _open_source(name, recipe, options)
    folder = storage.join(options.output, name)
    with source.cached_listing():
        # Listing needs much memory on a store; list before the lock file is read, so that the peaks do not add up.
        source.listing()
        lock = SourceLock(options.lock or storage.join(folder, LOCK_FILE), source)
        assigned = read_assignment(folder, source.divides_files) if source.grows else {}
        known = hashes.setdefault(source.folder, lock.known_hashes())
        units = make_plan(source, options.splits, options.max_episodes, recipe.data.shard_mib << 20, known, assigned)
        if source.many_files:
            units = with_hashes(units, source, known, lock.files() | assigned_files(assigned))
        for unit in units:
            recorded = recorded_head_tail_hashes(unit.inputs)
            known.update((file, hashed) for file, hashed in recorded.items() if hashed is not None)
        log_ignored(name, source.ignored)
        if not options.overwrite:
            lock.check(units)
    return IngestJob(units, source, name, folder), lock


# Options that only some kinds of source use, and these kinds.
_KINDS_OF_OPTION = {
    "camera": ("rlds", "npz", "bair", "robonet", "vp2"),
    "classes": ("something-something-v2",),
    "episode_frames": ("video",),
    "no_actions": ("rlds", "npz"),
    "skip_missing": ("rlds",),
}


def _require_effect(options: IngestOptions, source: Source) -> None:
    """Refuses an option that this kind of source does not use.

    Raises:
        ConfigError: Such an option is given.
    """
    for name, kinds in _KINDS_OF_OPTION.items():
        if getattr(options, name) is not None and source.kind not in kinds:
            raise ConfigError(
                f"--{name} has no effect on {source.kind} sources such as {source.folder}; it is for {', '.join(kinds)}. "
                "Leave it out"
            )


def _summary(job: IngestJob, outcome: Outcome) -> dict[str, Any]:
    manifests = outcome.manifests
    return {
        "dataset": job.dataset,
        "folder": job.folder,
        "shards": len(manifests),
        "made": outcome.shards_made,
        "episodes": sum(manifest.samples for manifest in manifests),
        "frames": sum(manifest.frames for manifest in manifests),
        "frames_made": outcome.frames_made,
        "bytes": sum(manifest.bytes for manifest in manifests),
        "left_out": sum(len(manifest.left_out) for manifest in manifests),
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
