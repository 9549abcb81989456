"""Starts Python commands and functions as forks of a server that has imported what they need.

A small test spends most of its time on imports. `Popen` and `run` replace those of `subprocess` for `python -m MODULE` and
`python -c CODE`; the process is a child of the test's process. A fork differs from a new Python in two things: environment
variables that a library reads while it is imported have no effect, and /proc shows the server's command line and environment.
A test of either starts a new Python.
"""

import atexit
import contextlib
import ctypes
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# Modules by the server that imports them: ingest needs no torch, and everything else no Beam.
_INGEST, _TORCH = "ingest", "torch"
_PRELOADED = {
    _INGEST: ["apache_beam", "pipeline.ingest.runners.beam", "pipeline.sources.rlds.source", "pyarrow.parquet", "pytest"],
    _TORCH: [
        *("deepspeed", "deepspeed.checkpoint.ds_to_universal", "pyarrow.parquet", "pytest", "torch.distributed.run"),
        *("tokenize_offline.worker.worker", "training.predict", "training.evaluate", "training.train_tokenizer"),
        *("training.trainer.trainer", "training.trainer.replay", "training.trainer.verify_resume.verify"),
        *("torch.utils.tensorboard.writer", "transformers.models.llama"),
    ],
}
_SERVER = Path(__file__).with_name("warm_server.py")


class Popen(subprocess.Popen[Any]):
    """A warm process. Arguments as `subprocess.Popen` has them; `preexec_fn` must be picklable.

    The command may also be a function of a module with its arguments, `(function, *arguments)`.
    """

    def _execute_child(self, args: Any, _executable: object, preexec_fn: Any, *given: Any) -> None:
        close_fds, pass_fds, cwd, env, _startupinfo, _flags, shell, *streams = given
        stdin, parent_in, parent_out, stdout, parent_error, stderr = streams[:6]
        assert close_fds and not pass_fds and not shell, "a warm process gets no more than its streams"
        call = args if callable(args[0]) else [os.fspath(word) for word in args]
        job = {
            "cwd": str(Path(cwd or ".").absolute()),
            "env": dict(os.environ if env is None else env),
            "new_session": streams[11],
            "path": sys.path,
            "work": pickle.dumps((call, preexec_fn)),
        }
        fds = [fd if theirs == -1 else theirs for fd, theirs in ((0, stdin), (1, stdout), (2, stderr))]
        ingests = not callable(args[0]) and list(call[1:3]) == ["-m", "pipeline"]
        try:
            self.pid = _server(_INGEST if ingests else _TORCH).start(pickle.dumps(job), fds)
            self._child_created = True
        finally:
            self._close_pipe_fds(stdin, parent_in, parent_out, stdout, parent_error, stderr)


def run(
    command: Any, *, timeout: float = 300.0, capture_output: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a command to its end, as `subprocess.run` does with `check=False`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class _Server:
    """A process that forks; the forks become children of this process."""

    def __init__(self, modules: list[str]) -> None:
        self._ours, theirs = socket.socketpair()
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(_SERVER), str(theirs.fileno()), *modules]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, cwd=_SERVER.parents[3], start_new_session=True
            )
        self._starting = threading.Lock()
        atexit.register(self._end)

    def start(self, job: bytes, fds: list[int]) -> int:
        """Start a process with these streams; returns its number."""
        prctl = ctypes.CDLL(None).prctl
        with self._starting:
            # A fork whose parent has ended goes to the nearest process above that asks for it.
            prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._ours, [struct.pack("<Q", len(job))], fds)
                self._ours.sendall(job)
                answer = self._ours.recv(8, socket.MSG_WAITALL)
            finally:
                prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert len(answer) == 8, "the server of warm processes has died"
        return int(struct.unpack("<Q", answer)[0])

    def _end(self) -> None:
        self._ours.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()


_servers: dict[tuple[int, str], _Server] = {}


def _server(kind: str) -> _Server:
    """This process's server, started when first needed; a fork of this process starts one of its own."""
    key = os.getpid(), kind
    if key not in _servers:
        _servers[key] = _Server(_PRELOADED[kind])
    return _servers[key]
