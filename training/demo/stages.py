"""Runs one stage of the demo as a command in its own process, and keeps its duration and summary."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import ProjectError
from pipeline.processes.child_processes import Child, adopt_orphans, descendants, kill_descendants
from pipeline.processes.interruption import Interrupted

# Time limit for a stage to stop, including the checkpoint of training; shorter than the limit of this process.
_STOP_SECONDS = 8.0


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    Attributes:
        name: Name of the stage.
        seconds: Duration, including start-up.
        summary: The last JSON object that the command printed on stdout; empty if it printed none.
    """

    name: str
    seconds: float
    summary: dict[str, Any]


def run_stage(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> StageResult:
    """Runs a command with its stderr passed through and its stdout in `log`. No process that it started outlives it.

    Raises:
        ProjectError: The command failed.
        Interrupted: A signal stopped this process and the command.
    """
    print(f"\n== {name}\n$ {shlex.join(command)}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    adopt_orphans()
    others = descendants(os.getpid())
    try:
        with log.open("w", encoding="utf-8") as output:
            # In a separate process group, because torchrun leaves its workers running if a signal arrives twice, from the
            # terminal and from here.
            process = Child(command, stdin=subprocess.DEVNULL, stdout=output, env=dict(environment), process_group=0)
            status = _exit_status(process)
    finally:
        kill_descendants(keep=others)
    seconds = time.perf_counter() - started
    if status:
        raise ProjectError(f"the stage `{name}` failed with status {status}; see its messages above and its output in {log}")
    return StageResult(name, seconds, last_json(log.read_text(encoding="utf-8")))


def _exit_status(process: Child) -> int:
    """Returns the exit status of a process; a signal to this process is passed on, with some seconds to stop."""
    try:
        return process.wait()
    except Interrupted as interrupt:
        process.send_signal(interrupt.number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def last_json(text: str) -> dict[str, Any]:
    """Returns the last line of `text` that is a JSON object; an empty one if there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            return value if isinstance(value, dict) else {}
    return {}
