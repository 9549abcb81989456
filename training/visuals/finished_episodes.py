"""Marks the finished episodes of a prediction, so that the same command keeps them after a kill.

The mark is a file in the episode's folder, written after its pages and removed when the overview of all episodes is written.
It holds a fingerprint of everything that decides the prediction, and the episode's card on the overview.
"""

import dataclasses
import json
from typing import Any

from pipeline.common import storage
from pipeline.common.json_files import parse_json
from training.visuals.gallery import OverviewCard

_MARK = "finished.json"


def keep(folder: str, fingerprint: str, card: OverviewCard) -> None:
    """Marks an episode's folder as finished."""
    text = json.dumps({"fingerprint": fingerprint, "card": dataclasses.asdict(card)}, ensure_ascii=False)
    storage.write_bytes(storage.join(folder, _MARK), text.encode())


def find(folder: str, fingerprint: str) -> OverviewCard | None:
    """Returns the card of a finished episode; None if it is not finished or has another fingerprint."""
    try:
        found: Any = parse_json(storage.read_bytes(storage.join(folder, _MARK)))
        return OverviewCard(**found["card"]) if found["fingerprint"] == fingerprint else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def clear(folder: str) -> None:
    """Removes the mark: the whole prediction is finished, or this episode will be predicted again."""
    storage.remove(storage.join(folder, _MARK))
