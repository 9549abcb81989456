"""Episodes of a prediction that is not finished: what a killed command has published already, for the same command to keep.

A mark is written into an episode's folder after its pages, and goes when the overview of all is there. It holds the fingerprint
of all that decides the prediction, and what the overview shows of the episode.
"""

import dataclasses
import json
from typing import Any

from pipeline.common import storage
from pipeline.common.json_files import parse_json
from training.visuals.gallery import Card

_MARK = "finished.json"


def keep(folder: str, fingerprint: str, card: Card) -> None:
    """Mark an episode's folder as whole."""
    text = json.dumps({"fingerprint": fingerprint, "card": dataclasses.asdict(card)}, ensure_ascii=False)
    storage.write_bytes(storage.join(folder, _MARK), text.encode())


def find(folder: str, fingerprint: str) -> Card | None:
    """What the overview shows of an episode that is there already; None where it isn't, or is another."""
    try:
        found: Any = parse_json(storage.read_bytes(storage.join(folder, _MARK)))
        return Card(**found["card"]) if found["fingerprint"] == fingerprint else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def clear(folder: str) -> None:
    """Remove the mark: the prediction as a whole is finished, or this episode is about to be made anew."""
    storage.remove(storage.join(folder, _MARK))
