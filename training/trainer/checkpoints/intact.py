"""Finds the newest checkpoint whose content is sound, before anything loads it.

An engine that fails in the midst of loading can't be used again, and its ranks may wait for each other forever. So all ranks
first read the checkpoint's files, each its share, and a damaged checkpoint is passed over while nothing has happened yet. The
price: a resume reads the checkpoint once more, at the speed of SHA-256 on as many cores as there are ranks.
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
    """A run with the checkpoint from which it resumes; None where it starts."""

    @property
    def checkpoint(self) -> Checkpoint | None: ...


R = TypeVar("R", bound=_Resumes)
# Returns why a file of a checkpoint can't be loaded on a device; None where it can.
LooksInto = Callable[[Checkpoint, str, torch.device], CheckResult | None]


def resume_from_intact_checkpoint(
    run: R, processes: Processes, prepare_again: Callable[[Mapping[str, CheckResult]], R], look: LooksInto | None = None
) -> R:
    """Returns the run that resumes from the newest checkpoint with sound content. Call it on all ranks; all get the same one.

    Args:
        run: As prepared.
        processes: Of the run.
        prepare_again: Prepares it without some checkpoints, given by name.
        look: Tries out a file whose bytes are as written.

    Raises:
        ConflictError: No checkpoint of the run can be loaded.
    """
    found: dict[str, CheckResult] = {}
    while run.checkpoint is not None and (verdict := find_damage(run.checkpoint, processes, look)) is not None:
        found[verdict.folder.name] = verdict
        run = prepare_again(found)
    return run


def find_damage(checkpoint: Checkpoint, processes: Processes, look: LooksInto | None = None) -> CheckResult | None:
    """Returns why a checkpoint whose files are all there can't be loaded; None where it can. Reads every file once.

    Call it on all ranks; all get the same answer.
    """
    found = []
    for name in sorted(checkpoint.files)[processes.rank :: processes.world_size]:
        fault = check_content(checkpoint, name) or (look(checkpoint, name, processes.device) if look else None)
        if fault is not None:
            found.append(fault)
    return next((fault for part in processes.gather_objects(found) for fault in part), None)


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Explains what goes wrong while a library loads a checkpoint.

    Raises:
        ShardError: It can't be loaded.
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
    """Returns kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
