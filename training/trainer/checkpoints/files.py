"""Checkpoints of a run as they lie on disk: judged by one rule, the newest kept and some for good.

A checkpoint is a folder `step-00001000` of DeepSpeed's files. It is written under another name; the last file written into
it is `complete.json`, which lists all files with their sizes and SHA-256s; then the folder takes its name. So what has the
name was whole once. `judge` says what it is now, `check_content` whether a file still holds the bytes that were written.

A checkpoint that is not whole is never loaded, never counted among those kept, and never removed, except for remains of a
save that was cut short: what else it still holds is the user's to decide about.
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
    """Names of all that looks like a checkpoint in `folder`, by step, whole or not.

    Raises:
        ConflictError: The folder can't be read.
    """
    try:
        return sorted((name for name in (entry.name for entry in folder.iterdir()) if _TAG.fullmatch(name)), key=_step)
    except FileNotFoundError:
        if folder.is_symlink():
            raise ConflictError(f"{folder} is a link to nothing: bring back what it points to") from None
        return []
    except OSError as error:
        raise ConflictError(f"{folder} can't be read ({error.strerror}), so the run's checkpoints are not known") from error


def check_checkpoints(folder: Path, at_most: int | None = None, known: Mapping[str, CheckResult] | None = None) -> Iterator[CheckResult]:
    """The verdicts on the checkpoints in `folder`, newest first.

    Args:
        folder: Of all checkpoints.
        at_most: Leaves out those of more steps.
        known: Verdicts found by reading content, by the checkpoint's name.

    Raises:
        ConflictError: The folder can't be read.
    """
    for name in reversed(checkpoint_names(folder)):
        if at_most is None or _step(name) <= at_most:
            yield (known or {}).get(name) or check_checkpoint(folder / name)


def newest_checkpoint(folder: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, of at most so many steps where that is given; None where there is none."""
    return next((verdict.checkpoint for verdict in check_checkpoints(folder, at_most) if verdict.checkpoint), None)


def _step(name: str) -> int:
    """The number of steps in the name of a checkpoint's folder."""
    return int(name.rpartition("-")[2])


def staging_folder(folder: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return folder.with_name(f".{folder.name}.partial")


def checkpoint_files(folder: Path) -> list[str]:
    """Names of all files in a checkpoint's folder but its marker, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != COMPLETE_NAME)


def mark_complete(folder: Path, progress: RunProgress, digests: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint's marker, with all files on disk before it.

    Args:
        folder: Of the checkpoint.
        progress: Of the run.
        digests: What `sealed` returned, by file; those that are missing are sealed here.
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
    """Give a checkpoint its name. A damaged one that has this name already is set aside, any other is replaced."""
    if os.path.lexists(folder):
        verdict = check_checkpoint(folder)
        if verdict.state in (State.WHOLE, State.UNFINISHED):
            _remove(folder)
        else:
            aside = _unused_name(folder.with_name(_ASIDE + folder.name))
            folder.rename(aside)
            log.warning("%s; a new one takes its place, and the old one is now %s: remove it", verdict, aside)
    made.rename(folder)
    flush_tree(folder.parent, below=False)


def mark_damaged(verdict: CheckResult) -> None:
    """Write down in a checkpoint that its content is damaged, so that it is never taken for a whole one again."""
    try:
        storage.write_bytes(str(verdict.folder / DAMAGED_NAME), json.dumps({"reason": verdict.reason}).encode())
    except OSError as error:
        log.warning("%s: %s can't be written (%s)", verdict, DAMAGED_NAME, error.strerror)


def prune(folder: Path, keep: int, keep_every: int = 0, written: int | None = None) -> None:
    """Remove whole checkpoints that are not to be kept, and what cut-short saves and removals left behind.

    Args:
        folder: Of all checkpoints.
        keep: How many of the newest whole ones stay.
        keep_every: Those of a multiple of this many steps stay for good; 0 keeps none so.
        written: Steps of the one that was just written; None takes the newest whole one. Newer ones are neither counted nor
            removed: the run goes on from an older one because they could not be loaded.
    """
    verdicts = list(check_checkpoints(folder))
    whole = [verdict.checkpoint for verdict in reversed(verdicts) if verdict.checkpoint]
    if written is not None:
        whole = [checkpoint for checkpoint in whole if checkpoint.progress.step <= written]
        if not whole or whole[-1].progress.step != written:
            log.warning("%s is not whole right after it was written: older checkpoints stay", folder / tag(written))
            return
    for checkpoint in whole[:-keep]:
        if not keep_every or checkpoint.progress.step % keep_every:
            _remove(checkpoint.folder)
    for verdict in verdicts:
        if verdict.state is State.UNFINISHED:
            _remove(verdict.folder)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what cut-short saves, removals and conversions left in the folder of all checkpoints."""
    for pattern in (staging_folder(folder / "step-*").name, _removal_path(folder / "step-*").name, f"{UNIVERSAL}*"):
        for leftover in folder.glob(pattern):
            _remove_tree(leftover)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; the name goes first, so that a removal that is cut short leaves nothing that looks whole."""
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
    """Where a checkpoint lies that is about to go."""
    return folder.with_name(f".{folder.name}.removed")


def _remove_tree(folder: Path) -> None:
    """Remove a folder that nobody needs, where it is there and if possible."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s can't be removed (%s)", folder, error.strerror)


def _unused_name(wanted: Path) -> Path:
    """`wanted`, with a number behind it where that is taken."""
    name, number = wanted, 1
    while os.path.lexists(name):
        number += 1
        name = wanted.with_name(f"{wanted.name}-{number}")
    return name
