"""Checks a checkpoint on disk: whole, an interrupted save, damaged, or unreadable at the moment.

`check_checkpoint` is cheap: it reads the marker and compares names and sizes of files. `check_content` reads a whole file and
compares its hash.
"""

import enum
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.common.manifests import sha256_of

COMPLETE_NAME = "complete.json"
DAMAGED_NAME = "damaged.json"
# DeepSpeed and accelerate write these files, and DeepSpeed a folder for an optimizer that is offloaded to NVMe disks.
_ENDINGS = (".pt", ".bin", ".pkl", ".safetensors")
_OFFLOADED = "offloaded_tensors"


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run, as saved in a checkpoint.

    Attributes:
        step: Number of steps done.
        world_size: Number of processes that did them.
        loss_totals: Sum of losses of each rank since the last line of metrics.
        loss_steps: Number of steps in these sums.
        run: Fingerprint of the run.
        skipped: Number of steps in a row, up to this one, that were skipped.
        results: Newest value of each number in the run's summary, as JSON; empty in old checkpoints.
    """

    step: int
    world_size: int
    loss_totals: list[float]
    loss_steps: int
    run: str
    skipped: int = 0
    results: dict[str, Any] = field(default_factory=dict)

    def loss_total(self, rank: int, world_size: int) -> float:
        """Returns the loss sum from which rank `rank` of `world_size` resumes."""
        if world_size == self.world_size:
            return self.loss_totals[rank]
        return sum(self.loss_totals) / self.world_size


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk.

    Attributes:
        folder: Folder of the checkpoint.
        progress: Progress of the run when it was written.
        files: SHA-256 of each file by name; None in old checkpoints, which have none.
    """

    folder: Path
    progress: RunProgress
    files: Mapping[str, str | None]


class State(enum.StrEnum):
    """State of a folder that is named like a checkpoint."""

    WHOLE = "whole"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class CheckResult:
    """Result of checking a checkpoint.

    Attributes:
        folder: Folder of the checkpoint.
        state: State of the checkpoint.
        reason: Why it is not whole; empty if it is.
        checkpoint: The checkpoint if it is whole, else None.
    """

    folder: Path
    state: State
    reason: str = ""
    checkpoint: Checkpoint | None = None

    def __str__(self) -> str:
        return f"{self.folder.name} is {self.state} ({self.reason})"


def tag(step: int) -> str:
    """Returns the name of the checkpoint folder after `step` steps."""
    return f"step-{step:08d}"


def check_checkpoint(folder: Path) -> CheckResult:
    """Checks a checkpoint's marker, and names and sizes of its files. Cheap: file content is not read."""
    name = COMPLETE_NAME
    try:
        try:
            marker = (folder / COMPLETE_NAME).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return _without_marker(folder)
        if (recorded := _recorded_damage(folder)) is not None:
            return CheckResult(folder, State.DAMAGED, f"{DAMAGED_NAME} says: {recorded}")
        checkpoint, sizes = _parse_marker(folder, marker)
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if found != size:
                return CheckResult(folder, State.DAMAGED, f"{name} has {found} bytes of {size}")
    except (FileNotFoundError, NotADirectoryError):
        return CheckResult(folder, State.DAMAGED, f"{name} is missing")
    except OSError as error:
        return CheckResult(folder, State.UNREADABLE, f"{name}: {error.strerror or error}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return CheckResult(folder, State.DAMAGED, f"{COMPLETE_NAME} is invalid: {error}")
    return CheckResult(folder, State.WHOLE, checkpoint=checkpoint)


def check_content(checkpoint: Checkpoint, name: str) -> CheckResult | None:
    """Reads a whole file of a checkpoint and returns what is wrong with it; None if nothing is."""
    path, digest = checkpoint.folder / name, checkpoint.files[name]
    reason = None
    try:
        if digest is not None:
            found = sha256_of(path)
            if found != digest:
                reason = f"{name} has SHA-256 {found[:12]}.., but {COMPLETE_NAME} says {digest[:12]}.."
        elif zipfile.is_zipfile(path):
            # torch files are zip archives with a checksum of each member.
            with zipfile.ZipFile(path) as archive:
                if member := archive.testzip():
                    reason = f"{name} has a wrong checksum in {member}"
    except FileNotFoundError:
        reason = f"{name} is missing"
    except OSError as error:
        return CheckResult(checkpoint.folder, State.UNREADABLE, f"{name}: {error.strerror or error}")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
        reason = f"{name} is not a valid archive: {error}"
    return CheckResult(checkpoint.folder, State.DAMAGED, reason) if reason else None


def _without_marker(folder: Path) -> CheckResult:
    if not folder.is_dir():
        return CheckResult(folder, State.DAMAGED, "it is a broken link" if folder.is_symlink() else "it is not a folder")
    names = [PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if not path.is_dir()]
    if all(name.suffix in _ENDINGS or _OFFLOADED in name.parts for name in names):
        return CheckResult(folder, State.UNFINISHED, f"it has no {COMPLETE_NAME}")
    return CheckResult(folder, State.DAMAGED, f"it has no {COMPLETE_NAME}, but files that no save leaves behind")


def _recorded_damage(folder: Path) -> str | None:
    """Returns the damage that an earlier start recorded in this checkpoint; None if it recorded none."""
    try:
        return str(json.loads((folder / DAMAGED_NAME).read_bytes())["reason"])
    except FileNotFoundError:
        return None


def _parse_marker(folder: Path, marker: bytes) -> tuple[Checkpoint, dict[str, int]]:
    """Returns a checkpoint and the sizes of its files, from its marker.

    Raises:
        ValueError: The marker is damaged, or belongs to another checkpoint.
    """
    values = json.loads(marker)
    progress, sizes, digests = RunProgress(**values["progress"]), dict(values["files"]), dict(values.get("sha256", {}))
    if tag(progress.step) != folder.name:
        raise ValueError(f"it belongs to {tag(progress.step)}")
    if len(progress.loss_totals) != progress.world_size:
        raise ValueError(f"it has {len(progress.loss_totals)} loss sums for {progress.world_size} processes")
    return Checkpoint(folder, progress, {name: digests.get(name) for name in sizes}), sizes


def sync_and_hash(path: Path) -> str:
    """Flushes a file to disk and returns its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_of(path)
