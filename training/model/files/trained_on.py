"""Reads what a model's folder says about its training data: splits, held-out fraction, seconds between frames.

An evaluation needs it to tell new episodes from known ones, and a prediction to show a video at the model's frame rate. A
published checkpoint has no such information.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.errors import SourceError
from pipeline.common.json_files import read_json
from pipeline.episodes.naming import TRAINING_SPLIT
from tokenize_offline.clips.sampling import is_held_out
from training.model.files.clip_config import read_recipe
from training.model.files.locate import CLIPS, RECIPE

_SECONDS = "seconds_per_frame"


@dataclass(frozen=True)
class TrainedOn:
    """Known facts about a model's training data.

    Attributes:
        held_out: Fraction of the episodes of split `train` that it never saw; None if unknown.
        splits: Splits that the clips came from.
        seconds_per_frame: Seconds between neighbouring frames of a data set's clips, by name, None if unknown; empty if the
            folder names no data sets.
    """

    held_out: float | None = None
    splits: tuple[str, ...] = (TRAINING_SPLIT,)
    seconds_per_frame: Mapping[str, float | None] = field(default_factory=dict)

    def saw(self, dataset: str, key: str, split: str, held_out: float) -> bool:
        """Returns whether training used clips of an episode, if it held out this fraction of the split `train`."""
        apart = split == TRAINING_SPLIT and is_held_out(dataset, key, held_out)
        return split in self.splits and not apart


def read_trained_on(folder: Path) -> TrainedOn:
    """Reads what a model's local folder says about its training data.

    Raises:
        SourceError: A file has an invalid value or can't be read.
    """
    path = folder / RECIPE
    recipe = read_recipe(path) if path.is_file() else {}
    share = _value(recipe, "clips", "held_out", path)
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1):
        raise SourceError(f"{path} has an invalid value {share!r} for clips.held_out: remove the file, or fix it")
    splits = _value(recipe, "training", "splits", path) or [TRAINING_SPLIT]
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise SourceError(f"{path} has an invalid value {splits!r} for training.splits: remove the file, or fix it")
    return TrainedOn(None if share is None else float(share), tuple(splits), _seconds(folder / CLIPS))


def clips_file(seconds_per_frame: Mapping[str, float | None]) -> bytes:
    """Returns the content of `clips.json`; see `TrainedOn.seconds_per_frame`."""
    text = json.dumps({_SECONDS: dict(seconds_per_frame)}, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _value(recipe: Mapping[str, Any], section: str, key: str, path: Path) -> Any:
    found = recipe.get(section) or {}
    if not isinstance(found, dict):
        raise SourceError(f"{path} has an invalid section {section}: {found!r}. Remove the file, or fix it")
    return found.get(key)


def _seconds(path: Path) -> dict[str, float | None]:
    if not path.is_file():
        return {}
    try:
        found = dict(read_json(str(path))[_SECONDS])
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{path} has no seconds between frames ({error}): remove the file, or fix it") from error
    for name, value in found.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value) and value > 0):
            raise SourceError(f"{path} has an invalid {value!r} seconds between frames of {name}: remove the file, or fix it")
    return found
