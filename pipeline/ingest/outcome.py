"""What an ingest did, and whether what it left out is tolerable; what there is to do about it, in words."""

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
    """What an ingest did.

    Attributes:
        records: Of all shards of the data set, in order, without their entries.
        made: How many shards this run made; the others were there.
        failures: Shard -> why it could not be made.
        seconds: That the work took, planning left out.
        ignored: Reason -> how many of what the plan and the shards did not take.
        frames_made: Frames in the shards that this run made.
    """

    records: list[ShardManifest]
    made: int
    failures: dict[str, str]
    seconds: float
    ignored: collections.Counter[str] = field(default_factory=collections.Counter)
    frames_made: int = 0


def log_ignored(dataset: str, ignored: Mapping[str, int]) -> None:
    """Say what of a data set was not taken, a line a reason."""
    for reason, count in sorted(ignored.items()):
        _log.warning("%s: passed over %d: %s", dataset, count, reason)


def check_outcomes(outcomes: Mapping[str, Outcome], max_bad_fraction: float) -> None:
    """Raise `SourceError` where shards could not be made, or more of a data set's episodes were left out than is tolerated.

    Args:
        outcomes: By the name of the data set.
        max_bad_fraction: How many of a data set's episodes may be left out, from 0 to 1; an input weighs by the episodes that
            it would have held.
    """
    complaints = [_complaint(name, outcome, max_bad_fraction) for name, outcome in outcomes.items()]
    if any(complaints):
        raise SourceError("\n".join(filter(None, complaints)))


def _complaint(name: str, outcome: Outcome, max_bad_fraction: float) -> str:
    """What is wrong with an outcome; empty where it is tolerable, of which the log then tells."""
    if outcome.failures:
        problems = [f"{shard}: {reason}" for shard, reason in sorted(outcome.failures.items())]
        return f"{name}: {len(problems)} shards could not be made:\n{_listing(problems)}"
    left_out = [item for record in outcome.records for item in record.left_out]
    lost = sum(item.episodes for item in left_out)
    total = lost + sum(record.samples for record in outcome.records)
    if lost > max_bad_fraction * total:
        return (
            f"{name}: {lost:.7g} of {total:.7g} episodes were left out, more than --max_bad_fraction {max_bad_fraction} "
            f"allows. {_what_to_do(outcome.records)}\n{_listing(_by_reason(left_out))}"
        )
    if left_out:
        _log.warning("%s: %.7g of %.7g episodes were left out. %s", name, lost, total, _what_to_do(outcome.records))
    return ""


def _by_reason(left_out: Sequence[SkippedEpisode]) -> list[str]:
    """A line for every reason, the most frequent one first."""
    places: dict[str, list[str]] = {}
    for item in left_out:
        places.setdefault(item.reason, []).append(f"{item.source_file}, record {item.source_record}")
    ordered = sorted(places.items(), key=lambda known: -len(known[1]))
    return [f"{of[0]}{f' and {len(of) - 1} more' if len(of) > 1 else ''}: {reason}" for reason, of in ordered]


def _what_to_do(records: Sequence[ShardManifest]) -> str:
    """Where left out episodes are listed, and what to do about those that another copy of their file may have."""
    listed = f"{SKIPPED_FILE} beside the shards lists all of them with their reasons"
    files = set().union(*map(repairable_files, records))
    if not files:
        return f"{listed}."
    missing = any(item.kind == MissingEpisodeError.kind for record in records for item in record.left_out)
    way_out = (
        " Where files of an RLDS data set are missing on purpose, --skip_missing takes those that are there, into another "
        "output folder."
        if missing
        else ""
    )
    return (
        f"{listed}. Where {len(files)} damaged or missing files are fetched again, the same command makes their shards anew; "
        f"a file whose size and both ends are as before needs --overwrite.{way_out}"
    )


def _listing(lines: Sequence[str]) -> str:
    more = [f"  and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n".join([f"  {line}" for line in lines[:_LISTED]] + more)
