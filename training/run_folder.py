"""Whose a run folder is: what identifies the run in it, what it may go on from, and who writes to it now."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import ConflictError
from pipeline.recipe import Recipe
from pipeline.records import describe_difference, fingerprint
from training.checkpoints import Checkpoint, newest_checkpoint
from training.token_store import TokenStore

RUN_NAME = "run.json"
CHECKPOINTS_NAME = "checkpoints"
_LOCK_NAME = ".lock"
# Settings that may change when a run is resumed: they decide neither the samples nor the shape of a checkpoint, or, as
# `steps`, are recorded by step.
_FREE = (
    "steps",
    "log_every",
    "evaluate_every",
    "evaluate_clips",
    "evaluate_predictions",
    "wandb_project",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "nonfinite_limit",
    "workers",
    "micro_batch",
    "compile",
    "deepspeed",
    # Its content decides, not where it lies.
    "init_from",
)


def identify(recipe: Recipe, store: TokenStore, initial: str | None = None) -> dict[str, Any]:
    """What must be the same when a run over the data sets of a store is resumed; data sets may join.

    Args:
        recipe: Of the run.
        store: Its training clips.
        initial: SHA-256 of the weights that it started from; None where these were random.
    """
    identity: dict[str, Any] = {
        "model": dataclasses.asdict(recipe.model),
        "training": {key: value for key, value in dataclasses.asdict(recipe.training).items() if key not in _FREE},
        "layout": dataclasses.asdict(store.layout),
        "datasets": {name: dataclasses.asdict(store.sizes[name]) for name in store.datasets},
    }
    if initial is not None:
        identity["initial_sha256"] = initial
    # As JSON gives it back, so that it compares equal to what a run folder holds.
    return dict(json.loads(json.dumps(identity)))


def run_fingerprint(identity: Mapping[str, Any]) -> str:
    """What ties a checkpoint to its run: a hash of all of its identity but the data sets, which may join later."""
    return fingerprint({key: value for key, value in identity.items() if key != "datasets"})


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what identifies the run."""
    storage.write_bytes(str(folder / RUN_NAME), json.dumps(identity, indent=1).encode())


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What identifies the run in a folder; None where there is none.

    Raises:
        ConflictError: It can't be told whose the folder is.
    """
    path = folder / RUN_NAME
    if not path.exists():
        if newest_checkpoint(folder / CHECKPOINTS_NAME) is not None:
            raise ConflictError(f"{folder} has checkpoints but no {RUN_NAME} that says of what: choose another --output")
        return None
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ConflictError(f"{path} is damaged ({error}): choose another --output") from error


def require_same_run(
    folder: Path, known: Mapping[str, Any], identity: Mapping[str, Any], checkpoint: Checkpoint | None
) -> None:
    """Refuse to go on with a run of another recipe or other token shards; data sets that it didn't have may join.

    Args:
        folder: Of the run.
        known: What identifies the run in it.
        identity: What identifies the run that shall go on.
        checkpoint: That it shall go on from.

    Raises:
        ConflictError: They differ; the message says in what.
    """
    joining = {name for name in identity["datasets"] if name not in known["datasets"]}
    comparable = {**identity, "datasets": {k: size for k, size in identity["datasets"].items() if k not in joining}}
    if known != comparable:
        raise ConflictError(
            f"{folder} holds a run of another recipe or other token shards; they differ in "
            f"{describe_difference(known, comparable)}. Choose another --output."
        )
    if checkpoint is not None and checkpoint.progress.run != run_fingerprint(identity):
        raise ConflictError(
            f"{checkpoint.folder} was written by a run of another recipe: take it out of {folder}, or choose another --output"
        )


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a run folder while this context lasts. For rank 0, before the process group is formed.

    Workers can outlive a launcher that was killed; without this they and the next run would write the same files.

    Raises:
        ConflictError: Another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another run is at work in {folder}: wait for it, or end its processes (workers can outlive a launcher)"
            ) from error
        yield
