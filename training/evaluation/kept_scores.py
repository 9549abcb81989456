"""Keeps the scores of clips on disk until the evaluation is finished, so that a killed evaluation can resume.

Scores are files in the folder `scores` of the output; each file has the scores of some clips. `scores/command.json` says which
evaluation they belong to; writing it first also shows whether the output can be written. A file is published whole or not at
all, so a kill costs seconds. Only rank 0 says what is done, because it makes the summary and machines may have separate disks.
"""

import contextlib
import io
import json
import logging
import time
import zipfile
from collections.abc import Mapping

import numpy as np
import torch

from pipeline.common import storage
from pipeline.common.errors import ConflictError, ProjectError, StorageError
from pipeline.common.json_files import parse_json
from pipeline.common.manifests import describe_difference, fingerprint
from training.evaluation.scores import ClipScores

FOLDER, COMMAND = "scores", "command.json"
# Seconds between two files of a process: a kill costs this much, plus the clip in progress.
SECONDS_BETWEEN = 5.0
log = logging.getLogger(__name__)


class KeptScores:
    """The scores in an evaluation's output folder. Leaving its `with` block writes pending scores, also after an error.

    Args:
        output: Folder or URL.
        command: Everything except the clip that decides the scores of a clip, as JSON values.
        form: Scores of one clip, for their shape.
    """

    def __init__(self, output: str, command: Mapping[str, object], form: ClipScores) -> None:
        self.folder = storage.join(output, FOLDER)
        self._command = json.loads(json.dumps(command))
        self._fingerprint = fingerprint(self._command)
        self._shape = tuple(tuple(part.shape[1:]) for part in (form.frames, form.features))
        self._pending: dict[str, ClipScores] = {}
        self._written: list[str] = []
        self._last = time.monotonic()
        self._refused = False

    def claim(self) -> dict[str, ClipScores]:
        """Claims the folder for this command; returns the scores in it, by clip. Call it on rank 0.

        Raises:
            ConflictError: The folder has scores of another command.
            StorageError: The folder cannot be written.
        """
        try:
            return self._claim(storage.join(self.folder, COMMAND))
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be written: {error.strerror or error}. Fix it or choose another --output"
            ) from error

    def _claim(self, path: str) -> dict[str, ClipScores]:
        found = self._read_command(path)
        if found is not None and found != self._command:
            raise ConflictError(
                f"{self.folder} has scores of another, unfinished evaluation: "
                f"{describe_difference(found, self._command)}. Choose another --output, or delete {self.folder} to start again"
            )
        text = json.dumps(self._command, indent=1, sort_keys=True, ensure_ascii=False)
        storage.write_bytes(path, text.encode() + b"\n")
        return self._read() if found is not None else {}

    def __enter__(self) -> "KeptScores":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, clip: str, scores: ClipScores) -> None:
        """Keeps the scores of a clip; they are written within seconds."""
        self._pending[clip] = scores
        if time.monotonic() - self._last >= SECONDS_BETWEEN:
            self.flush()

    def flush(self) -> None:
        """Writes pending scores. If that fails, it logs the first failure, and the next call tries again."""
        if not self._pending:
            return
        self._last = time.monotonic()
        parts = list(self._pending.values())
        buffer = io.BytesIO()
        np.savez(
            buffer,
            command=np.frombuffer(self._fingerprint.encode(), np.uint8),
            clips=np.frombuffer(json.dumps(list(self._pending)).encode(), np.uint8),
            frames=torch.cat([part.frames for part in parts]).numpy(),
            features=torch.cat([part.features for part in parts]).numpy(),
        )
        # Each clip is scored once, by one process, so no other file starts with the same clip.
        path = storage.join(self.folder, f"{fingerprint({'clip': next(iter(self._pending))})}.npz")
        try:
            storage.write_bytes(path, buffer.getvalue())
        except (OSError, ProjectError) as error:
            if not self._refused:
                log.warning("cannot keep the scores so far: %s", error)
            self._refused = True
            return
        self._written.append(path)
        self._pending = {}

    def remove(self) -> None:
        """Removes all scores. Call it on all ranks, since each may have its own disk."""
        names = [storage.join(self.folder, name) for name in storage.list_files(self.folder)]
        parts = {*names, *self._written} - {storage.join(self.folder, COMMAND)}
        # The command file goes last: without it nobody knows which evaluation the scores belong to.
        for path in [*sorted(parts), storage.join(self.folder, COMMAND)]:
            storage.remove(path)
        if storage.is_local(self.folder):
            with contextlib.suppress(OSError):  # Another process may be removing files at the same time.
                storage.local_path(self.folder).rmdir()

    def _read_command(self, path: str) -> object:
        try:
            return parse_json(storage.read_bytes(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConflictError(
                f"{path} does not describe an evaluation ({error}): delete {self.folder} to start again"
            ) from error

    def _read(self) -> dict[str, ClipScores]:
        found: dict[str, ClipScores] = {}
        for name in storage.list_files(self.folder):
            if name.endswith(".npz"):
                found |= self._read_part(storage.join(self.folder, name))
        return found

    def _read_part(self, path: str) -> dict[str, ClipScores]:
        try:
            with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as part:
                if part["command"].tobytes().decode() != self._fingerprint:
                    raise ValueError("it belongs to another command")
                clips = json.loads(part["clips"].tobytes())
                frames, features = (torch.from_numpy(part[name].astype(np.float64)) for name in ("frames", "features"))
            shapes = (tuple(frames.shape[1:]), tuple(features.shape[1:]))
            if shapes != self._shape or not len(frames) == len(features) == len(clips):
                raise ValueError(f"scores of shape {shapes}, not {self._shape}")
            return {str(clip): ClipScores(frames[i : i + 1], features[i : i + 1]) for i, clip in enumerate(clips)}
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read (%s): its clips are scored again", path, error)
            return {}
