"""Reads RLDS data sets as published by Open X-Embodiment: TFRecord files of episodes, without TensorFlow.

Each record is parsed once, and whole columns are read from it; images stay encoded. File names decide which files belong to the
data set, so a data set without `dataset_info.json`, or with missing files, can be read. Episodes of the split `train` that the
catalog reserves for testing become the split `test`; the price is a second pass over their files.
"""

import functools
import hashlib
import logging
import re
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, SourceError
from pipeline.common.json_files import read_json
from pipeline.config.catalog import DatasetEntry, test_episodes
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import decode
from pipeline.episodes.naming import TRAINING_SPLIT
from pipeline.episodes.quality import anchors
from pipeline.sources.base import (
    MAX_RECORDS,
    BadEpisode,
    KeptFrame,
    Source,
    SourceShard,
    check_count,
    make_episode,
    pad_actions,
)
from pipeline.sources.guard import as_bad_episode
from pipeline.sources.rlds import columns as columns_of
from pipeline.sources.rlds.features import read_features
from pipeline.sources.rlds.spec import EpisodeSpec, episode_spec
from pipeline.sources.rlds.split_names import FILE, NamingInfo, splits_of
from pipeline.sources.tfrecord.example import Columns, feature_values, read_examples
from pipeline.sources.tfrecord.reader import count_records

_log = logging.getLogger(__name__)
SPEC_FILE = "features.json"
_INFO_FILE = "dataset_info.json"
_PACKED_FILE = re.compile(r"\.tfrecords?\b.*\.(gz|zst|zip|xz|bz2)\b")
_MAX_FILES = 100_000
_TEST_SPLIT = "test"
_PLACEHOLDER_CONTRAST = 8  # largest pixel difference, of 255, in a JPEG of a single colour


class RldsSource(Source):
    """The version folder of one RLDS data set."""

    kind = "rlds"

    def inputs(self) -> dict[str, Any]:
        """See `Source.inputs`."""
        spec = storage.read_bytes(storage.join(self.folder, SPEC_FILE))
        reserved = {"test_episodes": self.entry.test_episodes} if self.entry.test_episodes else {}
        return {**super().inputs(), **reserved, "spec_sha256": hashlib.sha256(spec).hexdigest()}

    def is_data(self, name: str) -> bool:
        """See `Source.is_data`."""
        return FILE.fullmatch(name) is not None

    def is_metadata(self, name: str) -> bool:
        """See `Source.is_metadata`."""
        return name in (SPEC_FILE, _INFO_FILE)

    def plan(self) -> list[SourceShard]:
        """Return all existing files, and missing files that names like `-of-00007` announce. See `Source.plan`."""
        spec = _spec(self.folder, self.entry)
        shards: dict[tuple[str, int], str] = {}
        announced: set[tuple[str, str]] = set()
        existing = self.list_data()
        self.ignored.update(spec.ignored)
        info = _info(self.folder)
        matches = [match for name in existing if (match := FILE.fullmatch(name))]
        splits = splits_of(list(dict.fromkeys(match["named"] for match in matches)), *_naming(self.folder, info))
        for match in matches:
            name, split = match[0], splits[match["named"]]
            place = (split, int(match["number"]))
            if shards.get(place, name) != name:
                raise SourceError(f"{self.folder} has both {shards[place]} and {name}: remove the wrong one")
            shards[place] = name
            if int(match["of"] or 0) > _MAX_FILES:
                raise SourceError(f"{self.folder} has {name}, one of {match['of']} files; the limit is {_MAX_FILES}. Remove it")
            if match["of"] and (match["stem"], match["of"]) not in announced:
                announced.add((match["stem"], match["of"]))
                for number in range(int(match["of"])):
                    shards.setdefault((split, number), f"{match['stem']}-{number:05d}-of-{match['of']}")
        if not shards:
            _refuse_packed(self.folder)
        stated = _stated(self.folder, info)
        for split in sorted(stated.keys() - {split for split, _ in shards}):
            _log.warning("%s has no file of the split %s, which is listed in %s", self.folder, split, _INFO_FILE)
        gaps = _gaps(shards, {split: len(lengths) for split, (lengths, _) in stated.items()}, existing.keys())
        if gaps:
            self.ignored[f"numbers of files that have no file and that {_INFO_FILE} doesn't count either"] += len(gaps)
        files = {place: file for place, file in sorted(shards.items()) if place not in gaps}
        plan = []
        for split in dict.fromkeys(split for split, _ in files):
            split_files = [(number, file) for (other, number), file in files.items() if other == split]
            lengths, bytes_per_record = stated.get(split, ([], 0.0))
            for order, (number, file) in enumerate(split_files):
                if len(lengths) == len(split_files):
                    size = lengths[order] * bytes_per_record
                    plan.append(SourceShard(split, number, file, lengths[order], stated_bytes=size))
                else:
                    plan.append(SourceShard(split, number, file, count_records(storage.join(self.folder, file))))
        plan = _with_first(plan)
        plan = _with_missing(plan, existing.keys()) + self._public_test(plan)
        return self._without_missing(plan, existing.keys()) if self.skips_missing else plan

    def _without_missing(self, plan: Sequence[SourceShard], existing: Collection[str]) -> list[SourceShard]:
        """Return the existing files of a plan, and count the missing files as ignored."""
        kept = [shard for shard in plan if shard.file in existing]
        if missing := len({shard.file for shard in plan}) - len({shard.file for shard in kept}):
            self.ignored["files that are not there, which --skip_missing allows"] += missing
        return kept

    def _public_test(self, plan: Sequence[SourceShard]) -> list[SourceShard]:
        """Return the files of `train` with episodes that the catalog reserves for testing, as files of the split `test`.

        Files whose first index is unknown are left out here; reading `train` lists their episodes as bad.
        """
        if not self.entry.test_episodes or any(shard.split == _TEST_SPLIT for shard in plan):
            return []
        reserved = sorted(test_episodes(self.entry.test_episodes).values())
        sizes = self.file_sizes()
        found = []
        for shard in plan:
            if shard.split != TRAINING_SPLIT or shard.first is None or shard.records is None:
                continue
            only = tuple(index - shard.first for index in reserved if shard.first <= index < shard.first + shard.records)
            if only:
                size = shard.stated_bytes or float(sizes.get(shard.file, 0))
                share = size * len(only) / shard.records
                found.append(replace(shard, split=_TEST_SPLIT, records=len(only), stated_bytes=share, only=only))
        return found

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """Yield the episodes of a file. See `Source.read`."""
        for position, items in self.read_together(shard, [self]):
            yield position, items[0]

    def read_together(self, shard: SourceShard, sources: Sequence[Self]) -> Iterator[tuple[int, list[Episode | BadEpisode]]]:
        """Read a file once for several cameras. See `Source.read_together`."""
        only = shard.only if shard.only is None else shard.only[: shard.take]
        end = None if only is None else only[-1] + 1
        needed = shard if only is None else replace(shard, records=end, take=end)
        for position, columns, numbered in read_examples(storage.join(self.folder, shard.file), needed):
            if only is not None and position not in only:
                continue
            if isinstance(columns, BadEpisode):
                yield position, [columns for _ in sources]
                continue
            # After a damaged part that may have held several records, the index within the split is unknown.
            located = shard if numbered else replace(shard, first=None)
            items = [source._read_columns(columns, located, position) for source in sources]
            del columns
            yield position, items
            del items

    def _read_columns(self, columns: Columns, shard: SourceShard, position: int) -> Episode | BadEpisode:
        spec = _spec(self.folder, self.entry)
        try:
            if self._is_public_test(columns, spec, shard, position):
                return BadEpisode("belongs to the public test set", filtered=True)
            if spec.success is not None and not columns_of.numbers(columns, spec.success, 1).any():
                return BadEpisode("marked as failed by the source", filtered=True)
            return self._episode(columns, spec, shard, position)
        except Exception as error:
            return as_bad_episode(error, f"{shard.file}, record {position}")

    def _is_public_test(self, columns: Columns, spec: EpisodeSpec, shard: SourceShard, position: int) -> bool:
        """Whether an episode of the split `train` is reserved for testing, by its index or its name."""
        if not self.entry.test_episodes or not (shard.split == TRAINING_SPLIT or shard.only):
            return False
        reserved = test_episodes(self.entry.test_episodes)
        if shard.first is None:
            raise BadEpisodeError("its index is unknown, so whether it belongs to the public test set is too")
        if shard.only:
            return False
        name = storage.basename(columns_of.text(columns, spec.episode_id)).split(".")[0]
        return shard.first + position in reserved.values() or name in reserved

    def _episode(self, columns: Columns, spec: EpisodeSpec, shard: SourceShard, position: int) -> Episode:
        kept = self._frames(columns, spec)
        count = len(kept)
        check_count(count)
        action, meaning = columns_of.joined(columns, spec.action, count)
        state, _ = columns_of.joined(columns, spec.state, count)
        with np.errstate(over="ignore"):  # `make_episode` finds infinite values
            state = None if state is None else columns_of.of_length(state.astype(np.float32), count, "states")
        return make_episode(
            self.entry,
            shard,
            position,
            kept,
            language=columns_of.text(columns, spec.instruction),
            episode_id=columns_of.text(columns, spec.episode_id),
            action_meaning=meaning,
            action=None if action is None else pad_actions(action, count),
            state=state,
            reward=columns_of.per_step(columns, spec.reward, count, np.float32),
            is_terminal=columns_of.per_step(columns, spec.is_terminal, count, np.bool_),
        )

    def _frames(self, columns: Columns, spec: EpisodeSpec) -> list[KeptFrame]:
        swap = self.entry.image_key in self.entry.bgr
        if spec.encoded:
            # Iterate over the record's images, because a list would copy all of them.
            images = feature_values(columns, spec.camera.path, "bytes_list")
            check_count(len(images))
            if _is_placeholder(images):
                raise BadEpisodeError(f"camera {spec.camera.name} is a placeholder: one picture of one colour throughout")
            decoded = set(anchors(len(images)).tolist())
            return [self.form.keep(image, swap, with_pixels=place in decoded) for place, image in enumerate(images)]
        return [self.form.keep_pixels(pixels, swap) for pixels in columns_of.pixels(columns, spec.camera)]


def _gaps(shards: Mapping[tuple[str, int], str], lengths: Mapping[str, int], existing: Collection[str]) -> set[tuple[str, int]]:
    """Return the files that names announce but that were never written, because the stated number of files exists.

    Args:
        shards: (split, number) -> file, for all files that names announce.
        lengths: Split -> number of files that the data set states.
        existing: Files that exist.
    """
    gaps = set()
    for split, stated in lengths.items():
        announced = [place for place in shards if place[0] == split]
        absent = [place for place in announced if shards[place] not in existing]
        if absent and len(announced) != stated == len(announced) - len(absent):
            gaps.update(absent)
    return gaps


def _refuse_packed(folder: str) -> None:
    """Raise `SourceError` if the TFRecord files of a data set are compressed as a whole."""
    packed = [name for name in storage.list_files(folder) if _PACKED_FILE.search(name)]
    if packed:
        raise SourceError(
            f"{folder} holds TFRecord files that are compressed as a whole, such as {packed[0]}: unpack each file and remove "
            "the ending, so that its name is NAME-SPLIT.tfrecord-00000-of-00001"
        )


def _with_first(shards: list[SourceShard]) -> list[SourceShard]:
    """Return the shards with the index of their first record, as far as the lengths of earlier shards are known."""
    first: dict[str, int | None] = {}
    numbered = []
    for shard in shards:
        start = first.get(shard.split, 0)
        numbered.append(replace(shard, first=start))
        first[shard.split] = None if start is None or shard.records is None else start + shard.records
    return numbered


def _with_missing(shards: Sequence[SourceShard], existing: Collection[str]) -> list[SourceShard]:
    """Return the shards; a missing file with an unknown number of records gets the median number of the others.

    Otherwise a whole lost file would count as one episode.
    """
    known: dict[str, list[int]] = {}
    for shard in shards:
        if shard.records is not None:
            known.setdefault(shard.split, []).append(shard.records)
    usual = {split: statistics.median_low(counts) for split, counts in known.items()}
    return [
        shard if shard.records is not None or shard.file in existing else replace(shard, records=usual.get(shard.split))
        for shard in shards
    ]


@functools.lru_cache(maxsize=8)
def _spec(folder: str, entry: DatasetEntry) -> EpisodeSpec:
    """Return the spec of a data set; it is read once per process."""
    path = storage.join(folder, SPEC_FILE)
    return episode_spec(read_features(storage.read_bytes(path), path), entry)


def _info(folder: str) -> dict[str, Any]:
    """Return the content of `dataset_info.json`; empty if there is none."""
    path = storage.join(folder, _INFO_FILE)
    if not storage.exists(path):
        return {}
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise SourceError(f"{path} is damaged: {error!r}. Fetch it again") from error


def _naming(folder: str, info: dict[str, Any]) -> tuple[NamingInfo, list[str]]:
    """Return the names in `dataset_info.json`, and the names of the version folder and the data set's folder."""
    try:
        return NamingInfo.of(info), folder.rstrip("/").split("/")[-2:]
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{storage.join(folder, _INFO_FILE)} is damaged: {error!r}. Fetch it again") from error


def _stated(folder: str, info: dict[str, Any]) -> dict[str, tuple[list[int], float]]:
    """Return split -> number of records in each of its files, and mean bytes per record, from `dataset_info.json`."""
    stated = {}
    try:
        for split in info.get("splits", []):
            lengths = [int(length) for length in split.get("shardLengths", [])]
            if any(not 0 <= length <= MAX_RECORDS for length in lengths):
                raise ValueError(f"a file of {split['name']} should have {max(lengths)} records, the limit is {MAX_RECORDS}")
            stated[str(split["name"])] = (lengths, int(split.get("numBytes", 0)) / max(1, sum(lengths)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{storage.join(folder, _INFO_FILE)} is damaged: {error!r}. Fetch it again") from error
    return stated


def _is_placeholder(images: Sequence[bytes]) -> bool:
    """Whether there are several images, all of them equal and of a single colour."""
    if len(images) < 2:
        return False
    first = images[0]
    if any(image != first for image in images):
        return False
    pixels = decode(first, checksummed=True)
    return bool((pixels.max(axis=(0, 1)) - pixels.min(axis=(0, 1))).max() <= _PLACEHOLDER_CONTRAST)
