"""Opens the token shards of a mixture as one store: checks them against their manifests, maps them, and reads rows.

All shards are mapped when the store is opened, about 0.2 ms each, so a truncated or foreign shard is an error before training
starts. Shards on an object store are first copied to local disk. Reading copies single rows from the maps: only the operating
system caches data.
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
    """N rows of a store.

    Attributes:
        ids: (N, L) uint16 tokens.
        action: (N, T, A) float32, or None if not requested.
        reward: (N, T) float32, or None if not requested.
    """

    ids: np.ndarray
    action: np.ndarray | None = None
    reward: np.ndarray | None = None


@dataclass(frozen=True)
class ClipSource:
    """Source of a clip: data set, episode key, first frame, stride in frames, view (0 is unchanged)."""

    dataset: str
    episode: str
    start: int
    stride: float
    view: int


@dataclass(frozen=True)
class _Shard:
    """An open shard: metadata, columns as arrays over the mapped file (one per record batch), and how its clips were cut."""

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
        # Without folders, so that shards may be moved.
        self.digest = fingerprint({storage.basename(shard.path): shard.sha256 for shard in shards})
        # An empty shard doesn't know its columns.
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
        """Copies `rows` to the indices `at` of `into`."""
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
        """Returns the source of a row's clip."""
        for table in self._tables:
            if row < table.num_rows:
                values = {name: table.column(name)[row].as_py() for name in ("episode", "start", "stride", "view")}
                return ClipSource(self.info.dataset, **values)
            row -= table.num_rows
        raise IndexError(f"data set {self.info.dataset} has {self._starts[-1]} rows")


class TokenStore:
    """Token shards of one layout, by data set. Open one with `TokenStore.open`.

    Attributes:
        layout: Layout that all its shards share.
        datasets: Names of the data sets, sorted.
        sizes: Clip positions and views by data set name, for `SampleOrder`.
        digests: Hash of the names and SHA-256s of a data set's shards, by data set name, from their manifests.
        reordered: Data sets in several folders whose rows are in another order than the folders were given in.
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
        """Opens all finished shards of `splits` in folders laid out as `{dir}/{data set}/{split}-{number}.arrow`.

        Args:
            dirs: One or several folders or URLs.
            splits: Exact names; held-out episodes have their own splits (`train_heldout`).
            cache_dir: Where shards of an object store are copied to; None = `tokenize_offline.pretrained.cache`.

        Raises:
            ShardError: There are no clips; a shard is damaged, truncated or duplicated; or shards were made in different ways.
                The message names the files.
        """
        store = cls.open_if_any(dirs, splits, cache_dir)
        if store is None:
            raise ShardError(no_shards_message(folder_list(dirs), splits))
        return store

    @classmethod
    def open_if_any(
        cls, dirs: str | Path | Sequence[str | Path], splits: Sequence[str], cache_dir: Path | None = None
    ) -> "TokenStore | None":
        """Opens shards like `open`, but return None if there are no clips."""
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
            log.warning("data sets without clips in %s: %s", ", ".join(splits), ", ".join(empty))
        datasets = {name: dataset for name, dataset in datasets.items() if name not in empty}
        return cls(shards[0].info.layout, datasets, reordered(as_given)) if datasets else None

    @property
    def action_dim(self) -> int:
        """Columns of an action; 0 if no data set has actions.

        Raises:
            ConfigError: Data sets differ in it.
        """
        dims = {name: self._by_name[name].info.action_dim for name in self.datasets}
        if len(set(dims.values())) > 1:
            raise ConfigError(
                f"data sets differ in the number of action columns: {dims}. Choose data sets with equal numbers in "
                "data.weights, or turn model.actions off."
            )
        return next(iter(dims.values()))

    @property
    def clips(self) -> Mapping[str, Any]:
        """Recipe section by which all clips were cut, from the manifests; empty if they lack it."""
        return self._by_name[self.datasets[0]].clips

    @property
    def seconds_per_frame(self) -> dict[str, float | None]:
        """Seconds between neighbouring frames of a data set's clips, by name; None if its manifests don't say."""
        return {name: self._by_name[name].seconds_per_frame for name in self.datasets}

    @property
    def has_reward(self) -> bool:
        """Whether all data sets have rewards."""
        return all(self._by_name[name].info.has_reward for name in self.datasets)

    def positions(self, dataset: str) -> int:
        """Returns the number of clip positions of a data set."""
        return self.sizes[dataset].positions

    def views(self, dataset: str) -> int:
        """Returns the number of views of each clip position of a data set."""
        return self.sizes[dataset].views

    def restrict(self, names: Sequence[str]) -> "TokenStore":
        """Returns the same store with only some of its data sets."""
        return TokenStore(self.layout, {name: self._by_name[name] for name in names}, self.reordered)

    def rows(self, dataset: str, rows: np.ndarray, actions: bool = False, rewards: bool = False) -> Clips:
        """Returns copies of (N,) rows of one data set; see `read`."""
        return self.read([dataset], np.zeros(len(rows), np.int64), rows, actions, rewards)

    def read(
        self, names: Sequence[str], dataset: np.ndarray, rows: np.ndarray, actions: bool = False, rewards: bool = False
    ) -> Clips:
        """Returns copies of rows from several data sets.

        Args:
            names: Data set names.
            dataset: (N,) index in `names` of every row's data set.
            rows: (N,) row within that data set.
            actions: Whether to read actions.
            rewards: Whether to read rewards.

        Raises:
            ShardError: A token is outside the vocabulary: the shard is damaged.
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
                    f"token shards of {names[number]} hold token {clips.ids[at].max()}, but the vocabulary has "
                    f"{self.layout.vocabulary}: run `ivideogpt-inspect --verify` on them and tokenize the damaged ones again"
                )
        return clips

    def sources(self, names: Sequence[str], dataset: np.ndarray, rows: np.ndarray) -> list[ClipSource]:
        """Returns the sources of the clips of rows; arguments as for `read`."""
        return [self._by_name[names[i]].source(row) for i, row in zip(dataset.tolist(), rows.tolist(), strict=True)]


def _require_distinct(shards: Sequence[_Shard]) -> None:
    """Refuses two shards of a data set with the same content."""
    seen: dict[str, str] = {}
    for shard in shards:
        if shard.sha256 in seen:
            raise ShardError(
                f"{seen[shard.sha256]} and {shard.path} have the same content (SHA-256 {shard.sha256[:12]}..): remove "
                "one of them and its manifest"
            )
        seen[shard.sha256] = shard.path


def _open(path: str, cache: Path) -> _Shard:
    manifest = read_manifest(manifest_path(path))
    local = _cached(path, manifest, cache)
    if local.stat().st_size != manifest.bytes:
        raise ShardError(
            f"{path} has {local.stat().st_size} bytes, but its manifest says {manifest.bytes}: it was truncated or replaced; "
            "delete it and its manifest, and tokenize again"
        )
    info, table = open_token_shard(local)
    if not table.schema.equals(token_schema(info)):
        raise ShardError(f"{path} has other columns than its metadata says: delete it and its manifest, and tokenize again")
    dataset, name = path.rsplit("/", 2)[1:]
    parsed = parse_shard_name(name)
    if parsed is None or (info.dataset, info.split) != (dataset, parsed[0]):
        raise ShardError(f"{path} belongs to {info.dataset}/{info.split}: it was moved or renamed")
    if table.num_rows != manifest.samples or table.num_rows % info.views:
        raise ShardError(f"{path} has {table.num_rows} rows, but its manifest says {manifest.samples} in {info.views} views")
    layout = info.layout
    return _Shard(
        path,
        info,
        table,
        list(fixed_size_column(table, "ids", layout.sequence_length)),
        list(fixed_size_column(table, "action", layout.clip_length * info.action_dim)) if info.action_dim else [],
        list(fixed_size_column(table, "reward", layout.clip_length)) if info.has_reward else [],
        manifest.inputs.get("clips", {}),
        manifest.sha256,
        manifest.statistics.get("seconds_per_frame"),
    )


def _cached(path: str, manifest: ShardManifest, cache: Path) -> Path:
    """Returns a local file with a shard's content; copies are stored by content, once for all processes."""
    if storage.is_local(path):
        return storage.local_path(path)
    folder = cache / hashlib.sha256(f"{path} {manifest.sha256}".encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()
    with locked(folder / "lock"):
        return storage.local_copy(path, folder)


def _require_same_rows(first: _Shard, other: _Shard) -> None:
    """Refuses shards of one data set that differ in views, actions or rewards."""
    for name in ("views", "action_dim", "has_reward"):
        a, b = getattr(first.info, name), getattr(other.info, name)
        if a != b:
            raise ShardError(
                f"{first.path} and {other.path} can't be used together: {name} is {a} and {b}. Move the shards of one kind, "
                "with their manifests, out of the folder; to train on both, ingest and tokenize each as a data set of its own"
            )
