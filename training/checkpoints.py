"""Checkpoints of a run: written by all ranks, complete or not there, the newest kept and some for good.

A checkpoint is a folder `step-00001000` of DeepSpeed's files. The last thing written into it is `complete.json`, which lists
all files with their sizes; a folder without it, or with a file that is missing or short, was cut off and is never picked.
`latest`, which DeepSpeed's own tools read, moves after that.

The same number of processes loads its own parts, bit for bit. Another number goes through a universal checkpoint, which is
made on the spot and removed again: time and disk space at a resume, none at a save.

The files are torch's, so they are pickles, as DeepSpeed writes them: a run reads its own folder only, never an input.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline import storage
from pipeline.errors import ShardError
from training.engine import quiet
from training.processes import Processes

COMPLETE_NAME = "complete.json"
_LATEST = "latest"
_UNIVERSAL = "universal-"
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
        run: Fingerprint of the run.
        skipped: Steps in a row, up to this one, that were skipped.
        results: Newest value of each number that the run's summary holds, as JSON; empty in a checkpoint of before they were
            kept.
    """

    step: int
    world_size: int
    loss_totals: list[float]
    loss_steps: int
    run: str
    skipped: int = 0
    results: dict[str, Any] = field(default_factory=dict)

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


def newest_checkpoint(folder: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, of at most so many steps where that is given; None where there is none."""
    for name in reversed(_tags(folder)):
        if at_most is not None and _step(name) > at_most:
            continue
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
    return sorted((entry.name for entry in folder.iterdir() if _TAG.fullmatch(entry.name)), key=_step)


def _step(name: str) -> int:
    """The number of steps in the name of a checkpoint's folder."""
    return int(name.rpartition("-")[2])


def save_checkpoint(folder: Path, engine: Any, processes: Processes, progress: Progress, keep: int, keep_every: int) -> None:
    """Write a checkpoint and remove those that are not to be kept. Call it on all ranks.

    Args:
        folder: Of all checkpoints; every rank must see the same one.
        engine: DeepSpeed's.
        processes: Of the run.
        progress: Of the run.
        keep: How many of the newest stay.
        keep_every: Those of a multiple of this many steps stay for good; 0 keeps none so.
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
        prune(folder, keep, keep_every)


def mark_complete(folder: Path, progress: Progress) -> None:
    """Bring all files of a checkpoint to disk, then list them in its marker."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = path.stat().st_size
    marker = {"progress": asdict(progress), "files": files}
    storage.write_bytes(str(folder / COMPLETE_NAME), json.dumps(marker, indent=1).encode())


def prune(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Remove all whole checkpoints but the newest `keep` and every one of a multiple of `keep_every` steps, and all that was
    cut short."""
    whole = [name for name in _tags(folder) if (folder / name / COMPLETE_NAME).exists()]
    kept = {*whole[-keep:], *(name for name in whole if keep_every and _step(name) % keep_every == 0)}
    for name in set(_tags(folder)) - kept:
        # The marker goes first: a removal that is cut short must not leave what looks whole.
        (folder / name / COMPLETE_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder / name)
    for leftover in folder.glob(f"{_UNIVERSAL}*"):
        shutil.rmtree(leftover)


def load_checkpoint(checkpoint: Checkpoint, engine: Any, processes: Processes) -> None:
    """Restore parameters and optimizer. Call it on all ranks, with an engine configured by `loading_config`.

    Raises:
        ShardError: A checkpoint of another number of processes could not be converted.
    """
    folder = checkpoint.folder
    settings = [_settings(group) for group in engine.optimizer.param_groups]
    if needs_conversion(checkpoint, processes.place.world_size, engine.zero_optimization_stage()):
        folder = checkpoint.folder.with_name(_UNIVERSAL + checkpoint.folder.name)
        if processes.is_first:
            _convert(checkpoint.folder, folder)
        processes.barrier()
    with quiet():
        engine.load_checkpoint(str(folder.parent), tag=folder.name)
    # DeepSpeed 0.19 gives all groups of ZeRO-3 the first one's hyper-parameters, and all parameters one and the same step
    # tensor, which AdamW then counts up once per parameter.
    for group, known in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(known)
    _separate_steps(engine.basic_optimizer)
    processes.barrier()
    if processes.is_first and folder != checkpoint.folder:
        shutil.rmtree(folder)
        (folder.parent / "latest_universal").unlink(missing_ok=True)


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
    result = subprocess.run([*command, *map(str, options)], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ShardError(f"{source} can't be converted to another number of processes: {reason[0]}")
