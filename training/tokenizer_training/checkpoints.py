"""Checkpoints of version 0.1: folders of accelerate's files, and `latest.json`, which names the complete one.

They get the marker of today's checkpoints; then both kinds of training find, check and remove checkpoints with the same code.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConflictError
from pipeline.common.measured_json import json_values, restored
from training.trainer.checkpoints.files import LATEST_NAME, checkpoint_names, mark_complete
from training.trainer.checkpoints.states import COMPLETE_NAME, RunProgress

POINTER_NAME = "latest.json"
_OR_ANEW = ", or choose another --output to start again"


def mark_earlier(folder: Path, run: str) -> None:
    """Marks the complete checkpoint of version 0.1 and removes the others. Changes nothing if there is none.

    Args:
        folder: Folder of the checkpoints.
        run: Fingerprint of the run.

    Raises:
        ConflictError: There was one, and it isn't complete any more.
    """
    pointer = folder / POINTER_NAME
    names = checkpoint_names(folder)
    if not pointer.exists():
        # A run that was killed while it wrote its first checkpoint leaves one folder.
        if (
            len(names) > 1
            and not (folder / LATEST_NAME).exists()
            and not any((folder / n / COMPLETE_NAME).exists() for n in names)
        ):
            raise ConflictError(
                f"{folder} has {', '.join(names[-3:])} but no {POINTER_NAME} that says which is complete: "
                f"restore that file{_OR_ANEW}"
            )
        return
    try:
        state = dict(json.loads(pointer.read_bytes()))
        checkpoint, step = folder / str(state["name"]), int(state["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConflictError(f"{pointer} is damaged ({error}): restore it{_OR_ANEW}") from error
    if fault := _fault(checkpoint, state.get("files", {})):
        raise ConflictError(
            f"{checkpoint}, from which the run would resume at step {step}, is not complete: {fault}. Nothing was changed. "
            f"Restore it from a copy{_OR_ANEW}"
        )
    mark_complete(checkpoint, _progress(checkpoint, step, state, run))
    for name in names:
        if name != checkpoint.name:
            shutil.rmtree(folder / name)
    storage.write_bytes(str(folder / LATEST_NAME), checkpoint.name.encode())
    pointer.unlink()


def _progress(checkpoint: Path, step: int, state: Mapping[str, Any], run: str) -> RunProgress:
    processes = len(list(checkpoint.glob("random_states_*.pkl")))
    results = {
        "held_out": restored(state.get("results", {})),
        "skipped_steps": state.get("skipped_steps", 0),
        "samples_replaced": state.get("samples_replaced", 0),
        "left_out": state.get("left_out", []),
    }
    return RunProgress(step, processes, [0.0] * processes, 0, run, state.get("skipped_in_row", 0), json_values(results))


def _fault(folder: Path, files: Mapping[str, int]) -> str:
    """Returns what a checkpoint lacks; empty if nothing. The first checkpoints have no list of files."""
    if not folder.is_dir():
        return "it is gone"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
    return ""
