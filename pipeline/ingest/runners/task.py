"""A task, as every engine gets it: units of work that have their source files in common, done by one worker in one pass."""

from collections.abc import Sequence

from pipeline.common.manifests import find_done
from pipeline.ingest.work_unit import Part, leave_failure, run_parts

Task = Sequence[Part]


def run_task(task: Task) -> None:
    """Make the shards of a task, but for those that an earlier attempt of the same run has published.

    Engines try again what was lost with a machine, and may have two machines do the same at once where they took one for
    lost; both publish the same bytes.
    """
    run_parts([part for part in task if not _is_published(part)])


def give_up(task: Task, reason: str) -> None:
    """Leave word in the output folders that a task could not be done."""
    for part in task:
        if not _is_published(part):
            leave_failure(part.folder, part.unit.shard, reason)


def _is_published(part: Part) -> bool:
    return find_done(part.folder, part.unit.shard, part.unit.inputs) is not None
