"""Checkpoints of tokenizer training on disk: folders of accelerate's files, and `latest.json`, which names the whole one.

A checkpoint that is not whole ends the command: to begin anew would cut the run's metrics and remove what is left of it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipeline.common import storage
from pipeline.common.errors import ConflictError
from training.trainer.checkpoints.durable import flush_tree
from training.trainer.checkpoints.files import checkpoint_names

LATEST_NAME = "latest.json"
_ANEW = ", or choose another --output to begin anew"


def publish(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    """Make a written checkpoint the one to go on from; older ones go.

    Args:
        folder: Of all checkpoints.
        name: Of the checkpoint's folder.
        state: What it must know beside accelerate's files, ready for JSON.
    """
    written = folder / name
    # On disk before what it replaces goes.
    flush_tree(written)
    files = {path.relative_to(written).as_posix(): path.stat().st_size for path in written.rglob("*") if path.is_file()}
    pointer = {"name": name, "files": dict(sorted(files.items())), **state}
    storage.write_bytes(str(folder / LATEST_NAME), json.dumps(pointer).encode())
    flush_tree(folder, below=False)
    for other in checkpoint_names(folder):
        if other != name and (folder / other).is_dir():
            shutil.rmtree(folder / other)


def find(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from and its state; None where the run has none yet.

    Raises:
        ConflictError: There was one, and it isn't whole any more.
    """
    latest = folder / LATEST_NAME
    names = checkpoint_names(folder)
    if not latest.exists():
        # Killed while it wrote its first one.
        if len(names) <= 1:
            return None
        raise ConflictError(
            f"{folder} has {', '.join(names[-3:])} but no {LATEST_NAME} that says which is whole: bring that file back{_ANEW}"
        )
    try:
        pointer = dict(json.loads(latest.read_bytes()))
        checkpoint, step = folder / str(pointer["name"]), int(pointer["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConflictError(f"{latest} is damaged ({error}): bring it back{_ANEW}") from error
    if fault := _fault(checkpoint, pointer.get("files", {})):
        raise ConflictError(
            f"{checkpoint}, which the run would go on from at step {step}, is not whole: {fault}. Nothing was changed. "
            f"Bring it back from a copy{_ANEW}"
        )
    return checkpoint, pointer


def load(accelerator: Accelerator, checkpoint: Path) -> None:
    """Restore all that accelerate keeps.

    Raises:
        ConflictError: The files can't be loaded.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except Exception as error:
        # Rotten bytes come out of torch's and safetensors' readers as errors of many types.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConflictError(f"{checkpoint} can't be loaded ({reason}): bring it back from a copy{_ANEW}") from error


def _fault(folder: Path, files: Mapping[str, int]) -> str:
    """What a checkpoint lacks; empty where nothing does. One of before sizes were written down is only looked for."""
    if not folder.is_dir():
        return "it is gone"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
    return ""
