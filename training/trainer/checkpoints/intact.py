"""The newest checkpoint whose content is sound, found before an engine loads it.

An engine that fails in the midst of loading can't be used again, and its ranks may wait for each other for ever. So all ranks
first read the checkpoint's files, each its share, and a damaged checkpoint is passed over while nothing has happened yet. The
price: a resume reads the checkpoint once more, at the speed of SHA-256 on as many cores as there are ranks.
"""

import logging
from collections.abc import Callable, Mapping

import torch

from training.trainer.checkpoints.loading import in_a_line
from training.trainer.checkpoints.states import Checkpoint, State, Verdict, content_fault
from training.trainer.deepspeed_engine import import_deepspeed, quiet
from training.trainer.setup import Run
from training.distributed import Processes

log = logging.getLogger(__name__)


def sound_run(run: Run, processes: Processes, prepare_again: Callable[[Mapping[str, Verdict]], Run]) -> Run:
    """The run, going on from the newest checkpoint that can be loaded. Call it on all ranks, which all go on from the same.

    Args:
        run: As prepared.
        processes: Of the run.
        prepare_again: Prepares it with some checkpoints passed over, given by name.

    Raises:
        ConflictError: No checkpoint of the run can be loaded.
    """
    found: dict[str, Verdict] = {}
    while run.checkpoint is not None and (verdict := damage(run.checkpoint, processes)) is not None:
        found[verdict.folder.name] = verdict
        run = prepare_again(found)
    return run


def damage(checkpoint: Checkpoint, processes: Processes) -> Verdict | None:
    """Why a checkpoint whose files are all there can't be loaded; None where it can. Call it on all ranks, which all get the
    same answer.

    Reads every file once, and tries whether torch still understands it.
    """
    import_deepspeed(processes.device)
    found = []
    for name in sorted(checkpoint.files)[processes.place.rank :: processes.place.world_size]:
        fault = content_fault(checkpoint, name) or _pickle_fault(checkpoint, name)
        if fault is not None:
            found.append(fault)
    return next((fault for part in processes.gather_objects(found) for fault in part), None)


def _pickle_fault(checkpoint: Checkpoint, name: str) -> Verdict | None:
    if not name.endswith(".pt"):
        return None
    try:
        with quiet():
            # Tensors are mapped, not read.
            torch.load(checkpoint.folder / name, map_location="cpu", mmap=True, weights_only=False)
    except MemoryError:
        raise
    except Exception as error:
        return Verdict(checkpoint.folder, State.DAMAGED, f"torch can't load {name}: {in_a_line(error)}")
    return None
