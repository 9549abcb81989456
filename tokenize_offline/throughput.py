"""Clips a second of one process, as a person states it or as an earlier run or benchmark measured it.

Records hold no rates, since the same work gives the same record; what a command or benchmark printed does, so its output is
what is read here.
"""

import json
import math
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConfigError


def clips_per_second(text: str) -> float:
    """The rate that `--rate` means.

    Args:
        text: A number, or a file whose last line is what `ivideogpt-tokenize` or `scripts/benchmarks/tokenize_stage.py`
            printed. A fleet's rate is divided by its processes.

    Raises:
        ConfigError: It is neither, or no rate above 0.
    """
    try:
        rate = float(text)
    except ValueError:
        rate = _measured(text)
    if not (rate > 0 and math.isfinite(rate)):
        raise ConfigError(f"--rate {text}: clips a second must be above 0, not {rate}")
    return rate


def _measured(path: str) -> float:
    if not storage.exists(path):
        raise ConfigError(f"--rate {path} is neither a number of clips a second nor a file")
    lines = storage.read_bytes(path).decode(errors="replace").strip().splitlines()
    try:
        printed: Any = json.loads(lines[-1])
        if printed.get("benchmark") == "tokenize":
            return float(printed["measured"])
        return float(printed["rows_per_second"]) / int(printed["processes"])
    except (IndexError, ValueError, AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"--rate {path}: its last line is no result of ivideogpt-tokenize that made shards, nor of "
            f"scripts/benchmarks/tokenize_stage.py ({error!r}); give clips a second as a number"
        ) from error
