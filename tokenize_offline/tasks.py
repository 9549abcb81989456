"""What there is to tokenize: episode shards found, what decides each token shard's bytes, and which are done already.

The plan is made once, by one process, before any model runs, so that a conflict stops the command before work is spent.
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
from pipeline.config.model import Precision
from pipeline.config.recipe import ClipsConfig, QualityConfig
from pipeline.episodes.frames import shrunk_to
from pipeline.episodes.index import episode_shards, find_datasets
from pipeline.episodes.naming import HELD_OUT_SUFFIX, TRAINING_SPLIT, held_out_split, parse_shard_name, shard_name
from tokenize_offline.clips.sampling import held_out_thresholds, resolve_clips
from tokenize_offline.token_layout import FORMAT_VERSION, TokenLayout
from tokenize_offline.tokenizer.config import CompressiveVQConfig

# Records are small files, on an object store some 30 ms away each.
_THREADS = 16


@dataclass(frozen=True)
class ShardTask:
    """One unit of work: an episode shard, as its record states it.

    Attributes:
        dataset: Its data set.
        split: Its split.
        index: Its number in the split.
        source: Path or URL of the episode shard.
        bytes: Its size.
        sha256: Of the file.
        samples: Its episodes.
        shrunk: Short side to which its frames were shrunk; see `pipeline.episodes.frames.shrunk_to`.
        action_dims: Widths of its episodes' actions, 0 where they have none; all different ones, in order.
        held_out_threshold: Lowest `clips.held_out` above which one of its episodes is held out; see `held_out_thresholds`.
        excluded: Numbers, from 0 and in order, of those that the recipe's quality limits leave out; see `selection`.
        excluded_keys: Fingerprint of their keys (`fingerprint_of_keys`); empty where the recipe has no limits.
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
        """A task that JSON held (`dataclasses.asdict`)."""
        return cls(**{**task, **{name: tuple(task[name]) for name in ("action_dims", "excluded")}})


@dataclass(frozen=True)
class TokenizeJob:
    """What is the same for all shards of one run.

    Attributes:
        clips: With everything filled in (`resolve_clips`).
        layout: Of all token shards.
        output: Folder or URL under which `{dataset}/{split}-{shard}.arrow` are published.
        overwrite: Whether shards that were made in another way are made anew.
        quality: Which episodes the tasks leave out.
    """

    clips: ClipsConfig
    layout: TokenLayout
    output: str
    overwrite: bool = False
    quality: QualityConfig = field(default_factory=QualityConfig)

    def folder(self, task: ShardTask) -> str:
        """Where the token shards of a data set lie."""
        return storage.join(self.output, task.dataset)

    def split(self, task: ShardTask, held_out: bool) -> str:
        """Split of a task's training (or plain) rows, or of its held-out ones."""
        return held_out_split(task.split) if held_out else task.split

    def shard(self, task: ShardTask, held_out: bool) -> str:
        """File name of the token shard that `split` belongs to."""
        return shard_name(self.split(task, held_out), task.index, "arrow")

    def views(self, task: ShardTask, held_out: bool) -> int:
        """Views of every clip position: evaluation sees plain frames only."""
        return self.clips.views if task.split == TRAINING_SPLIT and not held_out else 1

    def held_out_share(self, task: ShardTask) -> float:
        """Share of a task's episodes that go to the held-out shard."""
        return self.clips.held_out if task.split == TRAINING_SPLIT else 0.0

    def planned_rows(self, task: ShardTask) -> int:
        """About how many rows a task gives, for a progress line: held-out episodes, which have fewer, aren't told apart."""
        return (task.samples - len(task.excluded)) * self.clips.per_episode * self.views(task, held_out=False)

    def inputs(self, task: ShardTask, held_out: bool) -> dict[str, Any]:
        """Everything that decides the bytes of a token shard, for its record."""
        return {
            "stage": "tokenize",
            "version": FORMAT_VERSION,
            "dataset": task.dataset,
            "split": self.split(task, held_out),
            "views": self.views(task, held_out),
            "episode_shard": storage.basename(task.source),
            "episode_shard_sha256": task.sha256,
            "layout": dataclasses.asdict(self.layout),
            "clips": _as_json(self.clips),
            **self._excluded(task),
        }

    def in_precision(self, precision: Precision) -> "TokenizeJob":
        """The same job with the tokenizer in another precision."""
        return dataclasses.replace(self, layout=dataclasses.replace(self.layout, precision=precision))

    def _excluded(self, task: ShardTask) -> dict[str, Any]:
        # Without limits nothing is said, and shards that were made before there were any stay what they are.
        if not self.quality.active:
            return {}
        keys = {"excluded": len(task.excluded), "excluded_keys": task.excluded_keys}
        return {"quality": {**dataclasses.asdict(self.quality), **keys}}

    def facts(self) -> dict[str, Any]:
        """All of it in a form that JSON holds, for processes that must agree on it."""
        return {**dataclasses.asdict(self), "clips": _as_json(self.clips)}

    def is_done(self, task: ShardTask) -> bool:
        """Whether a task's token shards are there.

        The record of the plain shard is published last and says how many held-out rows there are beside it.

        Raises:
            ConflictError: They are, but were made in another way, and `overwrite` is false.
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
    """What is frozen into ids made by this tokenizer and recipe.

    Args:
        config: Of the tokenizer, with its own context length.
        clips: The recipe's section; what it leaves open is filled in from the tokenizer.
        precision: In which the tokenizer runs.
        tokenizer_sha256: Of its weights file.
        quality: The recipe's section; where it leaves anything out, shards of other limits are not opened together with these.

    Raises:
        ConfigError: Recipe and tokenizer don't go together, see `resolve_clips`.
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
        clips_fingerprint=fingerprint({**_as_json(resolved), **limits}),
    )


def _as_json(clips: ClipsConfig) -> dict[str, Any]:
    # Tuples become lists, as they come back from a record, so that equal recipes compare equal.
    return {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(clips).items()}


def find_shards(folders: Sequence[str], splits: Sequence[str] | None = None) -> list[ShardTask]:
    """All episode shards under `folders`, largest first.

    Args:
        folders: Output folders of ingest, or data set folders in them; paths or URLs.
        splits: Which splits to take; None takes all.

    Raises:
        ConfigError: A folder holds no shards, two of them hold the same data set, or a split is nowhere.
        ShardError: A shard has no record, or a record is damaged.
    """
    tasks = [task for name, path in find_datasets(folders).items() for task in _tasks_of(name, path)]
    require_splits(tasks, splits)
    chosen = [task for task in tasks if splits is None or task.split in splits]
    return sorted(chosen, key=lambda task: (-task.bytes, task.dataset, task.split, task.index))


def require_splits(tasks: Sequence[ShardTask], splits: Sequence[str] | None) -> None:
    """Refuse splits that none of the tasks has.

    Raises:
        ConfigError: There is one.
    """
    known = sorted({task.split for task in tasks})
    for split in splits or ():
        if split not in known:
            raise ConfigError(f"--splits {split}: no shard has that split; there are {', '.join(known)}")


def work_order(tasks: Sequence[ShardTask], random: Random) -> list[ShardTask]:
    """Larger tasks first, those of about one size (within a power of two) in an order that `random` draws.

    Two runs that know nothing of each other then rarely have the same shard in hand, and each skips what the other has made.
    """
    return sorted(tasks, key=lambda task: (-task.bytes.bit_length(), random.random()))


def dataset_folders(tasks: Sequence[ShardTask]) -> list[str]:
    """Folders of the data sets that tasks belong to, in order."""
    return sorted({task.source.rpartition("/")[0] for task in tasks})


def exclude_episodes(tasks: Sequence[ShardTask], excluded: pa.Table) -> list[ShardTask]:
    """The tasks, each with those of the `excluded` episodes (see `selection.select`) that lie in its shard."""
    places = {(task.dataset, storage.basename(task.source)): place for place, task in enumerate(tasks)}
    none = fingerprint_of_keys([])
    made = [dataclasses.replace(task, excluded=(), excluded_keys=none) for task in tasks]
    of_shard = excluded.select(["dataset", "shard", "row", "key"]).unify_dictionaries().group_by(["dataset", "shard"])
    lists = of_shard.aggregate([("row", "list"), ("key", "list")])
    for batch in lists.to_batches(max_chunksize=1):
        (shard,) = batch.to_pylist()
        place = places.get((shard["dataset"], shard["shard"]))
        # Splits that are not asked for have duplicates too.
        if place is not None:
            rows, keys = tuple(sorted(shard["row_list"])), fingerprint_of_keys(shard["key_list"])
            made[place] = dataclasses.replace(made[place], excluded=rows, excluded_keys=keys)
    return made


def fingerprint_of_keys(keys: Iterable[str]) -> str:
    """What tells one set of episodes from another."""
    return fingerprint({"keys": sorted(keys)})


def unfinished(job: TokenizeJob, tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """The tasks whose token shards are not there yet, in their order.

    Raises:
        ConflictError: See `TokenizeJob.is_done`.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return [task for task, done in zip(tasks, pool.map(job.is_done, tasks), strict=True) if not done]


def existing_precision(job: TokenizeJob, tasks: Sequence[ShardTask]) -> str | None:
    """The precision of a token shard that one of the tasks has made already, whichever is found first; None without any.

    Raises:
        ShardError: Its record is damaged.
    """
    names: dict[str, set[str]] = {}
    for task in tasks:
        folder = job.folder(task)
        if folder not in names:
            names[folder] = set(storage.list_files(folder))
        record = manifest_path(job.shard(task, held_out=False))
        if record in names[folder]:
            layout = read_manifest(storage.join(folder, record)).inputs.get("layout", {})
            return str(layout["precision"]) if "precision" in layout else None
    return None


def _tasks_of(dataset: str, folder: str) -> list[ShardTask]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _task_of(dataset, storage.join(folder, name)), episode_shards(folder)))


def _task_of(dataset: str, path: str) -> ShardTask:
    parsed = parse_shard_name(storage.basename(path))
    assert parsed is not None
    if parsed[0].endswith(HELD_OUT_SUFFIX):
        raise ConfigError(f"{path}: splits must not end in {HELD_OUT_SUFFIX}, which names held-out token shards")
    if not storage.exists(manifest_path(path)):
        raise ShardError(f"{path} has no record, so its ingest never finished; run the ingest again")
    record = read_manifest(manifest_path(path))
    short_sides = (min(entry["height"], entry["width"]) for entry in record.entries)
    shrunk = shrunk_to(record.inputs.get("frames", {}), short_sides)
    return ShardTask(
        dataset,
        *parsed,
        path,
        record.bytes,
        record.sha256,
        record.samples,
        shrunk,
        tuple(sorted({int(entry.get("action_dim") or 0) for entry in record.entries})),
        float(held_out_thresholds(dataset, (entry["key"] for entry in record.entries)).min(initial=1.0)),
    )
