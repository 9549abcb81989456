"""Reads Something-Something-v2: short videos of hands, each with a class and a caption, in both label layouts.

`configs/something_something_v2_classes.yaml` lists the names of the classes for pre-training, because copies of the data may
number them differently. The key of an episode contains the number of its video, so another choice of classes doesn't change it.
"""

import csv
import difflib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.json_files import read_json
from pipeline.common.manifests import fingerprint
from pipeline.config.catalog import DatasetEntry, something_classes
from pipeline.episodes.frames import FrameForm
from pipeline.sources.base import SourceShard
from pipeline.sources.video.source import MAX_TEXT, VideoSource

ALL_CLASSES = "all"
_SPLITS = ("train", "validation", "test")
# Layouts of the label files: next to the videos, or in a separate folder.
_LAYOUTS = ("something-something-v2-{}", "labels/{}")
_LABEL_FILES = (*(f"{name}.json" for name in ("labels", *_SPLITS)), "test-answers.csv")
_OTHER_CLASSES = "videos of classes that are not wanted (--classes)"
_UNLABELLED = "videos that the label files don't name"
_LONGEST_ID = 12
_PLACE = re.compile(r"\[[^\]]*\]")


def _layout(folder: str) -> str | None:
    return next((layout for layout in _LAYOUTS if storage.exists(storage.join(folder, layout.format("train.json")))), None)


def is_something(folder: str) -> bool:
    """Whether a folder holds the label files of Something-Something-v2."""
    return _layout(folder) is not None


class SomethingSource(VideoSource):
    """The folder with the label files, and the videos at any depth.

    Videos without a label are used only with `all`; these are the test videos if the answer file is missing.

    Attributes:
        classes: Sorted names of the chosen classes; None takes every video.
    """

    kind = "something-something-v2"

    def __init__(self, folder: str, entry: DatasetEntry, form: FrameForm, classes: Sequence[str] | None = None) -> None:
        """See `Source`.

        Args:
            folder: Folder of the label files.
            entry: Catalog entry of the data set.
            form: The form in which frames are stored.
            classes: Templates without brackets, or only `all`; by default the classes for pre-training.

        Raises:
            ConfigError: A class doesn't exist; the message names the closest one.
            SourceError: The file of classes is invalid.
        """
        super().__init__(folder, entry, form)
        if classes is not None and list(classes) == [ALL_CLASSES]:
            self.classes = None
        elif classes is None:
            self.classes = something_classes()
        else:
            self.classes = tuple(sorted(set(classes)))
            self._check_classes(self.classes)

    def inputs(self) -> dict[str, Any]:
        """See `Source.inputs`. The classes become their number and a hash, because every manifest stores them."""
        chosen = ALL_CLASSES if self.classes is None else f"{len(self.classes)}, {fingerprint({'classes': self.classes})}"
        return {**super().inputs(), "classes": chosen}

    def is_metadata(self, name: str) -> bool:
        """See `Source.is_metadata`."""
        return name in {layout.format(file) for layout in _LAYOUTS for file in _LABEL_FILES}

    def plan(self) -> list[SourceShard]:
        """Return the videos of the chosen classes, including missing ones. See `Source.plan`."""
        files = {storage.basename(name).rpartition(".")[0]: name for name in self.list_data()}
        self.filtered.clear()
        answers = self._answers()
        labelled = set()
        shards = {}
        for split in _SPLITS:
            for number, template, caption in self._items(split):
                labelled.add(files.get(number))
                name = (template or answers.get(number, "")).replace("[", "").replace("]", "")
                if self.classes is not None and name not in self.classes:
                    self.filtered[split] += 1
                    continue
                place = (split, int(number))
                if place in shards:
                    raise SourceError(f"{self._label_file(split + '.json')} has the video {number} twice; remove one of them")
                shards[place] = SourceShard(*place, files.get(number, f"{number}.webm"), text=(caption or name)[:MAX_TEXT])
        for reason, count in ((_OTHER_CLASSES, self.filtered.total()), (_UNLABELLED, len(set(files.values()) - labelled))):
            if count:
                self.ignored[reason] = count
        return [shards[place] for place in sorted(shards)]

    def _label_file(self, name: str) -> str:
        return storage.join(self.folder, (_layout(self.folder) or _LAYOUTS[0]).format(name))

    def _items(self, split: str) -> Iterator[tuple[str, str, str]]:
        """Yield (id, template, caption) of each video of a split; template and caption are empty if unknown."""
        path = self._label_file(split + ".json")
        if not storage.exists(path):
            return
        items = _read_json(path)
        if not isinstance(items, list):
            raise SourceError(f"{path} is not a list of videos. Fetch it again")
        for position, item in enumerate(items):
            video = item if isinstance(item, dict) else {}
            number = str(video.get("id", ""))
            template, caption = (value if isinstance(value := video.get(key), str) else "" for key in ("template", "label"))
            if not _is_id(number):
                raise SourceError(f"{path}, item {position}: the id {number[:50]!r} is not a number. Fetch the file again")
            yield number, template, caption or _filled(template, video.get("placeholders"))

    def _answers(self) -> dict[str, str]:
        """Return id -> template of the test videos; empty if the data set has no answers."""
        path = self._label_file("test-answers.csv")
        if not storage.exists(path):
            return {}
        try:
            rows = list(csv.reader(io.StringIO(storage.read_bytes(path).decode("utf-8-sig"), newline=""), delimiter=";"))
        except (ValueError, csv.Error) as error:
            raise SourceError(f"{path} is not a table of `id;template`: {error}. Fetch it again") from error
        return {row[0]: row[1] for row in rows if len(row) == 2}

    def _check_classes(self, classes: Sequence[str]) -> None:
        path = self._label_file("labels.json")
        known = list(something_classes())
        if storage.exists(path):
            table = _read_json(path)
            if not isinstance(table, dict):
                raise SourceError(f"{path} is not a table of classes and their numbers. Fetch it again")
            known = list(table)
        for name in classes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ConfigError(f"--classes: {path} has no class {name!r}{hint}; `{ALL_CLASSES}` takes all classes")


def _filled(template: str, placeholders: Any) -> str:
    """Fill the placeholders into a template, such as `[something]`; empty if they are unknown."""
    between = _PLACE.split(template)
    if not isinstance(placeholders, list) or [*map(type, placeholders)] != [str] * (len(between) - 1):
        return ""
    return "".join(part for pair in itertools.zip_longest(between, placeholders, fillvalue="") for part in pair)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _LONGEST_ID


def _read_json(path: str) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise SourceError(f"{path} is not JSON: {error}. Fetch it again") from error
