"""A run that has made all its steps, or more than are wanted: what is left to do, and what it answers.

Nothing of such a run is cut or trained again, also where `training.steps` was lowered below its newest checkpoint. It lacks
at most an export: none was made of its newest checkpoint, or one without the tokenizer that is named now.
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
from training.trainer.run_dir import SUMMARY_NAME, read_summary
from training.trainer.setup import Run

log = logging.getLogger(__name__)


def finished_summary(run: Run) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do; None where there is something.

    Raises:
        ConflictError: The run's model must be exported again, and there is no checkpoint to do so from.
    """
    known = read_summary(run.folder)
    steps = run.first_step if run.checkpoint is not None or known is None else known["steps"]
    if steps < run.recipe.training.steps:
        return None
    if known is not None and known["steps"] == steps and _is_exported(run, steps):
        # A folder that was moved lies elsewhere than its summary says.
        return known | {"output": str(run.folder), "model": str(run.model), "finished": True}
    if run.checkpoint is None:
        raise ConflictError(
            f"{run.folder} was trained to step {steps} but has no checkpoint any more, so its model can't be exported again: "
            "bring the newest checkpoint back"
        )
    if run.plan.rank == 0:
        log.info("%s: %s, but the model is still to be exported", run.folder, _ended(run, steps))
    return None


def report_finished(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    """Say that a run has ended, also in its summary, whoever reads that; returns the summary."""
    log.info("%s: %s, nothing is left to do", run.folder, _ended(run, summary["steps"]))
    known = read_summary(run.folder)
    if known is None or not known.get("finished"):
        storage.write_bytes(str(run.folder / SUMMARY_NAME), json.dumps(summary, indent=1).encode())
    return summary


def restored_results(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Results of a run that is only exported again: those of its checkpoint, and for want of them those of its summary."""
    known = read_summary(run.folder)
    same = restored(known) if known is not None and known["steps"] == run.first_step else {}
    return {name: same.get(name) if value is None else value for name, value in results.items()}


def _ended(run: Run, steps: int) -> str:
    return f"finished at step {steps} (training.steps is {run.recipe.training.steps})"


def _is_exported(run: Run, steps: int) -> bool:
    """Whether the run's model is that of so many steps, with a tokenizer if one is named."""
    try:
        made_of = json.loads((run.model / PROVENANCE_NAME).read_bytes())["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return made_of == steps and (run.tokenizer is None or (run.model / TOKENIZER).is_dir())
