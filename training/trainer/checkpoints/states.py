"""One rule that says what a checkpoint on disk is: whole, a save that was cut short, damaged, or not readable just now.

`judge` looks at the marker and at names and sizes of files, which is cheap; `check_content` reads a file and says whether it
still holds the bytes that were written.
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
# What DeepSpeed and accelerate put into a checkpoint: files of torch's and of safetensors', and DeepSpeed a folder where the
# optimizer lies on NVMe disks.
_ENDINGS = (".pt", ".bin", ".pkl", ".safetensors")
_OFFLOADED = "offloaded_tensors"


@dataclass(frozen=True)
class RunProgress:
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
        files: Name -> SHA-256 of every file, None where the checkpoint was written before these were kept.
    """

    folder: Path
    progress: RunProgress
    files: Mapping[str, str | None]


class State(enum.StrEnum):
    """What a folder with a checkpoint's name is."""

    WHOLE = "whole"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class CheckResult:
    """What was found out about a checkpoint's folder.

    Attributes:
        folder: Where it lies.
        state: What it is.
        reason: Why it is not whole; empty where it is.
        checkpoint: Where it is whole.
    """

    folder: Path
    state: State
    reason: str = ""
    checkpoint: Checkpoint | None = None

    def __str__(self) -> str:
        return f"{self.folder.name} is {self.state} ({self.reason})"


def tag(step: int) -> str:
    """Name of the checkpoint's folder after `step` steps."""
    return f"step-{step:08d}"


def check_checkpoint(folder: Path) -> CheckResult:
    """Judge a checkpoint by its marker, and by the names and sizes of its files: cheap, their content is not read."""
    name = COMPLETE_NAME
    try:
        try:
            marker = (folder / COMPLETE_NAME).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return _without_marker(folder)
        if (noted := _recorded_damage(folder)) is not None:
            return CheckResult(folder, State.DAMAGED, f"{DAMAGED_NAME} says so: {noted}")
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
        return CheckResult(folder, State.DAMAGED, f"{COMPLETE_NAME} can't be understood: {error}")
    return CheckResult(folder, State.WHOLE, checkpoint=checkpoint)


def check_content(checkpoint: Checkpoint, name: str) -> CheckResult | None:
    """What is wrong with the content of a file of a checkpoint; None where nothing is. Reads the whole file."""
    path, digest = checkpoint.folder / name, checkpoint.files[name]
    reason = None
    try:
        if digest is not None:
            found = sha256_of(path)
            if found != digest:
                reason = f"{name} has SHA-256 {found[:12]}.. where {COMPLETE_NAME} states {digest[:12]}.."
        elif zipfile.is_zipfile(path):
            # torch's files are archives that keep a sum of each of their members.
            with zipfile.ZipFile(path) as archive:
                if member := archive.testzip():
                    reason = f"{name} holds other bytes than were written, in {member}"
    except FileNotFoundError:
        reason = f"{name} is missing"
    except OSError as error:
        return CheckResult(checkpoint.folder, State.UNREADABLE, f"{name}: {error.strerror or error}")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
        reason = f"{name} is no archive any more: {error}"
    return CheckResult(checkpoint.folder, State.DAMAGED, reason) if reason else None


def _without_marker(folder: Path) -> CheckResult:
    if not folder.is_dir():
        return CheckResult(folder, State.DAMAGED, "it is a link to nothing" if folder.is_symlink() else "it is no folder")
    names = [PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if not path.is_dir()]
    if all(name.suffix in _ENDINGS or _OFFLOADED in name.parts for name in names):
        return CheckResult(folder, State.UNFINISHED, f"it has no {COMPLETE_NAME}")
    return CheckResult(folder, State.DAMAGED, f"it has no {COMPLETE_NAME}, and files that no save leaves behind")


def _recorded_damage(folder: Path) -> str | None:
    """What an earlier start found wrong with a checkpoint's content, if any did."""
    try:
        return str(json.loads((folder / DAMAGED_NAME).read_bytes())["reason"])
    except FileNotFoundError:
        return None


def _parse_marker(folder: Path, marker: bytes) -> tuple[Checkpoint, dict[str, int]]:
    """A checkpoint as its marker has it, and the sizes of its files.

    Raises:
        ValueError: The marker is damaged, or of another checkpoint.
    """
    values = json.loads(marker)
    progress, sizes, digests = RunProgress(**values["progress"]), dict(values["files"]), dict(values.get("sha256", {}))
    if tag(progress.step) != folder.name:
        raise ValueError(f"it is that of {tag(progress.step)}")
    if len(progress.loss_totals) != progress.world_size:
        raise ValueError(f"it has {len(progress.loss_totals)} running losses of {progress.world_size} processes")
    return Checkpoint(folder, progress, {name: digests.get(name) for name in sizes}), sizes


def sync_and_hash(path: Path) -> str:
    """Bring a file to disk; returns its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_of(path)
