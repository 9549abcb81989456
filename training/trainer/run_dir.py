"""Whose a run folder is: what identifies the run in it, what it may go on from, and who writes to it now."""

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
from pipeline.config.recipe import Recipe
from training.data.token_dataset import TokenStore
from training.trainer.checkpoints.files import LATEST_NAME, check_checkpoints, checkpoint_names
from training.trainer.checkpoints.states import Checkpoint, CheckResult, State

RUN_NAME = "run.json"
CHECKPOINTS_NAME = "checkpoints"
SUMMARY_NAME = "metrics.json"
_LOCK_NAME = ".lock"
# What a folder without RUN_NAME has from elsewhere: another command, or a run that lost its RUN_NAME.
_OF_OTHERS = ("model", SUMMARY_NAME, "metrics.jsonl", "tokenizer", f"{CHECKPOINTS_NAME}/latest.json")
# Keys of the identity: digests of token shards, by data set.
SHARDS = "shards"
VALIDATION_SHARDS = "held_out_shards"
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
log = logging.getLogger(__name__)


def run_identity(
    recipe: Recipe,
    store: TokenStore,
    initial: str | None = None,
    validation: TokenStore | None = None,
    nonstandard_settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What must be the same when a run over the data sets of a store is resumed; data sets may join.

    Args:
        recipe: Of the run.
        store: Its training clips.
        initial: SHA-256 of the weights that it started from; None where these were random.
        validation: Its held-out clips, where there are any.
        nonstandard_settings: What the model computes in another way than the recipe's does.
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
    # As JSON gives it back, so that it compares equal to what a run folder holds.
    return dict(json.loads(json.dumps(identity)))


def run_fingerprint(identity: Mapping[str, Any]) -> str:
    """What ties a checkpoint to its run: a hash of all of its identity but the data sets, which may join later."""
    data = ("datasets", SHARDS, VALIDATION_SHARDS)
    return fingerprint({key: value for key, value in identity.items() if key not in data})


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what identifies the run."""
    storage.write_bytes(str(folder / RUN_NAME), json.dumps(identity, indent=1).encode())


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What identifies the run in a folder; None where there is none.

    Raises:
        ConflictError: It can't be told whose the folder is, or it is another command's.
    """
    path = folder / RUN_NAME
    if not path.exists():
        if names := checkpoint_names(folder / CHECKPOINTS_NAME):
            raise ConflictError(
                f"{folder} has checkpoints but no {RUN_NAME} that says of what ({', '.join(names[-3:])}): bring that file "
                "back, or choose another --output"
            )
        if found := [name for name in _OF_OTHERS if (folder / name).exists()]:
            raise ConflictError(
                f"{folder} holds {found[0]} but no {RUN_NAME}, so it is not a run of this command: choose another --output"
            )
        return None
    try:
        identity = dict(json.loads(path.read_bytes()))
        if missing := [key for key in ("model", "training", "layout", "datasets") if not isinstance(identity.get(key), dict)]:
            raise ValueError(f"it doesn't say {missing[0]}")
    except (ValueError, TypeError) as error:
        raise ConflictError(f"{path} is damaged ({error}): bring it back, or choose another --output") from error
    return identity


def require_resumable(folder: Path, resume: Literal["auto", "never"]) -> None:
    """Refuses `--resume never` for a folder that holds a run.

    Raises:
        ConflictError: It is asked for.
    """
    if resume == "never":
        raise ConflictError(f"{folder} already holds a run: leave out --resume never to resume it, or choose another --output")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary that a run wrote when it last ended; None where there is none, or none that can be read."""
    try:
        summary = dict(json.loads((folder / SUMMARY_NAME).read_bytes()))
        return summary if isinstance(summary["steps"], int) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def find_checkpoint(
    folder: Path, steps: int, at_most: int | None = None, known: Mapping[str, CheckResult] | None = None, tell: bool = True
) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder; None where the run begins anew, or has ended and has none any more.

    Args:
        folder: Of the run.
        steps: That the run shall have made in the end.
        at_most: Steps that the checkpoint may have; a run that is only replayed may always begin anew.
        known: Verdicts found by reading content, by the checkpoint's name.
        tell: Whether to log which checkpoints are passed over.

    Raises:
        ConflictError: The run has had checkpoints, and none of them is whole: to begin anew would destroy the run.
    """
    passed: list[CheckResult] = []
    for verdict in check_checkpoints(folder / CHECKPOINTS_NAME, at_most, known):
        if verdict.checkpoint is not None:
            if tell:
                _log_skipped(folder, passed, f"going on from {verdict.folder.name}")
            return verdict.checkpoint
        passed.append(verdict)
    if at_most is None:
        _require_none_lost(folder, steps, passed)
    if tell:
        _log_skipped(folder, passed, "there is none before it")
    return None


def _log_skipped(folder: Path, passed: Sequence[CheckResult], instead: str) -> None:
    advice = {
        State.UNFINISHED: "It goes at the next save",
        State.DAMAGED: "Nothing removes it but you",
        State.UNREADABLE: "If its disk comes back, end this run and start it again",
    }
    for verdict in passed:
        log.warning("%s: %s: passed over, %s. %s", folder / CHECKPOINTS_NAME, verdict, instead, advice[verdict.state])


def _require_none_lost(folder: Path, steps: int, found: Sequence[CheckResult]) -> None:
    """Refuse to begin a run anew that has had a whole checkpoint."""
    summary = read_summary(folder)
    if not found and summary is not None and summary["steps"] >= steps:
        return
    had_one = summary is not None or (folder / CHECKPOINTS_NAME / LATEST_NAME).exists()
    if not had_one and all(verdict.state is State.UNFINISHED for verdict in found):
        # Killed before the first checkpoint was whole.
        return
    what = f"none of its checkpoints can be loaded: {'; '.join(map(str, found))}" if found else "its checkpoints are gone"
    raise ConflictError(
        f"{folder} holds a run, but {what}. Nothing was changed. Bring one back from a copy, or choose another --output to "
        "begin anew"
    )


def require_same_run(
    folder: Path, known: Mapping[str, Any], identity: Mapping[str, Any], checkpoint: Checkpoint | None, tell: bool = True
) -> None:
    """Refuse to go on with a run of another recipe or other token shards; data sets that it didn't have may join.

    Args:
        folder: Of the run.
        known: What identifies the run in it.
        identity: What identifies the run that shall go on.
        checkpoint: That it shall go on from.
        tell: Whether to log what is not known of the run.

    Raises:
        ConflictError: They differ; the message says in what.
    """
    joining = {name for name in identity["datasets"] if name not in known["datasets"]}
    comparable = {**identity, "datasets": {k: size for k, size in identity["datasets"].items() if k not in joining}}
    before, now = (_without_digests(values) for values in (known, comparable))
    if before != now:
        raise ConflictError(
            f"{folder} holds a run of another recipe or other token shards; they differ in "
            f"{describe_difference(before, now)}. Choose another --output."
        )
    if tell and SHARDS not in known:
        log.warning("%s doesn't say what its token shards hold: those of --tokens are taken for the same", folder / RUN_NAME)
    for key, kind in ((SHARDS, "token shards"), (VALIDATION_SHARDS, "held-out token shards")):
        _require_same_shards(folder, kind, known.get(key, {}), identity[key])
    if checkpoint is not None and checkpoint.progress.run != run_fingerprint(identity):
        raise ConflictError(
            f"{checkpoint.folder} was written by a run of another recipe: take it out of {folder}, or choose another --output"
        )


def _without_digests(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in (SHARDS, VALIDATION_SHARDS)}


def _require_same_shards(folder: Path, kind: str, known: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse shards that hold something else than those that a run began with."""
    for name, digest in known.items():
        if found.get(name) != digest:
            what = "hold something else than" if name in found else "are gone, unlike"
            raise ConflictError(
                f"{folder}: the {kind} of {name} {what} when the run began ({digest} in {RUN_NAME}, "
                f"{found.get(name, 'none')} now). Give --tokens the shards of that time, or choose another --output"
            )


@contextlib.contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Hold a run folder while this context lasts. For rank 0, before the process group is formed.

    Workers can outlive a launcher that was killed; without this they and the next run would write the same files.

    Raises:
        ConflictError: Another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            (folder / _LOCK_NAME).touch()
            stack.enter_context(locked(folder / _LOCK_NAME, wait=False))
        except BlockingIOError as error:
            raise ConflictError(
                f"another run is at work in {folder}: wait for it, or end its processes (workers can outlive a launcher)"
            ) from error
        yield
