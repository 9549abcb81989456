"""The state of a training engine, brought to a checkpoint and back by all ranks of a run.

The same number of processes loads its own parts, bit for bit. Another number goes through a universal checkpoint, which is
made on the spot and removed again: time and disk space at a resume, none at a save.

All ranks share the work of taking the SHA-256s of what they wrote, which is in the page cache then. The files are torch's,
so they are pickles, as DeepSpeed writes them: a run reads its own folder only, never an input.
"""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.processes.child_processes import Child
from training.trainer.checkpoints.states import Checkpoint, RunProgress, sealed, tag
from training.trainer.checkpoints.files import LATEST_NAME, UNIVERSAL, files_of, mark_complete, partial, prune, put_in_place, remove_leftovers
from training.trainer.deepspeed_engine import quiet
from training.distributed import Processes

log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, engine: Any, processes: Processes, progress: RunProgress, keep: int, keep_every: int) -> None:
    """Write a checkpoint and remove those that are not to be kept. Call it on all ranks.

    Args:
        folder: Of all checkpoints; every rank must see the same one.
        engine: DeepSpeed's.
        processes: Of the run.
        progress: Of the run.
        keep: How many of the newest stay.
        keep_every: Those of a multiple of this many steps stay for good; 0 keeps none so.
    """
    made = partial(folder / tag(progress.step))
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        # First of all, since a disk may be full of them.
        remove_leftovers(folder)
    processes.barrier()
    with quiet():
        engine.save_checkpoint(str(folder), tag=made.name, save_latest=False)
    processes.barrier()
    digests = _sealed(made, processes)
    if processes.is_first:
        mark_complete(made, progress, digests)
        put_in_place(made, folder / tag(progress.step))
        storage.write_bytes(str(folder / LATEST_NAME), tag(progress.step).encode())
        prune(folder, keep, keep_every, progress.step)


def _sealed(folder: Path, processes: Processes) -> dict[str, str]:
    """SHA-256s of a checkpoint's files, which all ranks bring to disk together. Call it on all ranks."""
    names = processes.gather_objects(files_of(folder) if processes.is_first else None)[0] or []
    digests = {}
    for name in names[processes.place.rank :: processes.place.world_size]:
        try:
            digests[name] = sealed(folder / name)
        except OSError as error:
            # A network disk may show this node the file later; rank 0 sees it, or fails with the true reason.
            log.debug("%s can't be read here (%s)", folder / name, error)
    return {name: digest for part in processes.gather_objects(digests) for name, digest in part.items()}


def load_checkpoint(checkpoint: Checkpoint, engine: Any, processes: Processes) -> None:
    """Restore parameters and optimizer. Call it on all ranks, with an engine configured by `loading_config`.

    Raises:
        ShardError: The checkpoint can't be loaded, or one of another number of processes could not be converted.
    """
    folder = checkpoint.folder
    settings = [_settings(group) for group in engine.optimizer.param_groups]
    if needs_conversion(checkpoint, processes.place.world_size, engine.zero_optimization_stage()):
        folder = checkpoint.folder.with_name(UNIVERSAL + checkpoint.folder.name)
        if processes.is_first:
            _convert(checkpoint.folder, folder)
        processes.barrier()
    _load(checkpoint.folder, folder, engine)
    # DeepSpeed 0.19 gives all groups of ZeRO-3 the first one's hyper-parameters, and all parameters one and the same step
    # tensor, which AdamW then counts up once per parameter.
    for group, known in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(known)
    _separate_steps(engine.basic_optimizer)
    processes.barrier()
    if processes.is_first and folder != checkpoint.folder:
        shutil.rmtree(folder)
        (folder.parent / "latest_universal").unlink(missing_ok=True)


def _load(original: Path, folder: Path, engine: Any) -> None:
    """Let the engine load a folder, that of a checkpoint or its conversion."""
    try:
        with quiet():
            loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    except (MemoryError, torch.OutOfMemoryError, dist.DistError):
        raise
    except Exception as error:
        log.debug("%s can't be loaded", folder, exc_info=error)
        raise ShardError(_unloadable(original, in_a_line(error))) from error
    if loaded is None:
        # DeepSpeed's way to say that it found no file to load; the engine has fresh weights still.
        raise ShardError(_unloadable(original, "DeepSpeed finds none of its files there"))


def _unloadable(folder: Path, reason: str) -> str:
    return (
        f"{folder} can't be loaded ({reason}): take it out of {folder.parent} and run the same command again, which goes on "
        "from the one before it"
    )


def in_a_line(error: Exception) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def needs_conversion(checkpoint: Checkpoint, world_size: int, zero_stage: int) -> bool:
    """Whether the parts of a checkpoint don't fit this number of processes; without ZeRO there are no parts."""
    return zero_stage > 0 and checkpoint.progress.world_size != world_size


def loading_config(checkpoint: Checkpoint | None, world_size: int, zero_stage: int) -> dict[str, Any]:
    """What DeepSpeed's configuration must say for `load_checkpoint`."""
    if checkpoint is None or not needs_conversion(checkpoint, world_size, zero_stage):
        return {}
    return {"checkpoint": {"load_universal": True}}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "step")}


def _separate_steps(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a step counter of its own, on the device where its kind of optimizer wants it."""
    for parameter, state in optimizer.state.items():
        if "step" in state:
            device = parameter.device if optimizer.defaults["fused"] else "cpu"
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(device, copy=True)


def _convert(source: Path, target: Path) -> None:
    """Write a copy of a checkpoint that any number of processes can load."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    options = ["--input_folder", source, "--output_folder", target, "--inject_missing_state"]
    log.info("%s was written by another number of processes: converting it", source)
    with Child([*command, *map(str, options)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        _, messages = process.communicate()
    if process.returncode:
        reason = messages.strip().splitlines()[-1:] or ["no reason given"]
        raise ShardError(f"{source} can't be converted to another number of processes: {reason[0]}")
