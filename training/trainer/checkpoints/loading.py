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

from pipeline.common.errors import ShardError
from pipeline.processes.child_processes import Child
from training.compat import import_deepspeed, quiet, repaired_optimizer
from training.distributed import Processes
from training.trainer.checkpoints.files import UNIVERSAL
from training.trainer.checkpoints.intact import one_line, loading
from training.trainer.checkpoints.states import Checkpoint, State, CheckResult

log = logging.getLogger(__name__)


def write_engine(engine: Any, folder: Path) -> None:
    """Write the state of DeepSpeed's engine into a folder. Call it on all ranks."""
    with quiet():
        engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)


def check_pickle(checkpoint: Checkpoint, name: str, device: torch.device) -> CheckResult | None:
    """Returns why torch can't load a file of a checkpoint; None where it can, or where the file isn't torch's."""
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


def load_checkpoint(checkpoint: Checkpoint, engine: Any, processes: Processes) -> None:
    """Restore parameters and optimizer. Call it on all ranks, with an engine configured by `loading_config`.

    Raises:
        ShardError: The checkpoint can't be loaded, or one of another number of processes could not be converted.
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


def _load(original: Path, folder: Path, engine: Any) -> None:
    """Let the engine load a folder, that of a checkpoint or its conversion."""
    with loading(original), quiet():
        loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded is None:
            # The engine still has fresh weights.
            raise ValueError("DeepSpeed finds none of its files there")


def needs_conversion(checkpoint: Checkpoint, world_size: int, zero_stage: int) -> bool:
    """Whether the parts of a checkpoint don't fit this number of processes; without ZeRO there are no parts."""
    return zero_stage > 0 and checkpoint.progress.world_size != world_size


def loading_config(checkpoint: Checkpoint | None, world_size: int, zero_stage: int) -> dict[str, Any]:
    """What DeepSpeed's configuration must say for `load_checkpoint`."""
    if checkpoint is None or not needs_conversion(checkpoint, world_size, zero_stage):
        return {}
    return {"checkpoint": {"load_universal": True}}


def convert(source: Path, target: Path) -> None:
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
