"""One stage of the demo: a command of the project, run as a user would run it, timed, and its summary kept."""

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

# For a stage that is told to end, training's checkpoint included; less than this process has itself.
_FAREWELL_SECONDS = 8.0


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes:
        name: Of the stage.
        seconds: Wall-clock time, start-up included.
        summary: The JSON object that the command printed last on stdout; empty where it printed none.
    """

    name: str
    seconds: float
    summary: dict[str, Any]


def run_stage(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> StageResult:
    """Run a command with its progress on this process's stderr and its stdout in `log`. Nothing that it started outlives it.

    Raises:
        ProjectError: It failed.
        Interrupted: This process was told to end, and the command was too.
    """
    print(f"\n== {name}\n$ {shlex.join(command)}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    adopt_orphans()
    others = descendants(os.getpid())
    try:
        with log.open("w", encoding="utf-8") as output:
            # In a group of its own: torchrun leaves its workers behind where a signal comes twice, from the terminal and from
            # here.
            process = Child(command, stdin=subprocess.DEVNULL, stdout=output, env=dict(environment), process_group=0)
            status = _ending(process)
    finally:
        kill_descendants(keep=others)
    seconds = time.perf_counter() - started
    if status:
        raise ProjectError(f"the stage `{name}` ended with status {status}; its messages are above, its output is in {log}")
    return StageResult(name, seconds, last_json(log.read_text(encoding="utf-8")))


def _ending(process: Child) -> int:
    """The exit status of a process; a signal that ends this one goes to it too, and then it has some seconds."""
    try:
        return process.wait()
    except Interrupted as told:
        process.send_signal(told.number)
        try:
            process.wait(_FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def last_json(text: str) -> dict[str, Any]:
    """The last line of `text` that is a JSON object, or an empty one."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            return value if isinstance(value, dict) else {}
    return {}
