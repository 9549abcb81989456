"""Manages a run folder: the run's identity, the checkpoint to resume from, and the lock of its writer."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.common import storage
from pipeline.common.errors import ConflictError
from pipeline.common.locks import locked
from pipeline.common.manifests import describe_difference, fingerprint
from pipeline.common.measured_json import json_values
from pipeline.config.recipe import Recipe
from training.data.token_dataset import TokenStore
from training.trainer.checkpoints.files import LATEST_NAME, check_checkpoints, checkpoint_names
from training.trainer.checkpoints.states import Checkpoint, CheckResult, State

RUN_NAME = "run.json"
CHECKPOINTS_NAME = "checkpoints"
SUMMARY_NAME = "metrics.json"
_LOCK_NAME = ".lock"
# Files of a folder without RUN_NAME that belong to another command, or to a run that lost its RUN_NAME.
_OF_OTHERS = ("model", SUMMARY_NAME, "metrics.jsonl", "tokenizer", f"{CHECKPOINTS_NAME}/latest.json")
# Keys of the identity that hold digests of token shards, by data set.
SHARDS = "shards"
VALIDATION_SHARDS = "held_out_shards"
# Settings that may change when a run resumes: they decide neither samples nor the layout of a checkpoint, or are recorded by
# step, as `steps` is.
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
    # The identity has the hash of its content.
    "init_from",
)
log = logging.getLogger(__name__)


def run_identity(
    recipe: Recipe,
    store: TokenStore,
    initial: str | None = None,
    validation: TokenStore | None = None,
    nonstandard_settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the settings that must be the same when a run resumes. Data sets may be added.

    Args:
        recipe: Recipe of the run.
        store: Training clips.
        initial: SHA-256 of the initial weights; None for random ones.
        validation: Held-out clips; None if there are none.
        nonstandard_settings: What the network computes differently from the recipe's model.
    """
    identity: dict[str, Any] = {
        "model": dataclasses.asdict(recipe.model),
        "training": {key: value for key, value in dataclasses.asdict(recipe.training).items() if key not in _FREE},
        "layout": dataclasses.asdict(store.layout),
        "datasets": {name: dataclasses.asdict(store.sizes[name]) for name in store.datasets},
        SHARDS: dict(store.digests),
        VALIDATION_SHARDS: dict(validation.digests) if validation else {},
    }
    if initial is not None:
        identity["initial_sha256"] = initial
    if nonstandard_settings:
        identity["llama"] = dict(nonstandard_settings)
    # As JSON, so that it equals what is read from a run folder.
    return json_values(identity)


def run_fingerprint(identity: Mapping[str, Any]) -> str:
    """Returns a hash of a run's identity without its data sets, which may be added later. Checkpoints store it."""
    data = ("datasets", SHARDS, VALIDATION_SHARDS)
    return fingerprint({key: value for key, value in identity.items() if key not in data})


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Writes a run's identity into its folder."""
    storage.write_bytes(str(folder / RUN_NAME), json.dumps(identity, indent=1).encode())


def read_identity(folder: Path) -> dict[str, Any] | None:
    """Returns the identity of the run in a folder; None if it holds no run.

    Raises:
        ConflictError: The identity is lost or damaged, or another command owns the folder.
    """
    path = folder / RUN_NAME
    if not path.exists():
        if names := checkpoint_names(folder / CHECKPOINTS_NAME):
            raise ConflictError(
                f"{folder} has checkpoints ({', '.join(names[-3:])}) but no {RUN_NAME}: restore that file, or choose "
                "another --output"
            )
        if found := [name for name in _OF_OTHERS if (folder / name).exists()]:
            raise ConflictError(
                f"{folder} holds {found[0]} but no {RUN_NAME}, so it belongs to another command: choose another --output"
            )
        return None
    try:
        identity = dict(json.loads(path.read_bytes()))
        if missing := [key for key in ("model", "training", "layout", "datasets") if not isinstance(identity.get(key), dict)]:
            raise ValueError(f"it lacks {missing[0]}")
    except (ValueError, TypeError) as error:
        raise ConflictError(f"{path} is damaged ({error}): restore it, or choose another --output") from error
    return identity


def require_resumable(folder: Path, resume: Literal["auto", "never"]) -> None:
    """Refuses `--resume never` for a folder that holds a run.

    Raises:
        ConflictError: The option is `never`.
    """
    if resume == "never":
        raise ConflictError(f"{folder} already holds a run: remove --resume never to resume it, or choose another --output")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Returns the summary that a run wrote when it last ended; None if there is none or it can't be read."""
    try:
        summary = dict(json.loads((folder / SUMMARY_NAME).read_bytes()))
        return summary if isinstance(summary["steps"], int) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def find_checkpoint(
    folder: Path, steps: int, at_most: int | None = None, known: Mapping[str, CheckResult] | None = None, verbose: bool = True
) -> Checkpoint | None:
    """Returns the newest whole checkpoint of a run; None if the run has none yet, or is finished and has none left.

    Args:
        folder: Run folder.
        steps: Number of steps of the run.
        at_most: Maximum number of steps of the checkpoint, for a replay; a replay may also start from the beginning.
        known: Results of earlier content checks, by checkpoint name.
        verbose: Whether to log the skipped checkpoints.

    Raises:
        ConflictError: The run had checkpoints, but none is whole: starting again would destroy the run.
    """
    passed: list[CheckResult] = []
    for result in check_checkpoints(folder / CHECKPOINTS_NAME, at_most, known):
        if result.checkpoint is not None:
            if verbose:
                _log_skipped(folder, passed, f"resuming from {result.folder.name}")
            return result.checkpoint
        passed.append(result)
    if at_most is None:
        _require_none_lost(folder, steps, passed)
    if verbose:
        _log_skipped(folder, passed, "there is no older one")
    return None


def _log_skipped(folder: Path, passed: Sequence[CheckResult], instead: str) -> None:
    advice = {
        State.UNFINISHED: "The next save removes it",
        State.DAMAGED: "Only you can remove it",
        State.UNREADABLE: "If its disk comes back, stop this run and start it again",
    }
    for result in passed:
        log.warning("%s: %s: skipped, %s. %s", folder / CHECKPOINTS_NAME, result, instead, advice[result.state])


def _require_none_lost(folder: Path, steps: int, found: Sequence[CheckResult]) -> None:
    """Refuses to start a run again from the beginning if it once had a whole checkpoint."""
    summary = read_summary(folder)
    if not found and summary is not None and summary["steps"] >= steps:
        return
    had_one = summary is not None or (folder / CHECKPOINTS_NAME / LATEST_NAME).exists()
    if not had_one and all(result.state is State.UNFINISHED for result in found):
        # Killed during the first save.
        return
    what = f"none of its checkpoints can be loaded: {'; '.join(map(str, found))}" if found else "its checkpoints are gone"
    raise ConflictError(
        f"{folder} holds a run, but {what}. Nothing was changed. Restore one from a copy, or choose another --output to "
        "start again"
    )


def require_same_run(
    folder: Path, known: Mapping[str, Any], identity: Mapping[str, Any], checkpoint: Checkpoint | None, verbose: bool = True
) -> None:
    """Refuses to resume a run with another recipe or other token shards. Data sets may be added.

    Args:
        folder: Run folder.
        known: Identity of the run in the folder.
        identity: Identity of the run to resume.
        checkpoint: Checkpoint to resume from.
        verbose: Whether to log what is not known about the run.

    Raises:
        ConflictError: They differ; the message lists the differences.
    """
    joining = {name for name in identity["datasets"] if name not in known["datasets"]}
    comparable = {**identity, "datasets": {k: size for k, size in identity["datasets"].items() if k not in joining}}
    before, now = (_without_digests(values) for values in (known, comparable))
    if before != now:
        raise ConflictError(
            f"{folder} holds a run of another recipe or other token shards; different: "
            f"{describe_difference(before, now)}. Choose another --output."
        )
    if verbose and SHARDS not in known:
        log.warning("%s has no digests of its token shards: assuming that those of --tokens are the same", folder / RUN_NAME)
    for key, kind in ((SHARDS, "token shards"), (VALIDATION_SHARDS, "held-out token shards")):
        _require_same_shards(folder, kind, known.get(key, {}), identity[key])
    if checkpoint is not None and checkpoint.progress.run != run_fingerprint(identity):
        raise ConflictError(
            f"{checkpoint.folder} was written by a run of another recipe: move it out of {folder}, or choose another --output"
        )


def _without_digests(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in (SHARDS, VALIDATION_SHARDS)}


def _require_same_shards(folder: Path, kind: str, known: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuses shards with other content than at the start of the run."""
    for name, digest in known.items():
        if found.get(name) != digest:
            what = "have changed" if name in found else "are gone"
            raise ConflictError(
                f"{folder}: the {kind} of {name} {what} since the run started ({digest} in {RUN_NAME}, "
                f"{found.get(name, 'none')} now). Give --tokens the original shards, or choose another --output"
            )


@contextlib.contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Locks a run folder while this context lasts. For rank 0, before the process group is formed.

    Workers can outlive a killed launcher; without the lock they and the next run would write the same files.

    Raises:
        ConflictError: Another run holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            (folder / _LOCK_NAME).open("a").close()
            stack.enter_context(locked(folder / _LOCK_NAME, wait=False))
        except BlockingIOError as error:
            raise ConflictError(
                f"another run is using {folder}: wait for it, or end its processes (workers can outlive a launcher)"
            ) from error
        yield
