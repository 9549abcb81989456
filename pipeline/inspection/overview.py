"""What a data set of episode shards holds, as facts: made of its index and its ledger alone, so no shard is read.

Rates, resolutions and instructions are counted rather than averaged, since data sets mix them.
"""

import collections
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.episodes.quality import COLUMNS

_LISTED = 8
_EXAMPLE_LENGTH = 160


@dataclass(frozen=True)
class Overview:
    """Facts of one data set.

    Attributes:
        episodes: Rows of the index.
        frames: Of all episodes.
        hours: Of the episodes whose rate is known; None where none is.
        bytes: Of all samples.
        lengths: Frames of every episode, (E,) int.
        resolutions: `height x width` -> episodes, the most frequent first; rates, cameras and splits likewise.
        rates: Hz -> episodes.
        cameras: Camera -> episodes.
        splits: Split -> episodes.
        language: Facts of the instructions, see `language_facts`.
        quality: Column -> values of all episodes that have one, (E',) float; empty where it was not measured.
        copies: Episodes whose frames are those of another one, byte for byte; None where that was not measured.
        left_out: (kind, reason) -> places in the source.
    """

    episodes: int
    frames: int
    hours: float | None
    bytes: int
    lengths: np.ndarray
    resolutions: dict[str, int]
    rates: dict[str, int]
    cameras: dict[str, int]
    splits: dict[str, int]
    language: dict[str, Any]
    quality: dict[str, np.ndarray]
    copies: int | None
    left_out: dict[tuple[str, str], list[str]]

    def as_dict(self) -> dict[str, Any]:
        """The facts in short, ready for JSON."""
        return {
            "episodes": self.episodes,
            "frames": self.frames,
            "hours": None if self.hours is None else round(self.hours, 4),
            "bytes": self.bytes,
            "frames_of_episode": _quantiles(self.lengths),
            "resolutions": _most(self.resolutions),
            "rates_hz": _most(self.rates),
            "cameras": _most(self.cameras),
            "language": self.language,
            "quality": {name: _quantiles(values) for name, values in self.quality.items()},
            "copies": self.copies,
            "left_out": dict(collections.Counter(kind for (kind, _), places in self.left_out.items() for _ in places)),
        }


@dataclass(frozen=True)
class Inspected:
    """What was found in one folder of shards.

    Attributes:
        folder: The folder.
        splits: Split -> shards, samples, frames, bytes, episodes left out.
        faults: What is wrong with its shards, a sentence each.
        overview: Facts of the episodes; None for token shards, and where there is no index.
        kind: Of the shards: `episodes` or `tokens`.
    """

    folder: str
    splits: dict[str, dict[str, int]]
    faults: list[str]
    overview: Overview | None
    kind: Literal["episodes", "tokens"] = "episodes"

    def as_dict(self) -> dict[str, Any]:
        """What was found, ready for JSON."""
        facts = {} if self.overview is None else self.overview.as_dict()
        return {"folder": self.folder, "kind": self.kind, "splits": self.splits, "faults": len(self.faults), **facts}


def overview(index: pa.Table, ledger: pa.Table | None) -> Overview:
    """The facts of a data set.

    Args:
        index: See `pipeline.episodes.index.read_index`; columns of quality may be absent.
        ledger: See `pipeline.episodes.skipped.read_skipped`; None where there is none.
    """
    lengths = index["num_frames"].to_numpy().astype(np.int64)
    rates = np.array([rate or np.nan for rate in index["rate"].to_pylist()], float)
    known = np.isfinite(rates)
    sizes = [
        f"{height} x {width}" for height, width in zip(*(index[side].to_pylist() for side in ("height", "width")), strict=True)
    ]
    left_out: dict[tuple[str, str], list[str]] = {}
    for row in [] if ledger is None else ledger.select(["kind", "reason", "source_file", "source_record"]).to_pylist():
        places = left_out.setdefault((row["kind"], row["reason"]), [])
        places.append(f"{row['source_file']}, record {row['source_record']}")
    return Overview(
        episodes=index.num_rows,
        frames=int(lengths.sum()),
        hours=float((lengths[known] / rates[known]).sum() / 3600) if known.any() else None,
        bytes=sum(index["size"].to_pylist()),
        lengths=lengths,
        resolutions=_counted(sizes),
        rates=_counted("unknown" if np.isnan(rate) else f"{rate:g}" for rate in rates.tolist()),
        cameras=_counted(index["camera"].to_pylist()),
        splits=_counted(index["split"].to_pylist()),
        language=language_facts(index["language"].to_pylist()),
        quality=_quality(index),
        copies=_copies(index),
        left_out=left_out,
    )


def language_facts(texts: list[str]) -> dict[str, Any]:
    """What can be said of instructions without guessing: which script they are written in, not which language.

    Args:
        texts: One an episode, empty where it has none.

    Returns:
        `share` of the episodes that have one, `distinct` texts, `words` (median of a text), `scripts` (script -> distinct texts
        with most letters in it) and the most frequent `examples`, cut to 160 characters.
    """
    counts = collections.Counter(text.strip() for text in texts if text.strip())
    scripts = collections.Counter(_script(text) for text in counts)
    return {
        "share": round(counts.total() / len(texts), 4) if texts else 0.0,
        "distinct": len(counts),
        "words": float(np.median([len(text.split()) for text in counts])) if counts else None,
        "scripts": dict(scripts.most_common(_LISTED)),
        "examples": [
            text[:_EXAMPLE_LENGTH] for text, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]
        ],
    }


def _script(text: str) -> str:
    """The script that most letters of a text belong to, by Unicode's names for them: `Latin`, `Cyrillic`, `Cjk`, .."""
    letters = collections.Counter(unicodedata.name(letter, "other").split()[0] for letter in text[:1000] if letter.isalpha())
    return letters.most_common(1)[0][0].capitalize() if letters else "None"


def _quality(index: pa.Table) -> dict[str, np.ndarray]:
    names = [name for name in COLUMNS if name in index.column_names and not pa.types.is_string(index.schema.field(name).type)]
    values = {name: index[name].drop_null().to_numpy().astype(float) for name in names if name != "measured_frames"}
    return {name: found for name, found in values.items() if found.size}


def _copies(index: pa.Table) -> int | None:
    if "content_hash" not in index.column_names or index["content_hash"].null_count == index.num_rows:
        return None
    hashes = index["content_hash"].drop_null()
    return len(hashes) - len(hashes.unique())


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(collections.Counter(values).most_common())


def _most(counts: dict[str, int]) -> dict[str, int]:
    return dict(list(counts.items())[:_LISTED])


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    low, median, high = (round(float(value), 4) for value in (values.min(), np.median(values), values.max()))
    return {"least": low, "median": median, "most": high}
