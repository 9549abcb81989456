"""Scores that outlive their process: those of some clips a file, in a folder of the output until the evaluation is done.

`scores/command.json` says what the scores are of, and trying to write it is how an output that can't be written is found before
any work. A part is published whole or not at all, so a killed evaluation loses seconds. What is done is asked of rank 0 alone:
it is the one that sums up, and disks of several machines may hold different parts.
"""

import contextlib
import io
import json
import logging
import time
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.common import storage
from pipeline.common.errors import ConflictError, ProjectError, StorageError
from pipeline.common.json_files import parse_json
from pipeline.common.manifests import describe_difference, fingerprint
from training.evaluation.scores import ClipScores

FOLDER, COMMAND = "scores", "command.json"
# Between two parts of a process: what a kill costs at most, beside the clip in work.
SECONDS_BETWEEN = 5.0
log = logging.getLogger(__name__)


class KeptScores:
    """The scores in an evaluation's output folder. As a context, it writes what waits however the block ends.

    Args:
        output: Folder or URL.
        command: Everything that decides the scores of a clip beside the clip itself, in a form that JSON holds.
        form: Scores of one clip, for their shape.
    """

    def __init__(self, output: str, command: Mapping[str, Any], form: ClipScores) -> None:
        self.folder = storage.join(output, FOLDER)
        self._command = json.loads(json.dumps(command))
        self._fingerprint = fingerprint(self._command)
        self._shape = tuple(tuple(part.shape[1:]) for part in (form.frames, form.features))
        self._waiting: dict[str, ClipScores] = {}
        self._written: list[str] = []
        self._last = time.monotonic()
        self._refused = False

    def claim(self) -> dict[str, ClipScores]:
        """Take the folder for this command, and what is there of it already: clip -> scores. Call it on rank 0.

        Raises:
            ConflictError: Scores of another command are there.
            StorageError: The folder can't be written.
        """
        try:
            return self._claim(storage.join(self.folder, COMMAND))
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"{self.folder} can't be written: {error.strerror or error}. Choose another --output, or mend that one"
            ) from error

    def _claim(self, path: str) -> dict[str, ClipScores]:
        found = self._read_command(path)
        if found is not None and found != self._command:
            raise ConflictError(
                f"{self.folder} holds scores of another evaluation that was not finished: "
                f"{describe_difference(found, self._command)}. Choose another --output, or delete {self.folder} to begin anew"
            )
        text = json.dumps(self._command, indent=1, sort_keys=True, ensure_ascii=False)
        storage.write_bytes(path, text.encode() + b"\n")
        return self._read() if found is not None else {}

    def __enter__(self) -> "KeptScores":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, clip: str, scores: ClipScores) -> None:
        """Keep the scores of a clip; now, or with the next ones within seconds."""
        self._waiting[clip] = scores
        if time.monotonic() - self._last >= SECONDS_BETWEEN:
            self.flush()

    def flush(self) -> None:
        """Write what waits. A disk that takes no more ends no evaluation: it is told of once, and tried again."""
        if not self._waiting:
            return
        self._last = time.monotonic()
        parts = list(self._waiting.values())
        buffer = io.BytesIO()
        np.savez(
            buffer,
            command=np.frombuffer(self._fingerprint.encode(), np.uint8),
            clips=np.frombuffer(json.dumps(list(self._waiting)).encode(), np.uint8),
            frames=torch.cat([part.frames for part in parts]).numpy(),
            features=torch.cat([part.features for part in parts]).numpy(),
        )
        # A clip is scored by one process, once, so no other part begins with the same one.
        path = storage.join(self.folder, f"{fingerprint({'clip': next(iter(self._waiting))})}.npz")
        try:
            storage.write_bytes(path, buffer.getvalue())
        except (OSError, ProjectError) as error:
            if not self._refused:
                log.warning("scores so far can't be kept: %s", error)
            self._refused = True
            return
        self._written.append(path)
        self._waiting = {}

    def remove(self) -> None:
        """Remove all scores: they are summed up. Every process does, since each may have written to a disk of its own."""
        names = [storage.join(self.folder, name) for name in storage.list_files(self.folder)]
        parts = {*names, *self._written} - {storage.join(self.folder, COMMAND)}
        # The record goes last: without it nobody knows what the parts are of.
        for path in [*sorted(parts), storage.join(self.folder, COMMAND)]:
            storage.remove(path)
        if storage.is_local(self.folder):
            with contextlib.suppress(OSError):  # Another process removes its own at the same time.
                storage.local_path(self.folder).rmdir()

    def _read_command(self, path: str) -> Any:
        try:
            return parse_json(storage.read_bytes(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConflictError(
                f"{path} is no record of an evaluation ({error}): delete {self.folder} to begin anew"
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
                    raise ValueError("it is of another command")
                clips = json.loads(part["clips"].tobytes())
                frames, features = (torch.from_numpy(part[name].astype(np.float64)) for name in ("frames", "features"))
            shapes = (tuple(frames.shape[1:]), tuple(features.shape[1:]))
            if shapes != self._shape or not len(frames) == len(features) == len(clips):
                raise ValueError(f"scores of shape {shapes}, not {self._shape}")
            return {str(clip): ClipScores(frames[i : i + 1], features[i : i + 1]) for i, clip in enumerate(clips)}
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s can't be read (%s): its clips are scored again", path, error)
            return {}
