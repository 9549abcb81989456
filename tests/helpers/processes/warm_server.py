"""Serves `warm`: imports modules, then forks a process for each request on a socket. Arguments: a file descriptor, modules."""

import atexit
import contextlib
import gc
import importlib
import os
import pickle
import runpy
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answer requests until the other end closes; returns only in a new process, with its job and its streams."""
    while True:
        size, fds, _, _ = socket.recv_fds(connection, 8, 3)
        if not size:
            sys.exit(0)
        job = connection.recv(struct.unpack("<Q", size)[0], socket.MSG_WAITALL)
        answer, ours = os.pipe()
        middle = os.fork()
        if middle == 0:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                # The process in the middle ends; then this one is a child of the process that asked.
                while os.getppid() == parent:
                    time.sleep(0.0005)
                for fd in (answer, ours):
                    os.close(fd)
                return pickle.loads(job), fds
            os.write(ours, struct.pack("<Q", pid))
            os._exit(0)
        os.waitpid(middle, 0)
        connection.sendall(os.read(answer, 8))
        for fd in (*fds, answer, ours):
            os.close(fd)


def become(job: dict[str, Any], fds: list[int]) -> tuple[Any, Any]:
    """Give this process the streams, session, folder, environment and import path of a job; returns its work."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    if job["new_session"]:
        os.setsid()
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    tempfile.tempdir = None  # TMPDIR is looked up again.
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stdout.reconfigure(write_through=unbuffered)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    added = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    fresh = [job["cwd"], *added, *sys.path]
    sys.path[:] = job["path"]
    command, prepare = pickle.loads(job["work"])
    if not callable(command[0]):
        sys.path[:] = fresh
    for folder in added:
        if (site := Path(folder, "sitecustomize.py")).exists():
            runpy.run_path(str(site))
    return command, prepare


def work(command: Any) -> None:
    """Run a function with its arguments, or `python -m MODULE ...`, or `python -c CODE ...`."""
    if callable(command[0]):
        command[0](*command[1:])
        return
    option, what, *sys.argv[1:] = command[1:]
    assert option in ("-m", "-c"), command
    sys.argv[0] = option
    if option == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        return
    # The module runs as `__main__`, whoever has imported it before.
    for name in (what, f"{what}.__main__"):
        if not hasattr(sys.modules.get(name), "__path__"):
            sys.modules.pop(name, None)
    runpy.run_module(what, run_name="__main__", alter_sys=True)


def finish(command: Any) -> int:
    """Work, then do what Python does at its end, but for the freeing of all objects; returns the exit status."""
    status: Any = 0
    try:
        work(command)
    except SystemExit as end:
        status = end.code
        if not isinstance(status, int | None):
            print(status, file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        status = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return status or 0


def main() -> None:
    """Import, serve, and work in each new process."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    # The project's root comes first, and not the folder of this file.
    sys.path[0] = str(Path.cwd())
    # DeepSpeed's log keeps the stdout that it finds; see training/compat.py.
    with contextlib.redirect_stdout(sys.stderr):
        for module in sys.argv[2:]:
            importlib.import_module(module)
    sys.path.pop(0)
    gc.freeze()
    job, fds = serve(connection)
    connection.close()
    command, prepare = become(job, fds)
    if prepare is not None:
        prepare()
    status = finish(command)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main()
