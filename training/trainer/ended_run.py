"""Finishes a run whose newest checkpoint already has all steps.

Nothing of such a run is cut or trained again, even if `training.steps` was lowered below its newest checkpoint. At most its
model
is still to be exported: if none was exported from the newest checkpoint, or one without the tokenizer given now.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConflictError
from pipeline.common.measured_json import restored
from training.model.files.export import PROVENANCE_NAME
from training.model.files.locate import TOKENIZER
from training.trainer.logs.throughput import with_current_names
from training.trainer.run import Run
from training.trainer.run_dir import SUMMARY_NAME, read_summary

log = logging.getLogger(__name__)


def finished_summary(run: Run) -> dict[str, Any] | None:
    """Returns the summary of a run that has nothing left to do; None if it has.

    Raises:
        ConflictError: The run's model must be exported again, but no checkpoint is left.
    """
    known = read_summary(run.folder)
    steps = run.first_step if run.checkpoint is not None or known is None else known["steps"]
    if steps < run.recipe.training.steps:
        return None
    if known is not None and known["steps"] == steps and _is_exported(run, steps):
        # The folder may have been moved since the summary was written.
        return known | {"output": str(run.folder), "model": str(run.model), "finished": True}
    if run.checkpoint is None:
        raise ConflictError(
            f"{run.folder} was trained to step {steps} but its checkpoints are gone, so its model can't be exported again: "
            "restore the newest checkpoint"
        )
    if run.plan.rank == 0:
        log.info("%s: %s, exporting the model", run.folder, _ended(run, steps))
    return None


def report_finished(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    """Logs that a run is finished, and writes that into its summary for the launchers. Returns the summary."""
    log.info("%s: %s, nothing left to do", run.folder, _ended(run, summary["steps"]))
    known = read_summary(run.folder)
    if known is None or not known.get("finished"):
        storage.write_bytes(str(run.folder / SUMMARY_NAME), json.dumps(summary, indent=1).encode())
    return summary


def restored_results(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results of a run that is only exported again: from its checkpoint, else from its summary."""
    known = read_summary(run.folder)
    same = with_current_names(restored(known)) if known is not None and known["steps"] == run.first_step else {}
    return {name: same.get(name) if value is None else value for name, value in results.items()}


def _ended(run: Run, steps: int) -> str:
    return f"finished at step {steps} (training.steps is {run.recipe.training.steps})"


def _is_exported(run: Run, steps: int) -> bool:
    """Returns whether the exported model has this many steps, and a tokenizer if one is given."""
    try:
        made_of = json.loads((run.model / PROVENANCE_NAME).read_bytes())["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return made_of == steps and (run.tokenizer is None or (run.model / TOKENIZER).is_dir())
