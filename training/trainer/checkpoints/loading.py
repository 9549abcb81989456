"""Saves and restores the state of DeepSpeed's engine on all ranks.

The same number of processes loads its own parts, bit for bit. Another number of processes converts the checkpoint to a
universal one first, which is removed afterwards: it costs time and disk space at a resume, nothing at a save. The files are
pickles, as DeepSpeed writes them: a run reads only its own folder.
"""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import ShardError
from pipeline.processes.child_processes import Child
from training.compat import import_deepspeed, quiet, repaired_optimizer
from training.distributed import Processes
from training.trainer.checkpoints.files import UNIVERSAL
from training.trainer.checkpoints.intact import one_line, loading
from training.trainer.checkpoints.states import Checkpoint, State, CheckResult
from training.trainer.engine import Engine

log = logging.getLogger(__name__)


def write_engine(engine: Engine, folder: Path) -> None:
    """Writes the engine's state into a folder. Call it on all ranks."""
    with quiet():
        engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)


def check_pickle(checkpoint: Checkpoint, name: str, device: torch.device) -> CheckResult | None:
    """Returns why torch can't load a file of a checkpoint; None if it can, or if it is not a file of torch."""
    if not name.endswith(".pt"):
        return None
    # The pickles name DeepSpeed's classes.
    import_deepspeed(device)
    try:
        with quiet():
            # Tensors are mapped, not read.
            torch.load(checkpoint.folder / name, map_location="cpu", mmap=True, weights_only=False)
    except MemoryError:
        raise
    except Exception as error:
        return CheckResult(checkpoint.folder, State.DAMAGED, f"torch can't load {name}: {one_line(error)}")
    return None


def load_checkpoint(checkpoint: Checkpoint, engine: Engine, processes: Processes) -> None:
    """Restores parameters and optimizer. Call it on all ranks, with an engine configured by `loading_config`.

    Raises:
        ShardError: The checkpoint can't be loaded or converted.
    """
    folder = checkpoint.folder
    if needs_conversion(checkpoint, processes.world_size, engine.zero_optimization_stage()):
        folder = checkpoint.folder.with_name(UNIVERSAL + checkpoint.folder.name)
        if processes.is_first:
            convert(checkpoint.folder, folder)
        processes.barrier()
    with repaired_optimizer(engine):
        _load(checkpoint.folder, folder, engine)
    processes.barrier()
    if processes.is_first and folder != checkpoint.folder:
        shutil.rmtree(folder)
        (folder.parent / "latest_universal").unlink(missing_ok=True)


def _load(original: Path, folder: Path, engine: Engine) -> None:
    """Makes the engine load a checkpoint or its conversion."""
    with loading(original), quiet():
        loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded is None:
            # The engine still has fresh weights.
            raise ValueError("DeepSpeed finds none of its files there")


def needs_conversion(checkpoint: Checkpoint, world_size: int, zero_stage: int) -> bool:
    """Returns whether a checkpoint must be converted for this number of processes. Without ZeRO it never must."""
    return zero_stage > 0 and checkpoint.progress.world_size != world_size


def loading_config(checkpoint: Checkpoint | None, world_size: int, zero_stage: int) -> dict[str, Any]:
    """Returns the DeepSpeed settings that `load_checkpoint` needs."""
    if checkpoint is None or not needs_conversion(checkpoint, world_size, zero_stage):
        return {}
    return {"checkpoint": {"load_universal": True}}


def convert(source: Path, target: Path) -> None:
    """Writes a copy of a checkpoint that any number of processes can load."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    options = ["--input_folder", source, "--output_folder", target, "--inject_missing_state"]
    log.info("%s was written by another number of processes: converting", source)
    with Child([*command, *map(str, options)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        _, messages = process.communicate()
    if process.returncode:
        reason = messages.strip().splitlines()[-1:] or ["no reason given"]
        raise ShardError(f"{source} can't be converted to another number of processes: {reason[0]}")
