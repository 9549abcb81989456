"""The outcome of an ingest: checks whether few enough episodes were left out, and tells the user what to do about them."""

import collections
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.common.errors import MissingEpisodeError, SourceError
from pipeline.common.manifests import ShardManifest, SkippedEpisode, repairable_files
from pipeline.episodes.skipped import SKIPPED_FILE

_log = logging.getLogger(__name__)
_LISTED = 20


@dataclass(frozen=True)
class Outcome:
    """The outcome of ingesting one data set.

    Attributes:
        manifests: Manifests of all shards of the data set, in order, without their entries.
        shards_made: Number of shards that this run made; the others existed already.
        failures: Shard -> why it could not be made.
        seconds: Duration of the work in seconds, without planning.
        ignored: Reason -> number of inputs that were not used, by the plan and by the shards.
        frames_made: Number of frames in the shards that this run made.
    """

    manifests: list[ShardManifest]
    shards_made: int
    failures: dict[str, str]
    seconds: float
    ignored: collections.Counter[str] = field(default_factory=collections.Counter)
    frames_made: int = 0


def log_ignored(dataset: str, ignored: Mapping[str, int]) -> None:
    """Log what was ignored in a data set, one line per reason."""
    for reason, count in sorted(ignored.items()):
        _log.warning("%s: ignored %d: %s", dataset, count, reason)


def check_outcomes(outcomes: Mapping[str, Outcome], max_bad_fraction: float) -> None:
    """Raise `SourceError` if a shard could not be made, or if a data set lost more episodes than allowed.

    Args:
        outcomes: Data set name -> outcome.
        max_bad_fraction: Largest fraction of a data set's episodes that may be left out, from 0 to 1. A lost input counts as
            the number of episodes that it would have held.
    """
    complaints = [_complaint(name, outcome, max_bad_fraction) for name, outcome in outcomes.items()]
    if any(complaints):
        raise SourceError("\n".join(filter(None, complaints)))


def _complaint(name: str, outcome: Outcome, max_bad_fraction: float) -> str:
    """Return what is wrong with an outcome; empty if the losses are allowed, which are then logged."""
    if outcome.failures:
        problems = [f"{shard}: {reason}" for shard, reason in sorted(outcome.failures.items())]
        return f"{name}: {len(problems)} shards could not be made:\n{_listing(problems)}"
    skipped = [episode for manifest in outcome.manifests for episode in manifest.left_out]
    lost = sum(episode.episodes for episode in skipped)
    total = lost + sum(manifest.samples for manifest in outcome.manifests)
    if lost > max_bad_fraction * total:
        return (
            f"{name}: {lost:.7g} of {total:.7g} episodes were left out, more than --max_bad_fraction {max_bad_fraction} "
            f"allows. {_what_to_do(outcome.manifests)}\n{_listing(_by_reason(skipped))}"
        )
    if skipped:
        _log.warning("%s: %.7g of %.7g episodes were left out. %s", name, lost, total, _what_to_do(outcome.manifests))
    return ""


def _by_reason(skipped: Sequence[SkippedEpisode]) -> list[str]:
    """Return one line per reason, the most frequent reason first."""
    places: dict[str, list[str]] = {}
    for episode in skipped:
        places.setdefault(episode.reason, []).append(f"{episode.source_file}, record {episode.source_record}")
    ordered = sorted(places.items(), key=lambda item: -len(item[1]))
    return [f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {reason}" for reason, found in ordered]


def _what_to_do(manifests: Sequence[ShardManifest]) -> str:
    """Say where the skipped episodes are listed, and how to repair those from damaged or missing files."""
    listed = f"{SKIPPED_FILE} next to the shards lists all of them with their reasons"
    files = set().union(*map(repairable_files, manifests))
    if not files:
        return f"{listed}."
    missing = any(episode.kind == MissingEpisodeError.kind for manifest in manifests for episode in manifest.left_out)
    way_out = (
        " If files of an RLDS data set are missing on purpose, --skip_missing uses only the existing ones; choose another "
        "output folder."
        if missing
        else ""
    )
    return (
        f"{listed}. To repair, fetch the {len(files)} damaged or missing files again and rerun the same command; if a repaired "
        f"file has the same size, head and tail as before, add --overwrite.{way_out}"
    )


def _listing(lines: Sequence[str]) -> str:
    more = [f"  and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n".join([f"  {line}" for line in lines[:_LISTED]] + more)
