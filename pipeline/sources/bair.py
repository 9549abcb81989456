"""Reads BAIR robot pushing as published: one folder of TFRecord files per split, one episode of raw RGB frames per record."""

import re
from collections.abc import Iterator

import numpy as np

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError
from pipeline.episodes.episode import Episode
from pipeline.sources.base import MAX_RECORDS, BadEpisode, Source, SourceShard, make_episode, pad_actions
from pipeline.sources.guard import as_bad_episode
from pipeline.sources.tfrecord.example import Columns, feature_values, read_examples
from pipeline.sources.tfrecord.reader import count_records

FOLDER = "softmotion30_44k"
_SPLITS = ("test", "train")
_FILE = re.compile(r"^traj_(?P<first>\d{1,9})_to_(?P<last>\d{1,9})\.tfrecords$")
_SHAPE = (64, 64, 3)
# Camera name in the catalog -> name in the data set.
_CAMERAS = {"aux1_image": "image_aux1", "main_image": "image_main"}


def is_bair(folder: str) -> bool:
    """Whether a folder holds a split of BAIR's files."""
    return any(_FILE.match(name) for split in _SPLITS for name in storage.list_files(storage.join(folder, split)))


class BairSource(Source):
    """The folder with `train` and `test`. The number of a file is its first trajectory, from its name."""

    kind = "bair"

    def is_data(self, name: str) -> bool:
        """See `Source.is_data`."""
        split, _, file = name.partition("/")
        return split in _SPLITS and _FILE.match(file) is not None

    def plan(self) -> list[SourceShard]:
        """Return all files. See `Source.plan`."""
        shards = []
        for file in self.list_data():
            split, _, name = file.partition("/")
            if match := _FILE.match(name):
                records: int | None = int(match["last"]) - int(match["first"]) + 1
                if records is not None and not 0 < records <= MAX_RECORDS:
                    records = self._count(file)
                shards.append(SourceShard(split, int(match["first"]), file, records))
        return sorted(shards, key=lambda shard: (shard.split, shard.number))

    def _count(self, file: str) -> int | None:
        """Return the number of records of a file; None if it is unknown, and reading the file says why."""
        path = storage.join(self.folder, file)
        try:
            return count_records(path)
        except Exception as error:
            as_bad_episode(error, path)
            return None

    def read(self, shard: SourceShard) -> Iterator[tuple[int, Episode | BadEpisode]]:
        """Yield the episodes of a file. See `Source.read`."""
        for position, columns, _ in read_examples(storage.join(self.folder, shard.file), shard):
            item: Episode | BadEpisode
            try:
                item = columns if isinstance(columns, BadEpisode) else self._episode(columns, shard, position)
            except Exception as error:
                item = as_bad_episode(error, f"{shard.file}, record {position}")
            yield position, item

    def _episode(self, columns: Columns, shard: SourceShard, position: int) -> Episode:
        camera = _CAMERAS.get(self.entry.image_key, self.entry.image_key)
        count = _length(columns, camera)
        kept = [self.form.keep_pixels(_pixels(columns, f"{step}/{camera}/encoded")) for step in range(count)]
        action = _steps(columns, "action", 4, count)
        return make_episode(
            self.entry,
            shard,
            position,
            kept,
            action_meaning="action: 4",
            action=pad_actions(action, count),
            state=_steps(columns, "endeffector_pos", 3, count).astype(np.float32),
        )


def _length(columns: Columns, camera: str) -> int:
    """Return the number of frames of a camera."""
    pattern = re.compile(rf"(\d{{1,6}})/{re.escape(camera)}/encoded")
    found = [match for name in columns if (match := pattern.fullmatch(name))]
    if not found:
        known = {match[1] for name in columns if (match := re.fullmatch(r"\d+/(\w+)/encoded", name))}
        raise BadEpisodeError(f"no camera {camera!r}; the record has {', '.join(sorted(known)) or 'none'}")
    return len(found)


def _pixels(columns: Columns, name: str) -> np.ndarray:
    """Return a frame: the feature holds raw pixels, although its name says `encoded`."""
    data = b"".join(feature_values(columns, name, "bytes_list"))
    if len(data) != np.prod(_SHAPE):
        raise BadEpisodeError(f"feature {name} has {len(data)} bytes, not those of {_SHAPE} raw pixels")
    return np.frombuffer(data, np.uint8).reshape(_SHAPE)


def _steps(columns: Columns, name: str, width: int, count: int) -> np.ndarray:
    """Return the numbers of all steps, (count, width)."""
    rows = [list(feature_values(columns, f"{step}/{name}", "float_list")) for step in range(count)]
    if any(len(row) != width for row in rows):
        raise BadEpisodeError(f"feature {name} has {sorted({len(row) for row in rows})} numbers a step, not {width}")
    return np.array(rows)
