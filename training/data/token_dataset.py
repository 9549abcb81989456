"""The token shards of a mixture, opened as one: found, checked against their records, mapped, and read by row.

Every shard is mapped when the store is opened, about 0.2 ms each, so that a truncated or foreign shard is an error before
training starts and not at the step that first meets it. Shards on an object store are first copied whole to local disk.
Reading copies single rows out of the maps: nothing is kept in memory but what the operating system caches.
"""

import concurrent.futures
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ShardError
from pipeline.common.locks import locked
from pipeline.common.manifests import ShardManifest, fingerprint, manifest_path, read_manifest
from pipeline.common.progress import progress_line
from pipeline.episodes.naming import parse_shard_name
from tokenize_offline.pretrained.hub import cache_folder
from tokenize_offline.shards.codebook_stats import weighted_median
from tokenize_offline.shards.token_shards import (
    TokenShardInfo,
    fixed_size_column,
    open_token_shard,
    require_same_layout,
    token_schema,
)
from tokenize_offline.token_layout import TokenLayout
from training.data.sampler import DatasetSize
from training.data.shard_search import find_shards, folder_list, no_shards_message, reordered, sort_shards

_READERS = 8
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """Rows of a store, N of them.

    Attributes:
        ids: (N, L) uint16.
        action: (N, T, A) float32, or None where none were asked for.
        reward: (N, T) float32, or None where none were asked for.
    """

    ids: np.ndarray
    action: np.ndarray | None = None
    reward: np.ndarray | None = None


@dataclass(frozen=True)
class ClipSource:
    """Where a clip was cut: data set, key of the episode, first frame, frames from one to the next, view (0 is plain)."""

    dataset: str
    episode: str
    start: int
    stride: float
    view: int


@dataclass(frozen=True)
class _Shard:
    """An opened shard: metadata, columns as arrays over the mapped file (one per record batch), how its clips were cut."""

    path: str
    info: TokenShardInfo
    table: pa.Table
    ids: list[np.ndarray]
    action: list[np.ndarray]
    reward: list[np.ndarray]
    clips: Mapping[str, Any]
    sha256: str
    seconds_per_frame: float | None


class _Dataset:
    """All rows of one data set, numbered through its shards in the order of their names."""

    def __init__(self, shards: list[_Shard]) -> None:
        _require_distinct(shards)
        # Names alone: which folder a shard lies in is nobody's business.
        self.digest = fingerprint({storage.basename(shard.path): shard.sha256 for shard in shards})
        # A shard whose episodes were all left out doesn't know what rows would have carried.
        shards = [shard for shard in shards if any(map(len, shard.ids))] or shards[:1]
        self.info, self.clips = shards[0].info, shards[0].clips
        for shard in shards[1:]:
            _require_same_rows(shards[0], shard)
        self._ids = [array for shard in shards for array in shard.ids]
        self._action = [array for shard in shards for array in shard.action]
        self._reward = [array for shard in shards for array in shard.reward]
        self._starts = np.cumsum([0, *(len(array) for array in self._ids)])
        self._tables = [shard.table for shard in shards]
        self.seconds_per_frame = weighted_median((shard.seconds_per_frame, shard.table.num_rows) for shard in shards)

    @property
    def size(self) -> DatasetSize:
        return DatasetSize(int(self._starts[-1]) // self.info.views, self.info.views)

    def copy(self, rows: np.ndarray, into: Clips, at: np.ndarray) -> None:
        """Copy `rows` to the places `at` of `into`."""
        if rows.size and not 0 <= rows.min() <= rows.max() < self._starts[-1]:
            raise IndexError(
                f"data set {self.info.dataset} has rows 0 to {self._starts[-1] - 1}, not {rows.min()}..{rows.max()}"
            )
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        places = list(zip(at.tolist(), parts.tolist(), (rows - self._starts[parts]).tolist(), strict=True))
        for target, part, row in places:
            into.ids[target] = self._ids[part][row]
        if into.action is not None:
            for target, part, row in places:
                into.action[target] = self._action[part][row].reshape(into.action.shape[1:])
        if into.reward is not None:
            for target, part, row in places:
                into.reward[target] = self._reward[part][row]

    def source(self, row: int) -> ClipSource:
        """Where the clip of a row was cut."""
        for table in self._tables:
            if row < table.num_rows:
                values = {name: table.column(name)[row].as_py() for name in ("episode", "start", "stride", "view")}
                return ClipSource(self.info.dataset, **values)
            row -= table.num_rows
        raise IndexError(f"data set {self.info.dataset} has {self._starts[-1]} rows")


class TokenStore:
    """Token shards of one layout, by data set. Open one with `TokenStore.open`.

    Attributes:
        layout: What all its shards share.
        datasets: Names of the data sets, sorted.
        sizes: Data set name -> clip positions and views; what `SampleOrder` needs.
        digests: Data set name -> hash of the names and SHA-256s of its shards, as their records have them.
        regrouped: Data sets that lie in several folders, and whose rows are in another order than these were given in.
    """

    def __init__(self, layout: TokenLayout, datasets: dict[str, _Dataset], reordered: Sequence[str] = ()) -> None:
        self.layout = layout
        self.datasets = tuple(sorted(datasets))
        self.sizes = {name: datasets[name].size for name in self.datasets}
        self.digests = {name: datasets[name].digest for name in self.datasets}
        self.reordered = tuple(name for name in self.datasets if name in reordered)
        self._by_name = datasets

    @classmethod
    def open(
        cls, dirs: str | Path | Sequence[str | Path], splits: Sequence[str] = ("train",), cache_dir: Path | None = None
    ) -> "TokenStore":
        """Open all finished shards of `splits` in folders laid out as `{dir}/{data set}/{split}-{number}.arrow`.

        Args:
            dirs: One or several folders or URLs.
            splits: Exact names; held-out episodes lie in splits of their own (`train_heldout`).
            cache_dir: Where shards of an object store are copied to; None takes `tokenize_offline.pretrained.cache`.

        Raises:
            ShardError: There are no clips, a shard is damaged or cut short, two were made in different ways, or one is there
                twice. The message names the files.
        """
        store = cls.open_if_any(dirs, splits, cache_dir)
        if store is None:
            raise ShardError(no_shards_message(folder_list(dirs), splits))
        return store

    @classmethod
    def open_if_any(
        cls, dirs: str | Path | Sequence[str | Path], splits: Sequence[str], cache_dir: Path | None = None
    ) -> "TokenStore | None":
        """As `open`, but None where there are no clips."""
        as_given = [shard for folder in folder_list(dirs) for shard in find_shards(folder, set(splits))]
        found = sort_shards(as_given)
        cache = cache_dir or cache_folder("tokens")
        remote = not all(storage.is_local(path) for path in found)
        shards = []
        with (
            concurrent.futures.ThreadPoolExecutor(_READERS) as pool,
            progress_line(len(found), "shard", "caching token shards", shown=remote) as line,
        ):
            for shard in pool.map(lambda path: _open(path, cache), found):
                shards.append(shard)
                line.update(1)
        for shard in shards[1:]:
            require_same_layout(shards[0].info, shards[0].path, shard.info, shard.path)
        by_name: dict[str, list[_Shard]] = {}
        for shard in shards:
            by_name.setdefault(shard.info.dataset, []).append(shard)
        datasets = {name: _Dataset(members) for name, members in by_name.items()}
        if empty := sorted(name for name, dataset in datasets.items() if not dataset.size.positions):
            log.warning("data sets without a clip in %s: %s", ", ".join(splits), ", ".join(empty))
        datasets = {name: dataset for name, dataset in datasets.items() if name not in empty}
        return cls(shards[0].info.layout, datasets, reordered(as_given)) if datasets else None

    @property
    def action_dim(self) -> int:
        """Columns of an action, 0 where no data set has actions.

        Raises:
            ConfigError: Data sets differ in it.
        """
        dims = {name: self._by_name[name].info.action_dim for name in self.datasets}
        if len(set(dims.values())) > 1:
            raise ConfigError(
                f"data sets differ in the number of action columns: {dims}. Choose data sets that agree by data.weights, "
                "or turn model.actions off."
            )
        return next(iter(dims.values()))

    @property
    def clips(self) -> Mapping[str, Any]:
        """The recipe's section by which all clips were cut, as records have it; empty where they don't."""
        return self._by_name[self.datasets[0]].clips

    @property
    def seconds_per_frame(self) -> dict[str, float | None]:
        """Data set -> seconds between neighbouring frames of its clips; None where its records don't say."""
        return {name: self._by_name[name].seconds_per_frame for name in self.datasets}

    @property
    def has_reward(self) -> bool:
        """Whether all data sets carry rewards."""
        return all(self._by_name[name].info.has_reward for name in self.datasets)

    def positions(self, dataset: str) -> int:
        """Clip positions of a data set."""
        return self.sizes[dataset].positions

    def views(self, dataset: str) -> int:
        """Views of every clip position of a data set."""
        return self.sizes[dataset].views

    def restrict(self, names: Sequence[str]) -> "TokenStore":
        """The same store with only some of its data sets."""
        return TokenStore(self.layout, {name: self._by_name[name] for name in names}, self.reordered)

    def rows(self, dataset: str, rows: np.ndarray, actions: bool = False, rewards: bool = False) -> Clips:
        """Copies of (N,) rows of one data set. See `read`."""
        return self.read([dataset], np.zeros(len(rows), np.int64), rows, actions, rewards)

    def read(
        self, names: Sequence[str], dataset: np.ndarray, rows: np.ndarray, actions: bool = False, rewards: bool = False
    ) -> Clips:
        """Copies of rows out of several data sets.

        Args:
            names: Data set names.
            dataset: (N,) position in `names` of every row's data set.
            rows: (N,) row within that data set.
            actions: Whether actions are wanted too; rewards likewise.
            rewards: See actions.

        Raises:
            ShardError: An id lies past the vocabulary: the shard is damaged.
        """
        clip_length, count = self.layout.clip_length, len(rows)
        clips = Clips(
            np.empty((count, self.layout.sequence_length), np.uint16),
            np.empty((count, clip_length, self.action_dim), np.float32) if actions else None,
            np.empty((count, clip_length), np.float32) if rewards else None,
        )
        for number in np.unique(dataset):
            at = np.flatnonzero(dataset == number)
            self._by_name[names[number]].copy(rows[at], clips, at)
            if clips.ids[at].max() >= self.layout.vocabulary:
                raise ShardError(
                    f"token shards of {names[number]} hold id {clips.ids[at].max()} where the vocabulary has "
                    f"{self.layout.vocabulary}; run `ivideogpt-inspect --verify` on them and tokenize the damaged ones again"
                )
        return clips

    def sources(self, names: Sequence[str], dataset: np.ndarray, rows: np.ndarray) -> list[ClipSource]:
        """Where the clips of rows were cut; arguments as for `read`."""
        return [self._by_name[names[i]].source(row) for i, row in zip(dataset.tolist(), rows.tolist(), strict=True)]


def _require_distinct(shards: Sequence[_Shard]) -> None:
    """Refuse two names for one shard of a data set."""
    seen: dict[str, str] = {}
    for shard in shards:
        if shard.sha256 in seen:
            raise ShardError(
                f"{seen[shard.sha256]} and {shard.path} have the same content (SHA-256 {shard.sha256[:12]}..): one is a copy, "
                "remove it and its record"
            )
        seen[shard.sha256] = shard.path


def _open(path: str, cache: Path) -> _Shard:
    record = read_manifest(manifest_path(path))
    local = _cached(path, record, cache)
    if local.stat().st_size != record.bytes:
        raise ShardError(
            f"{path} has {local.stat().st_size} bytes where its record states {record.bytes}: it was cut short or replaced; "
            "delete it and its record, and tokenize again"
        )
    info, table = open_token_shard(local)
    if not table.schema.equals(token_schema(info)):
        raise ShardError(f"{path} has other columns than its metadata states; delete it and its record, and tokenize again")
    dataset, name = path.rsplit("/", 2)[1:]
    parsed = parse_shard_name(name)
    if parsed is None or (info.dataset, info.split) != (dataset, parsed[0]):
        raise ShardError(f"{path} says that it belongs to {info.dataset}/{info.split}: it was moved or renamed")
    if table.num_rows != record.samples or table.num_rows % info.views:
        raise ShardError(f"{path} has {table.num_rows} rows; its record states {record.samples} in {info.views} views")
    layout = info.layout
    return _Shard(
        path,
        info,
        table,
        list(fixed_size_column(table, "ids", layout.sequence_length)),
        list(fixed_size_column(table, "action", layout.clip_length * info.action_dim)) if info.action_dim else [],
        list(fixed_size_column(table, "reward", layout.clip_length)) if info.has_reward else [],
        record.inputs.get("clips", {}),
        record.sha256,
        record.statistics.get("seconds_per_frame"),
    )


def _cached(path: str, record: ShardManifest, cache: Path) -> Path:
    """A local file with a shard's content; copies are kept by content, and made once however many processes ask."""
    if storage.is_local(path):
        return storage.local_path(path)
    folder = cache / hashlib.sha256(f"{path} {record.sha256}".encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()
    with locked(folder / "lock"):
        return storage.local_copy(path, folder)


def _require_same_rows(first: _Shard, other: _Shard) -> None:
    """Refuse shards of one data set that differ in views, actions or rewards."""
    for name in ("views", "action_dim", "has_reward"):
        a, b = getattr(first.info, name), getattr(other.info, name)
        if a != b:
            raise ShardError(
                f"{first.path} and {other.path} can't be used together: {name} is {a} and {b}. Move the shards of one kind, "
                "with their records, out of the folder; to train on both, ingest and tokenize each as a data set of its own"
            )
