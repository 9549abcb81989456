"""Plans the work: finds episode shards, defines the inputs of each token shard, and skips those that are done.

One process plans, before any model runs, so that a conflict stops the command before work is spent.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ShardError
from pipeline.common.manifests import find_done, fingerprint, manifest_path, read_manifest
from pipeline.common.measured_json import json_values
from pipeline.config.model import Precision
from pipeline.config.recipe import ClipsConfig, QualityConfig
from pipeline.episodes.frames import shrunk_to
from pipeline.episodes.index import episode_shards, find_datasets
from pipeline.episodes.naming import HELD_OUT_SUFFIX, TRAINING_SPLIT, held_out_split, parse_shard_name, shard_name
from tokenize_offline.clips.sampling import held_out_thresholds, resolve_clips
from tokenize_offline.token_layout import FORMAT_VERSION, TokenLayout
from tokenize_offline.tokenizer.config import CompressiveVQConfig

# Manifests are small files; an object store takes about 30 ms for each.
_THREADS = 16


@dataclass(frozen=True)
class ShardTask:
    """One unit of work: an episode shard, as its manifest describes it.

    Attributes:
        dataset: Name of the data set.
        split: Name of the split.
        index: Index of the shard in the split.
        source: Path or URL of the episode shard.
        bytes: File size in bytes.
        sha256: SHA-256 of the file.
        samples: Number of episodes.
        shrunk: Short side in pixels to which ingest shrank the frames; see `pipeline.episodes.frames.shrunk_to`.
        action_dims: Distinct action widths of the episodes, sorted; 0 for episodes without actions.
        held_out_threshold: Value of `clips.held_out` above which some episode is held out; see `held_out_thresholds`.
        excluded: Sorted indices of the episodes that the recipe's quality limits exclude; see `filtering`.
        excluded_keys: Fingerprint of the excluded keys (`fingerprint_of_keys`); empty if the recipe has no limits.
    """

    dataset: str
    split: str
    index: int
    source: str
    bytes: int
    sha256: str
    samples: int
    shrunk: int | None = None
    action_dims: tuple[int, ...] = ()
    held_out_threshold: float = 1.0
    excluded: tuple[int, ...] = ()
    excluded_keys: str = ""

    @classmethod
    def from_json(cls, task: Mapping[str, Any]) -> "ShardTask":
        """A task read back from JSON (`dataclasses.asdict`)."""
        return cls(**{**task, **{name: tuple(task[name]) for name in ("action_dims", "excluded")}})


@dataclass(frozen=True)
class TokenizeJob:
    """The settings that all shards of a run share.

    Attributes:
        clips: Clip settings with everything filled in (`resolve_clips`).
        layout: Layout of the token shards.
        output: Folder or URL; token shards are published as `{output}/{dataset}/{split}-{shard}.arrow`.
        overwrite: Whether to replace shards that another recipe or tokenizer made.
        quality: Quality limits that exclude episodes.
    """

    clips: ClipsConfig
    layout: TokenLayout
    output: str
    overwrite: bool = False
    quality: QualityConfig = field(default_factory=QualityConfig)

    def folder(self, task: ShardTask) -> str:
        """Folder of the token shards of a task's data set."""
        return storage.join(self.output, task.dataset)

    def split(self, task: ShardTask, held_out: bool) -> str:
        """Split of a task's held-out rows, or of its other rows."""
        return held_out_split(task.split) if held_out else task.split

    def shard(self, task: ShardTask, held_out: bool) -> str:
        """File name of the token shard for the split that `split` returns."""
        return shard_name(self.split(task, held_out), task.index, "arrow")

    def views(self, task: ShardTask, held_out: bool) -> int:
        """Views of each clip position; 1 for rows that only evaluation reads."""
        return self.clips.views if task.split == TRAINING_SPLIT and not held_out else 1

    def held_out_share(self, task: ShardTask) -> float:
        """Fraction of a task's episodes that go to the held-out shard."""
        return self.clips.held_out if task.split == TRAINING_SPLIT else 0.0

    def planned_rows(self, task: ShardTask) -> int:
        """Estimated rows of a task, for the progress line. Counts held-out episodes, which have fewer rows, like the others."""
        return (task.samples - len(task.excluded)) * self.clips.per_episode * self.views(task, held_out=False)

    def inputs(self, task: ShardTask, held_out: bool) -> dict[str, Any]:
        """All inputs that determine the bytes of a token shard, for its manifest."""
        return {
            "stage": "tokenize",
            "version": FORMAT_VERSION,
            "dataset": task.dataset,
            "split": self.split(task, held_out),
            "views": self.views(task, held_out),
            "episode_shard": storage.basename(task.source),
            "episode_shard_sha256": task.sha256,
            "layout": dataclasses.asdict(self.layout),
            "clips": json_values(dataclasses.asdict(self.clips)),
            **self._excluded(task),
        }

    def in_precision(self, precision: Precision) -> "TokenizeJob":
        """A copy of the job with another tokenizer precision."""
        return dataclasses.replace(self, layout=dataclasses.replace(self.layout, precision=precision))

    def _excluded(self, task: ShardTask) -> dict[str, Any]:
        # No entry without limits: shards made before limits existed keep their fingerprint.
        if not self.quality.active:
            return {}
        keys = {"excluded": len(task.excluded), "excluded_keys": task.excluded_keys}
        return {"quality": {**dataclasses.asdict(self.quality), **keys}}

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values; processes compare it to check that they agree."""
        return {**dataclasses.asdict(self), "clips": json_values(dataclasses.asdict(self.clips))}

    def is_done(self, task: ShardTask) -> bool:
        """Whether a task's token shards are published.

        The manifest of the plain shard is published last and counts the held-out rows.

        Raises:
            ConflictError: They are published but have other inputs, and `overwrite` is false.
        """
        plain, held_out = (
            find_done(self.folder(task), self.shard(task, held), self.inputs(task, held), self.overwrite)
            for held in (False, True)
        )
        return plain is not None and (held_out is not None or not plain.statistics["held_out_rows"])


def token_layout(
    config: CompressiveVQConfig,
    clips: ClipsConfig,
    precision: Precision,
    tokenizer_sha256: str,
    quality: QualityConfig | None = None,
) -> TokenLayout:
    """Layout of the token shards that a tokenizer makes with a recipe.

    Args:
        config: Config of the tokenizer, with its own context length.
        clips: The recipe's section `clips`; `resolve_clips` fills in what it leaves open.
        precision: Precision in which the tokenizer runs.
        tokenizer_sha256: SHA-256 of the tokenizer's weights.
        quality: The recipe's section `quality`. Its limits are part of `clips_fingerprint`.

    Raises:
        ConfigError: Recipe and tokenizer don't match; see `resolve_clips`.
    """
    limits = {"quality": dataclasses.asdict(quality)} if quality is not None and quality.active else {}
    resolved = resolve_clips(clips, config.context_length)
    assert resolved.length is not None and resolved.context_length is not None
    id_layout = dataclasses.asdict(config.id_layout) | {"context_length": resolved.context_length}
    return TokenLayout(
        **id_layout,
        clip_length=resolved.length,
        resolution=config.resolution,
        goal=resolved.goal,
        precision=precision,
        tokenizer_sha256=tokenizer_sha256,
        clips_fingerprint=fingerprint({**json_values(dataclasses.asdict(resolved)), **limits}),
    )


def find_shards(folders: Sequence[str], splits: Sequence[str] | None = None) -> list[ShardTask]:
    """All episode shards in `folders`, largest first.

    Args:
        folders: Output folders of ingest, or data set folders in them; paths or URLs.
        splits: Splits to take; None takes all.

    Raises:
        ConfigError: A folder has no shards, two folders have the same data set, or no shard belongs to a split.
        ShardError: A shard has no manifest, or a manifest is damaged.
    """
    tasks = [task for name, path in find_datasets(folders).items() for task in _tasks_of(name, path)]
    require_splits(tasks, splits)
    chosen = [task for task in tasks if splits is None or task.split in splits]
    return sorted(chosen, key=lambda task: (-task.bytes, task.dataset, task.split, task.index))


def require_splits(tasks: Sequence[ShardTask], splits: Sequence[str] | None) -> None:
    """Check that each split has at least one task.

    Raises:
        ConfigError: A split has none.
    """
    known = sorted({task.split for task in tasks})
    for split in splits or ():
        if split not in known:
            raise ConfigError(f"--splits {split}: no shard has that split; the splits found are {', '.join(known)}")


def work_order(tasks: Sequence[ShardTask], random: Random) -> list[ShardTask]:
    """Tasks sorted largest first, and shuffled by `random` within sizes of the same power of two.

    So two independent runs on one output rarely work on the same shard, and each skips what the other has made.
    """
    return sorted(tasks, key=lambda task: (-task.bytes.bit_length(), random.random()))


def dataset_folders(tasks: Sequence[ShardTask]) -> list[str]:
    """Sorted folders of the data sets that the tasks belong to."""
    return sorted({task.source.rpartition("/")[0] for task in tasks})


def exclude_episodes(tasks: Sequence[ShardTask], excluded: pa.Table) -> list[ShardTask]:
    """The tasks with the `excluded` episodes of their shards filled in; see `filtering.excluded_episodes`."""
    positions = {(task.dataset, storage.basename(task.source)): position for position, task in enumerate(tasks)}
    none = fingerprint_of_keys([])
    filtered = [dataclasses.replace(task, excluded=(), excluded_keys=none) for task in tasks]
    by_shard = excluded.select(["dataset", "shard", "row", "key"]).unify_dictionaries().group_by(["dataset", "shard"])
    lists = by_shard.aggregate([("row", "list"), ("key", "list")])
    for batch in lists.to_batches(max_chunksize=1):
        (shard,) = batch.to_pylist()
        position = positions.get((shard["dataset"], shard["shard"]))
        # `excluded` also covers splits that this run does not tokenize.
        if position is not None:
            rows, keys = tuple(sorted(shard["row_list"])), fingerprint_of_keys(shard["key_list"])
            filtered[position] = dataclasses.replace(filtered[position], excluded=rows, excluded_keys=keys)
    return filtered


def fingerprint_of_keys(keys: Iterable[str]) -> str:
    """Fingerprint of a set of episode keys."""
    return fingerprint({"keys": sorted(keys)})


def unfinished(job: TokenizeJob, tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """The tasks whose token shards are not published yet, in the given order.

    Raises:
        ConflictError: See `TokenizeJob.is_done`.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return [task for task, done in zip(tasks, pool.map(job.is_done, tasks), strict=True) if not done]


def existing_precision(job: TokenizeJob, tasks: Sequence[ShardTask]) -> str | None:
    """Precision of the first published token shard of the tasks; None if there is none.

    Raises:
        ShardError: The shard's manifest is damaged.
    """
    names: dict[str, set[str]] = {}
    for task in tasks:
        folder = job.folder(task)
        if folder not in names:
            names[folder] = set(storage.list_files(folder))
        manifest = manifest_path(job.shard(task, held_out=False))
        if manifest in names[folder]:
            layout = read_manifest(storage.join(folder, manifest)).inputs.get("layout", {})
            return str(layout["precision"]) if "precision" in layout else None
    return None


def _tasks_of(dataset: str, folder: str) -> list[ShardTask]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _task_of(dataset, storage.join(folder, name)), episode_shards(folder)))


def _task_of(dataset: str, path: str) -> ShardTask:
    parsed = parse_shard_name(storage.basename(path))
    assert parsed is not None
    if parsed[0].endswith(HELD_OUT_SUFFIX):
        raise ConfigError(f"{path}: splits must not end in {HELD_OUT_SUFFIX}, which is reserved for held-out token shards")
    if not storage.exists(manifest_path(path)):
        raise ShardError(f"{path} has no manifest (.json), so its ingest did not finish; run the ingest again")
    manifest = read_manifest(manifest_path(path))
    short_sides = (min(entry["height"], entry["width"]) for entry in manifest.entries)
    shrunk = shrunk_to(manifest.inputs.get("frames", {}), short_sides)
    return ShardTask(
        dataset,
        *parsed,
        path,
        manifest.bytes,
        manifest.sha256,
        manifest.samples,
        shrunk,
        tuple(sorted({int(entry.get("action_dim") or 0) for entry in manifest.entries})),
        float(held_out_thresholds(dataset, (entry["key"] for entry in manifest.entries)).min(initial=1.0)),
    )
