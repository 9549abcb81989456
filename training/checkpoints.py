"""Checkpoints of a run: written by all ranks, complete or not there, the newest kept.

A checkpoint is a folder `step-00001000` of DeepSpeed's files. The last thing written into it is `complete.json`, which lists
all files with their sizes; a folder without it, or with a file that is missing or short, was cut off and is never picked.
`latest`, which DeepSpeed's own tools read, moves after that.

The files are torch's, so they are pickles, as DeepSpeed writes them: a run reads its own folder only, never an input.
"""

import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import ConflictError
from training.engine import quiet
from training.processes import Processes

COMPLETE_NAME = "complete.json"
_LATEST = "latest"
_TAG = re.compile(r"step-(\d{8,})")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run had come.

    Attributes:
        step: Steps done.
        world_size: Processes that did them.
        loss_totals: Running sum of losses of every rank since the last line of metrics.
        loss_steps: Steps in these sums.
    """

    step: int
    world_size: int
    loss_totals: list[float]
    loss_steps: int

    def loss_total(self, rank: int, world_size: int) -> float:
        """The running sum that rank `rank` of `world_size` goes on from."""
        if world_size == self.world_size:
            return self.loss_totals[rank]
        return sum(self.loss_totals) / self.world_size


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk.

    Attributes:
        folder: Where it lies.
        progress: Of the run when it was written.
    """

    folder: Path
    progress: Progress


def tag(step: int) -> str:
    """Name of the checkpoint's folder after `step` steps."""
    return f"step-{step:08d}"


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, or None."""
    for name in reversed(_tags(folder)):
        try:
            return read_checkpoint(folder / name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s was cut short and is passed over (%s)", folder / name, error)
    return None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's marker and compare the files with it.

    Raises:
        OSError: The marker or a file is missing.
        ValueError: A file is of another size, or the marker is damaged.
    """
    marker = json.loads((folder / COMPLETE_NAME).read_bytes())
    for name, size in marker["files"].items():
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes of {size}")
    return Checkpoint(folder, Progress(**marker["progress"]))


def _tags(folder: Path) -> list[str]:
    """Names of all checkpoint folders, by step, whole or not."""
    if not folder.is_dir():
        return []
    matches = filter(None, (_TAG.fullmatch(entry.name) for entry in folder.iterdir()))
    return [match[0] for match in sorted(matches, key=lambda match: int(match[1]))]


def save_checkpoint(folder: Path, engine: Any, processes: Processes, progress: Progress, keep: int) -> None:
    """Write a checkpoint and remove all but the newest `keep`. Call it on all ranks.

    Args:
        folder: Of all checkpoints; every rank must see the same one.
        engine: DeepSpeed's.
        processes: Of the run.
        progress: Of the run.
        keep: How many stay.
    """
    name = tag(progress.step)
    if processes.is_first:
        # Left over from a run that was killed here, or from before it was set back to an older checkpoint.
        shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    processes.barrier()
    with quiet():
        engine.save_checkpoint(str(folder), tag=name, save_latest=False)
    processes.barrier()
    if processes.is_first:
        mark_complete(folder / name, progress)
        storage.write_bytes(str(folder / _LATEST), name.encode())
        prune(folder, keep)


def mark_complete(folder: Path, progress: Progress) -> None:
    """Bring all files of a checkpoint to disk, then list them in its marker."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = path.stat().st_size
    marker = {"progress": asdict(progress), "files": files}
    storage.write_bytes(str(folder / COMPLETE_NAME), json.dumps(marker, indent=1).encode())


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` whole checkpoints, and all that were cut short."""
    whole = [name for name in _tags(folder) if (folder / name / COMPLETE_NAME).exists()]
    for name in set(_tags(folder)) - set(whole[-keep:]):
        # The marker goes first: a removal that is cut short must not leave what looks whole.
        (folder / name / COMPLETE_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder / name)


def load_checkpoint(checkpoint: Checkpoint, engine: Any) -> None:
    """Restore parameters and optimizer. Call it on all ranks."""
    with quiet():
        engine.load_checkpoint(str(checkpoint.folder.parent), tag=checkpoint.folder.name)


def require_same_world(checkpoint: Checkpoint, world_size: int) -> None:
    """Refuse a checkpoint of another number of processes.

    Raises:
        ConflictError: It was written by another number.
    """
    made = checkpoint.progress.world_size
    if made != world_size:
        raise ConflictError(
            f"{checkpoint.folder} was written by {made} processes and this run has {world_size}: start {made} processes"
        )
