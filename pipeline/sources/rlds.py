"""RLDS data sets, as Open X-Embodiment publishes them: TFRecord files of episodes, read without TensorFlow.

A record is parsed once and its wanted columns are taken out whole, images still encoded; nothing happens step by step. File
names decide which files there are, so that a set without `dataset_info.json`, or with files missing, is read for what it is.
Episodes of the split `train` that the catalog keeps for testing become the split `test`; the price is a second look at their
files.
"""

import collections
import functools
import hashlib
import logging
import re
import statistics
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from pipeline import storage
from pipeline.catalog import DatasetEntry, test_episodes
from pipeline.episode import Episode
from pipeline.errors import BadEpisodeError, SourceError
from pipeline.frames import decode
from pipeline.json_files import read_json
from pipeline.naming import TRAINING_SPLIT
from pipeline.quality import anchors
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
from pipeline.sources.example import Columns, feature_values, read_examples
from pipeline.sources.rlds_spec import Column, EpisodeSpec, episode_spec, read_features
from pipeline.sources.tfrecord import count_records

_log = logging.getLogger(__name__)
SPEC_FILE = "features.json"
_INFO_FILE = "dataset_info.json"
_FILE = re.compile(r"^(?P<stem>.+-(?P<split>[A-Za-z0-9_]+)\.tfrecord)-(?P<number>\d{5,})(-of-(?P<of>\d{5,}))?$")
_MAX_TEXT = 10_000
_MAX_FILES = 100_000
_TEST_SPLIT = "test"
_PLACEHOLDER_CONTRAST = 8  # of 255; JPEG noise of a picture of one colour


class RldsSource(Source):
    """The version folder of one RLDS data set."""

    kind = "rlds"

    def inputs(self) -> dict[str, Any]:
        """See `Source.inputs`."""
        spec = storage.read_bytes(storage.join(self.folder, SPEC_FILE))
        held = {"test_episodes": self.entry.test_episodes} if self.entry.test_episodes else {}
        return {**super().inputs(), **held, "spec_sha256": hashlib.sha256(spec).hexdigest()}

    def is_data(self, name: str) -> bool:
        """See `Source.is_data`."""
        return _FILE.match(name) is not None

    def is_read_besides(self, name: str) -> bool:
        """See `Source.is_read_besides`."""
        return name in (SPEC_FILE, _INFO_FILE)

    def plan(self) -> list[SourceShard]:
        """All files that are there, and those that should be: `-of-00007` promises seven. See `Source.plan`."""
        _spec(self.folder, self.entry)
        shards: dict[tuple[str, int], str] = {}
        promised: set[tuple[str, str]] = set()
        there = self.list_data()
        for name in there:
            match = _FILE.match(name)
            if match is None:
                continue
            place = (match["split"], int(match["number"]))
            if shards.get(place, name) != name:
                raise SourceError(f"{self.folder} has both {shards[place]} and {name}: remove the one that doesn't belong")
            shards[place] = name
            if int(match["of"] or 0) > _MAX_FILES:
                raise SourceError(f"{self.folder} has {name}, one of {match['of']} files; the limit is {_MAX_FILES}. Remove it")
            if match["of"] and (match["stem"], match["of"]) not in promised:
                promised.add((match["stem"], match["of"]))
                for number in range(int(match["of"])):
                    shards.setdefault((match["split"], number), f"{match['stem']}-{number:05d}-of-{match['of']}")
        stated = _stated(self.folder)
        files = collections.Counter(split for split, _ in shards)
        for split in sorted(stated.keys() - files.keys()):
            _log.warning("%s has no file of the split %s, which %s knows", self.folder, split, _INFO_FILE)
        plan = []
        for (split, number), file in sorted(shards.items()):
            lengths, bytes_per_record = stated.get(split, ([], 0.0))
            if len(lengths) == files[split] and number < len(lengths):
                shard = SourceShard(split, number, file, lengths[number], stated_bytes=lengths[number] * bytes_per_record)
            else:
                shard = SourceShard(split, number, file, count_records(storage.join(self.folder, file)))
            plan.append(shard)
        plan = _with_first(plan)
        return _with_missing(plan, there.keys()) + self._public_test(plan)

    def _public_test(self, plan: Sequence[SourceShard]) -> list[SourceShard]:
        """The files of `train` that hold episodes which the catalog keeps for testing, as files of a split of their own.

        Where the index of a file's records is unknown, so is which these are; reading `train` lists them.
        """
        if not self.entry.test_episodes or any(shard.split == _TEST_SPLIT for shard in plan):
            return []
        held = sorted(test_episodes(self.entry.test_episodes).values())
        sizes = self.file_sizes()
        found = []
        for shard in plan:
            if shard.split != TRAINING_SPLIT or shard.first is None or shard.records is None:
                continue
            only = tuple(index - shard.first for index in held if shard.first <= index < shard.first + shard.records)
            if only:
                size = shard.stated_bytes or float(sizes.get(shard.file, 0))
                share = size * len(only) / shard.records
                found.append(replace(shard, split=_TEST_SPLIT, records=len(only), stated_bytes=share, only=only))
        return found

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """The episodes of one file. See `Source.read`."""
        for position, items in self.read_together(shard, [self]):
            yield position, items[0]

    def read_together(self, shard: SourceShard, sources: Sequence[Self]) -> Iterator[tuple[int, list[Episode | BadEpisode]]]:
        """One pass over a file for several cameras. See `Source.read_together`."""
        only = shard.only if shard.only is None else shard.only[: shard.take]
        end = None if only is None else only[-1] + 1
        stretch = shard if only is None else replace(shard, records=end, take=end)
        for position, columns, numbered in read_examples(storage.join(self.folder, shard.file), stretch):
            if only is not None and position not in only:
                continue
            if isinstance(columns, BadEpisode):
                yield position, [columns for _ in sources]
                continue
            # Behind a stretch that may have held several records, no index within the split is sure.
            known = shard if numbered else replace(shard, first=None)
            items = [source._read_columns(columns, known, position) for source in sources]
            del columns
            yield position, items
            del items

    def _read_columns(self, columns: Columns, shard: SourceShard, position: int) -> Episode | BadEpisode:
        spec = _spec(self.folder, self.entry)
        try:
            if self._is_public_test(columns, spec, shard, position):
                return BadEpisode("belongs to the public test set", filtered=True)
            if spec.success is not None and not _numbers(columns, spec.success, 1).any():
                return BadEpisode("marked as failed by the source", filtered=True)
            return self._episode(columns, spec, shard, position)
        except BadEpisodeError as error:
            return BadEpisode.of(error)

    def _is_public_test(self, columns: Columns, spec: EpisodeSpec, shard: SourceShard, position: int) -> bool:
        """Whether an episode of the split `train` is one that the catalog keeps for testing, by its index or its name."""
        if not self.entry.test_episodes or not (shard.split == TRAINING_SPLIT or shard.only):
            return False
        held = test_episodes(self.entry.test_episodes)
        if shard.first is None:
            raise BadEpisodeError("its index is unknown, so whether it belongs to the public test set is too")
        if shard.only:
            return False
        name = storage.basename(_text(columns, spec.episode_id)).split(".")[0]
        return shard.first + position in held.values() or name in held

    def _episode(self, columns: Columns, spec: EpisodeSpec, shard: SourceShard, position: int) -> Episode:
        kept = self._frames(columns, spec)
        count = len(kept)
        action = _joined(columns, spec.action)
        state = _joined(columns, spec.state)
        return make_episode(
            self.entry,
            shard,
            position,
            kept,
            language=_text(columns, spec.instruction),
            episode_id=_text(columns, spec.episode_id),
            action_meaning=spec.action_meaning,
            action=None if action is None else pad_actions(action, count),
            state=None if state is None else _of_length(state.astype(np.float32), count, "states"),
            reward=_per_step(columns, spec.reward, count, np.float32),
            is_terminal=_per_step(columns, spec.is_terminal, count, np.bool_),
        )

    def _frames(self, columns: Columns, spec: EpisodeSpec) -> list[KeptFrame]:
        swap = self.entry.image_key in self.entry.bgr
        if spec.encoded:
            # Taken out of the record one by one: a list would be a copy of all of them.
            images = feature_values(columns, spec.camera.path, "bytes_list")
            check_count(len(images))
            if _is_placeholder(images):
                raise BadEpisodeError(f"camera {spec.camera.name} is a placeholder: one picture of one colour throughout")
            looked_at = set(anchors(len(images)).tolist())
            return [self.form.keep(image, swap, with_pixels=place in looked_at) for place, image in enumerate(images)]
        return [self.form.keep_pixels(pixels, swap) for pixels in _pixels(columns, spec.camera)]


def _with_first(shards: list[SourceShard]) -> list[SourceShard]:
    """Shards with the index of their first record, as far as the lengths of those before are known."""
    first: dict[str, int | None] = {}
    numbered = []
    for shard in shards:
        start = first.get(shard.split, 0)
        numbered.append(replace(shard, first=start))
        first[shard.split] = None if start is None or shard.records is None else start + shard.records
    return numbered


def _with_missing(shards: Sequence[SourceShard], there: Collection[str]) -> list[SourceShard]:
    """Shards of which a missing one, where nobody says how many records it had, counts as so many as the others have.

    Else a whole file would weigh as little as an episode in what may be left out.
    """
    known: dict[str, list[int]] = {}
    for shard in shards:
        if shard.records is not None:
            known.setdefault(shard.split, []).append(shard.records)
    usual = {split: statistics.median_low(counts) for split, counts in known.items()}
    return [
        shard if shard.records is not None or shard.file in there else replace(shard, records=usual.get(shard.split))
        for shard in shards
    ]


@functools.lru_cache(maxsize=8)
def _spec(folder: str, entry: DatasetEntry) -> EpisodeSpec:
    """The spec of a data set, read once per process."""
    path = storage.join(folder, SPEC_FILE)
    return episode_spec(read_features(storage.read_bytes(path), path), entry)


def _stated(folder: str) -> dict[str, tuple[list[int], float]]:
    """Split -> number of records in each of its files, and their mean size, as far as `dataset_info.json` says."""
    path = storage.join(folder, _INFO_FILE)
    if not storage.exists(path):
        return {}
    stated = {}
    try:
        for split in read_json(path).get("splits", []):
            lengths = [int(length) for length in split.get("shardLengths", [])]
            if any(not 0 <= length <= MAX_RECORDS for length in lengths):
                raise ValueError(f"a file of {split['name']} should have {max(lengths)} records, the limit is {MAX_RECORDS}")
            stated[str(split["name"])] = (lengths, int(split.get("numBytes", 0)) / max(1, sum(lengths)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} is damaged: {error!r}. Fetch it again") from error
    return stated


def _numbers(columns: Columns, column: Column, rows: int | None = None) -> np.ndarray:
    """A numeric column as (N, width), N being `rows` where it is given."""
    values = feature_values(columns, column.path)
    try:
        flat = np.array(values, dtype=np.float64 if values and isinstance(values[0], float) else np.int64)
        return flat.reshape(-1 if rows is None else rows, column.width)
    except (ValueError, TypeError) as error:
        raise BadEpisodeError(f"feature {column.path} doesn't hold {column.width} numbers a step: {error}") from error


def _pixels(columns: Columns, camera: Column) -> Iterator[np.ndarray]:
    """The frames of a camera that is kept as pixels."""
    if camera.encoding == "none":
        for row in _numbers(columns, camera).astype(np.uint8):
            yield row.reshape(camera.shape)
        return
    for value in feature_values(columns, camera.path, "bytes_list"):
        try:
            # One byte more than there should be is enough to see that a stream doesn't end.
            data = zlib.decompressobj().decompress(value, camera.width + 1) if camera.encoding == "zlib" else value
            yield np.frombuffer(data, np.uint8).reshape(camera.shape)
        except (ValueError, zlib.error) as error:
            raise BadEpisodeError(f"feature {camera.path} doesn't hold a tensor of shape {camera.shape}: {error}") from error


def _joined(columns: Columns, parts: tuple[Column, ...]) -> np.ndarray | None:
    """The parts of an action or a state side by side, (N, A); None where there are none."""
    if not parts:
        return None
    arrays = [_numbers(columns, part)[:, : part.take] for part in parts]
    if len({len(array) for array in arrays}) > 1:
        raise BadEpisodeError(f"parts of different lengths: { {p.name: len(a) for p, a in zip(parts, arrays, strict=True)} }")
    return np.concatenate(arrays, axis=1)


def _of_length(array: np.ndarray, count: int, what: str) -> np.ndarray:
    if len(array) != count:
        raise BadEpisodeError(f"{len(array)} {what} for {count} frames")
    return array


def _per_step(columns: Columns, column: Column | None, count: int, dtype: Any) -> np.ndarray | None:
    if column is None:
        return None
    return _of_length(_numbers(columns, column)[:, 0].astype(dtype), count, column.name)


def _text(columns: Columns, column: Column | None) -> str:
    """The first text of a column that isn't empty; numbers above 1 wide spell it, zeros being padding."""
    if column is None:
        return ""
    values = feature_values(columns, column.path)
    if len(values) and isinstance(values[0], bytes):
        return next((value for value in values if value), b"")[:_MAX_TEXT].decode(errors="replace")
    numbers = _numbers(columns, column)
    if column.width == 1:
        return str(numbers[0, 0]) if len(numbers) else ""
    row = next((row[row != 0] for row in numbers if row.any()), np.zeros(0, np.int64))[:_MAX_TEXT]
    return _spelled(row)


def _spelled(numbers: np.ndarray) -> str:
    """Text from UTF-8 bytes or, where one is no byte or the bytes are no UTF-8, code points."""
    try:
        return bytes(numbers.tolist()).decode()
    except ValueError:
        return "".join(chr(number) if _is_character(number) else "\ufffd" for number in numbers.tolist())


def _is_character(number: int) -> bool:
    return 0 < number < 0x110000 and not 0xD800 <= number < 0xE000


def _is_placeholder(images: Sequence[bytes]) -> bool:
    """Whether all of several images are the same one, which shows a single colour."""
    if len(images) < 2:
        return False
    first = images[0]
    if any(image != first for image in images):
        return False
    pixels = decode(first)
    return bool((pixels.max(axis=(0, 1)) - pixels.min(axis=(0, 1))).max() <= _PLACEHOLDER_CONTRAST)
