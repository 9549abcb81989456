"""Writes, lists and removes the checkpoints of a run on disk.

A checkpoint is a folder `step-00001000` of files that a library wrote. It is written under a temporary name. Its last file is
`complete.json`, which lists all files with sizes and SHA-256s. Then the folder gets its final name, so a folder with that name
was complete once. `check_checkpoint` checks what it is now; `check_content` also reads a file and compares its hash.

A damaged checkpoint is never loaded, doesn't count among those kept, and is never removed: the user decides about it. Only the
remains of interrupted saves are removed.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from pipeline.common import storage
from pipeline.common.errors import ConflictError
from training.trainer.checkpoints.states import COMPLETE_NAME, DAMAGED_NAME, Checkpoint, RunProgress, State, CheckResult, check_checkpoint, sync_and_hash, tag
from training.trainer.checkpoints.durable import flush_tree

LATEST_NAME = "latest"
UNIVERSAL = "universal-"
_ASIDE = "damaged-"
_TAG = re.compile(r"step-(\d{8,})")
log = logging.getLogger(__name__)


def checkpoint_names(folder: Path) -> list[str]:
    """Returns the names of all folders named like checkpoints, sorted by step, damaged ones included.

    Raises:
        ConflictError: The folder can't be read.
    """
    try:
        return sorted((name for name in (entry.name for entry in folder.iterdir()) if _TAG.fullmatch(name)), key=_step)
    except FileNotFoundError:
        if folder.is_symlink():
            raise ConflictError(f"{folder} is a broken link: restore its target") from None
        return []
    except OSError as error:
        raise ConflictError(f"{folder} can't be read ({error.strerror}), so the run's checkpoints can't be listed") from error


def check_checkpoints(folder: Path, at_most: int | None = None, known: Mapping[str, CheckResult] | None = None) -> Iterator[CheckResult]:
    """Yields the check results of the checkpoints in `folder`, newest first.

    Args:
        folder: Folder of all checkpoints.
        at_most: Skips checkpoints of more steps.
        known: Results of earlier content checks, by checkpoint name.

    Raises:
        ConflictError: The folder can't be read.
    """
    for name in reversed(checkpoint_names(folder)):
        if at_most is None or _step(name) <= at_most:
            yield (known or {}).get(name) or check_checkpoint(folder / name)


def newest_checkpoint(folder: Path, at_most: int | None = None) -> Checkpoint | None:
    """Returns the newest whole checkpoint in `folder`, of at most `at_most` steps if given; None if there is none."""
    return next((result.checkpoint for result in check_checkpoints(folder, at_most) if result.checkpoint), None)


def _step(name: str) -> int:
    """Returns the number of steps in the name of a checkpoint folder."""
    return int(name.rpartition("-")[2])


def staging_folder(folder: Path) -> Path:
    """Returns the temporary folder in which a checkpoint is written."""
    return folder.with_name(f".{folder.name}.partial")


def checkpoint_files(folder: Path) -> list[str]:
    """Returns the names of all files in a checkpoint except its marker, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != COMPLETE_NAME)


def mark_complete(folder: Path, progress: RunProgress, digests: Mapping[str, str] | None = None) -> None:
    """Writes a checkpoint's marker after all its files are on disk.

    Args:
        folder: Folder of the checkpoint.
        progress: Progress of the run.
        digests: SHA-256 by file name, as `sync_and_hash` returns it; missing ones are computed here.
    """
    known = digests or {}
    names = checkpoint_files(folder)
    marker = {
        "progress": asdict(progress),
        "files": {name: (folder / name).stat().st_size for name in names},
        "sha256": {name: known.get(name) or sync_and_hash(folder / name) for name in names},
    }
    for below in sorted(path for path in folder.rglob("*") if path.is_dir()):
        flush_tree(below, below=False)
    storage.write_bytes(str(folder / COMPLETE_NAME), json.dumps(marker, indent=1).encode())
    flush_tree(folder, below=False)


def publish_checkpoint(made: Path, folder: Path) -> None:
    """Renames a checkpoint to its final name. An older damaged one of that name is moved aside; any other is replaced."""
    if os.path.lexists(folder):
        result = check_checkpoint(folder)
        if result.state in (State.WHOLE, State.UNFINISHED):
            _remove(folder)
        else:
            aside = _unused_name(folder.with_name(_ASIDE + folder.name))
            folder.rename(aside)
            log.warning("%s; replaced by a new one, the old one is now %s: remove it", result, aside)
    made.rename(folder)
    flush_tree(folder.parent, below=False)


def mark_damaged(result: CheckResult) -> None:
    """Records in a checkpoint that its content is damaged, so that it is never loaded again."""
    try:
        storage.write_bytes(str(result.folder / DAMAGED_NAME), json.dumps({"reason": result.reason}).encode())
    except OSError as error:
        log.warning("%s: %s can't be written (%s)", result, DAMAGED_NAME, error.strerror)


def prune(folder: Path, keep: int, keep_every: int = 0, written: int | None = None) -> None:
    """Removes old checkpoints, and what interrupted saves and removals left behind.

    Args:
        folder: Folder of all checkpoints.
        keep: Number of newest whole checkpoints to keep.
        keep_every: Keep checkpoints of multiples of this many steps forever; 0 = off.
        written: Step of the checkpoint just written; None = the newest whole one. Newer ones are neither counted nor removed:
            the run resumed from an older one because they could not be loaded.
    """
    results = list(check_checkpoints(folder))
    whole = [result.checkpoint for result in reversed(results) if result.checkpoint]
    if written is not None:
        whole = [checkpoint for checkpoint in whole if checkpoint.progress.step <= written]
        if not whole or whole[-1].progress.step != written:
            log.warning("%s is damaged right after it was written: keeping older checkpoints", folder / tag(written))
            return
    for checkpoint in whole[:-keep]:
        if not keep_every or checkpoint.progress.step % keep_every:
            _remove(checkpoint.folder)
    for result in results:
        if result.state is State.UNFINISHED:
            _remove(result.folder)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes what interrupted saves, removals and conversions left in the folder of all checkpoints."""
    for pattern in (staging_folder(folder / "step-*").name, _removal_path(folder / "step-*").name, f"{UNIVERSAL}*"):
        for leftover in folder.glob(pattern):
            _remove_tree(leftover)


def _remove(folder: Path) -> None:
    """Removes a checkpoint. It is renamed first, so an interrupted removal leaves nothing that looks whole."""
    try:
        if folder.is_symlink():
            folder.unlink()
            return
        _remove_tree(_removal_path(folder))
        folder.rename(_removal_path(folder))
    except OSError as error:
        log.warning("%s can't be removed (%s)", folder, error.strerror)
    _remove_tree(_removal_path(folder))


def _removal_path(folder: Path) -> Path:
    """Returns the name that a checkpoint gets before its files are removed."""
    return folder.with_name(f".{folder.name}.removed")


def _remove_tree(folder: Path) -> None:
    """Removes a folder if it exists; logs a failure."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s can't be removed (%s)", folder, error.strerror)


def _unused_name(wanted: Path) -> Path:
    """Returns `wanted`, with a number appended if that name is taken."""
    name, number = wanted, 1
    while os.path.lexists(name):
        number += 1
        name = wanted.with_name(f"{wanted.name}-{number}")
    return name
