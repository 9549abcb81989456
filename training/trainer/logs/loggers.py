"""Writes a run's metrics and videos to `metrics.jsonl`, TensorBoard and, if the recipe names a project, Weights & Biases.

The file is the reference, and a resumed run truncates it; the other two are views. In Weights & Biases the training step is an
ordinary value on the x axis of all charts. A run that resumes from an older checkpoint logs its repeated steps again, with
equal values; the service's own step counter would drop them.
"""

import importlib.metadata
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from pipeline.common import storage
from pipeline.common.errors import ConfigError
from pipeline.common.measured_json import measured_json
from pipeline.processes.interruption import uninterrupted
from training.trainer.logs.throughput import METRICS_NAME

WANDB_NAME = "wandb.json"


def require_wandb(project: str | None) -> None:
    """Refuses a recipe that uses Weights & Biases if its package isn't installed.

    Raises:
        ConfigError: The package isn't installed.
    """
    if project is None:
        return
    try:
        importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"training.wandb_project is {project} but the package wandb is not installed: "
            "pip install 'ivideogpt-pipeline[wandb]', or remove the key"
        ) from error


class MetricsWriter:
    """Writes lines of metrics. Only rank 0 has one.

    TensorBoard's writer passes everything to a thread through a queue. An exception raised by a signal handler in the middle of
    that could leave the queue's lock held forever, or delay the next `flush` by two minutes. So signals wait until a call
    returns.

    Args:
        folder: Run folder.
        first_step: Step from which the run starts or resumes; TensorBoard hides what it has after that step.
        wandb: Weights & Biases run to log to as well.
    """

    def __init__(self, folder: Path, first_step: int, wandb: "WandbRun | None" = None) -> None:
        # Imported here because it takes a second, and only rank 0 needs it.
        from torch.utils.tensorboard.writer import SummaryWriter

        self._lines = (folder / METRICS_NAME).open("a", encoding="utf-8")
        with uninterrupted():
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._wandb = wandb

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes the metrics of the steps up to number `step` (counted from 1); nested mappings become groups of charts."""
        self._lines.write(measured_json({"step": step, **values}) + "\n")
        self._lines.flush()
        numbers = _flatten(values)
        with uninterrupted():
            for tag, number in numbers.items():
                self._board.add_scalar(tag, number, step)
        if self._wandb is not None:
            self._wandb.log(step, numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=error is not None)

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Logs GIF (animated) and PNG files by tag, for the state after `step` steps."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for tag, path in pictures.items():
            with Image.open(path) as picture:
                width, height = picture.size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
            with uninterrupted():
                self._board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
        if self._wandb is not None:
            self._wandb.log_pictures(step, pictures)

    def flush(self) -> None:
        """Flushes everything to disk; required before a checkpoint."""
        os.fsync(self._lines.fileno())
        with uninterrupted():
            self._board.flush()

    def close(self, failed: bool = False) -> None:
        """Flushes everything and close."""
        self.flush()
        self._lines.close()
        with uninterrupted():
            self._board.close()
        if self._wandb is not None:
            self._wandb.close(failed)


class WandbRun:
    """A run in Weights & Biases; a run folder always resumes the same one.

    Args:
        project: Project of the run.
        folder: Run folder; stores the run's id and the package's files.
        config: The recipe.

    Raises:
        ConfigError: The run can't be opened, for example without a key or connection.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self._package = wandb
        try:
            self._run = wandb.init(
                project=project,
                id=_run_id(folder, project),
                resume="allow",
                dir=folder,
                config=dict(config),
                # The console belongs to the launcher, and the run folder records the software versions.
                settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
            )
        except (wandb.errors.UsageError, wandb.errors.CommError) as error:
            raise ConfigError(
                f"Weights & Biases can't open a run in training.wandb_project {project} ({error}): set WANDB_API_KEY, set "
                "WANDB_MODE=offline, or remove the key"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs numbers by name, after `step` steps."""
        self._run.log({"step": step, **numbers})

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Logs GIF (animated) and PNG files by tag, after `step` steps."""
        package = self._package
        media = {
            tag: package.Video(str(path), format="gif") if path.suffix == ".gif" else package.Image(str(path))
            for tag, path in pictures.items()
        }
        self._run.log({"step": step, **media})

    def close(self, failed: bool) -> None:
        """Sends or write what is left."""
        self._run.finish(exit_code=int(failed))


def _run_id(folder: Path, project: str) -> str:
    """Returns the id of a folder's run in a project; create it at the first call."""
    path = folder / WANDB_NAME
    known = json.loads(path.read_bytes()) if path.exists() else {}
    if known.get("project") != project:
        known = {"project": project, "id": secrets.token_hex(8)}
        storage.write_bytes(str(path), json.dumps(known).encode())
    return str(known["id"])


def _flatten(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns numbers by name, nested ones as `group/name`; None values are left out."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        flat |= {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
    return {name: number for name, number in flat.items() if number is not None}
