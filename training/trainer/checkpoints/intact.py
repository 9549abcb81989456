"""Finds the newest checkpoint with intact content before anything loads it.

An engine that fails while loading can't be used again, and its ranks may wait for each other forever. So all ranks first read
their share of the checkpoint's files and skip a damaged checkpoint while nothing has changed yet. The cost: a resume reads the
checkpoint once more, at the speed of SHA-256 on one core per rank.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from pipeline.common.errors import ShardError
from training.distributed import Processes
from training.trainer.checkpoints.states import Checkpoint, CheckResult, check_content

log = logging.getLogger(__name__)


class _Resumes(Protocol):
    """A run with the checkpoint that it resumes from; None for a new run."""

    @property
    def checkpoint(self) -> Checkpoint | None: ...


R = TypeVar("R", bound=_Resumes)
# Returns why a file of a checkpoint can't be loaded on a device; None if it can.
FileCheck = Callable[[Checkpoint, str, torch.device], CheckResult | None]


def resume_from_intact_checkpoint(
    run: R, processes: Processes, prepare_again: Callable[[Mapping[str, CheckResult]], R], look: FileCheck | None = None
) -> R:
    """Returns the run, resuming from its newest intact checkpoint. Call it on all ranks; all get the same one.

    Args:
        run: The prepared run.
        processes: Processes of the run.
        prepare_again: Prepares the run without the damaged checkpoints, given by name.
        look: Tries to load a file whose bytes are unchanged.

    Raises:
        ConflictError: No checkpoint of the run can be loaded.
    """
    found: dict[str, CheckResult] = {}
    while run.checkpoint is not None and (result := find_damage(run.checkpoint, processes, look)) is not None:
        found[result.folder.name] = result
        run = prepare_again(found)
    return run


def find_damage(checkpoint: Checkpoint, processes: Processes, look: FileCheck | None = None) -> CheckResult | None:
    """Reads every file of a checkpoint once and returns why it can't be loaded; None if it can.

    Call it on all ranks; all get the same answer.
    """
    found = []
    for name in sorted(checkpoint.files)[processes.rank :: processes.world_size]:
        fault = check_content(checkpoint, name) or (look(checkpoint, name, processes.device) if look else None)
        if fault is not None:
            found.append(fault)
    return next((fault for faults in processes.gather_objects(found) for fault in faults), None)


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turns the errors of a library that loads a checkpoint into one clear error.

    Raises:
        ShardError: The checkpoint can't be loaded.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, dist.DistError):
        raise
    except Exception as error:
        # Readers raise errors of many types.
        log.debug("%s can't be loaded", folder, exc_info=error)
        raise ShardError(
            f"{folder} can't be loaded ({one_line(error)}): move it out of {folder.parent} and run the same command again, which "
            "resumes from the checkpoint before it"
        ) from error


def one_line(error: Exception) -> str:
    """Returns the type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
