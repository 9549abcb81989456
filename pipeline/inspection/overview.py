"""Statistics of a data set of episode shards, from its index and its table of skipped episodes; no shard is read.

Rates, resolutions and instructions are counted, not averaged, because data sets mix them.
"""

import collections
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import pyarrow as pa

from pipeline.episodes.quality import COLUMNS

_LISTED = 8
_EXAMPLE_LENGTH = 160


class LanguageStatistics(TypedDict):
    """Statistics of instructions: see `language_statistics`."""

    share: float
    distinct: int
    words: float | None
    scripts: dict[str, int]
    examples: list[str]


@dataclass(frozen=True)
class Overview:
    """Statistics of one data set.

    Attributes:
        episodes: Number of rows in the index.
        frames: Number of frames in all episodes.
        hours: Duration of the episodes with a known rate, in hours; None if no rate is known.
        bytes: Size of all samples in bytes.
        lengths: Number of frames of each episode, (E,) int.
        resolutions: `height x width` -> number of episodes, the most frequent first.
        rates: Rate in Hz -> number of episodes, the most frequent first.
        cameras: Camera -> number of episodes, the most frequent first.
        splits: Split -> number of episodes, the most frequent first.
        language: Statistics of the instructions, see `language_statistics`.
        quality: Quality column -> values of all episodes that have one, (E',) float; empty if quality was not measured.
        copies: Number of episodes whose frames equal those of another episode byte for byte; None if not measured.
        left_out: (kind, reason) -> places of the skipped episodes in the source.
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
    language: LanguageStatistics
    quality: dict[str, np.ndarray]
    copies: int | None
    left_out: dict[tuple[str, str], list[str]]

    def as_dict(self) -> dict[str, Any]:
        """Return a short form of the statistics for JSON."""
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
class FolderReport:
    """The result of inspecting one folder of shards.

    Attributes:
        folder: Path or URL of the folder.
        splits: Split -> its number of shards, samples, frames, bytes and skipped episodes.
        faults: Faults of the shards, one sentence each.
        overview: Statistics of the episodes; None for token shards, and if there is no index.
        kind: Kind of the shards: `episodes` or `tokens`.
    """

    folder: str
    splits: dict[str, dict[str, int]]
    faults: list[str]
    overview: Overview | None
    kind: Literal["episodes", "tokens"] = "episodes"

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        statistics = {} if self.overview is None else self.overview.as_dict()
        return {"folder": self.folder, "kind": self.kind, "splits": self.splits, "faults": len(self.faults), **statistics}


def overview(index: pa.Table, skipped: pa.Table | None) -> Overview:
    """Compute the statistics of a data set.

    Args:
        index: Table from `pipeline.episodes.index.read_index`; the quality columns may be absent.
        skipped: Table from `pipeline.episodes.skipped.read_skipped`; None if the data set has none.
    """
    lengths = index["num_frames"].to_numpy().astype(np.int64)
    rates = np.array([rate or np.nan for rate in index["rate"].to_pylist()], float)
    known = np.isfinite(rates)
    sizes = [
        f"{height} x {width}" for height, width in zip(*(index[side].to_pylist() for side in ("height", "width")), strict=True)
    ]
    left_out: dict[tuple[str, str], list[str]] = {}
    for row in [] if skipped is None else skipped.select(["kind", "reason", "source_file", "source_record"]).to_pylist():
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
        language=language_statistics(index["language"].to_pylist()),
        quality=_quality(index),
        copies=_copies(index),
        left_out=left_out,
    )


def language_statistics(texts: list[str]) -> LanguageStatistics:
    """Compute statistics of the instructions. The language isn't guessed; the script is known from the letters.

    Args:
        texts: Instruction of each episode; empty if it has none.

    Returns:
        `share` of episodes with an instruction, number of `distinct` texts, median number of `words`, `scripts` (script ->
        number of distinct texts mostly written in it) and the most frequent `examples`, cut to 160 characters.
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
    """Return the script of most letters of a text, by their Unicode names: `Latin`, `Cyrillic`, `Cjk`, .."""
    letters = collections.Counter(unicodedata.name(letter, "other").split()[0] for letter in text[:1000] if letter.isalpha())
    return letters.most_common(1)[0][0].capitalize() if letters else "None"


def _quality(index: pa.Table) -> dict[str, np.ndarray]:
    names = [name for name in COLUMNS if name in index.column_names and not pa.types.is_string(index.schema.field(name).type)]
    columns = {name: index[name].drop_null().to_numpy().astype(float) for name in names if name != "measured_frames"}
    return {name: values for name, values in columns.items() if values.size}


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
