"""One stage of the demo: a command of the project, run as a user would run it, timed, and its summary kept."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ProjectError


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
    """Run a command with its progress on this process's stderr and its stdout in `log`.

    Raises:
        ProjectError: It failed.
    """
    print(f"\n== {name}\n$ {shlex.join(command)}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.run(command, stdout=output, env=dict(environment), check=False).returncode
    seconds = time.perf_counter() - started
    if status:
        raise ProjectError(f"the stage `{name}` ended with status {status}; its messages are above, its output is in {log}")
    return StageResult(name, seconds, last_json(log.read_text(encoding="utf-8")))


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
