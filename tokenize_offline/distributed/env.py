"""Reads a process's rank and share of the work from the environment variables that launchers set.

torchrun and accelerate set RANK, WORLD_SIZE and so on; `srun` sets its own variables, which are translated. The jobs of an
array (Slurm, Kubernetes) have no common store, so each of n jobs takes every n-th shard.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pipeline.common.errors import ConfigError

Task = TypeVar("Task")
# Index of an array job, from 0: Slurm arrays and Kubernetes indexed jobs.
_INDEX_VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
# Ports for srun steps, below Linux's ephemeral ports (32768 and up).
_FIRST_PORT, _PORTS = 20000, 12000


def environment_number(environment: Mapping[str, str], name: str, default: int | None = None, least: int = 0) -> int:
    """Read an integer environment variable that a launcher sets.

    Args:
        environment: Environment variables of the process.
        name: Name of the variable.
        default: Value if the variable is unset or empty; None makes the variable required.
        least: Lowest valid value.

    Raises:
        ConfigError: The variable is missing, not an integer, or below `least`.
    """
    text = environment.get(name, "").strip()
    if not text and default is not None:
        return default
    # Only digits: Python's int also accepts `1_0`, which no launcher writes.
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or int(text) < least:
        given = f"is {text!r}" if text else "is not set"
        raise ConfigError(
            f"environment variable {name} {given}, but must be an integer of at least {least}: start with torchrun, "
            f"accelerate launch or srun, or unset {name} to run alone"
        )
    return int(text)


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE and so on for a process that srun started directly; empty for all others.

    Unless MASTER_ADDR and MASTER_PORT are set, the first node of the step hosts the store, on a port computed from the ids of
    job and step.
    """
    size = environment.get("SLURM_STEP_NUM_TASKS", "1")
    # A shell of `salloc` is a step with one task, so it runs alone.
    if "RANK" in environment or size == "1" or "SLURM_PROCID" not in environment:
        return {}
    number = environment_number(environment, "SLURM_JOB_ID", 0) * 31 + environment_number(environment, "SLURM_STEP_ID", 0)
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        environment_number(environment, name)
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(_tasks_here(environment)),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", "")),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + number % _PORTS),
    }


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Number of tasks of the srun step on this node."""
    text, node = environment.get("SLURM_STEP_TASKS_PER_NODE", ""), environment_number(environment, "SLURM_NODEID", 0)
    try:
        return tasks_per_node(text)[node]
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE {text!r} has no task count for node {node}: set RANK, WORLD_SIZE, LOCAL_RANK, "
            "MASTER_ADDR and MASTER_PORT instead"
        ) from error


def tasks_per_node(text: str) -> list[int]:
    """Parse Slurm's task counts: `2(x3),1` gives [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts


def first_host(nodes: str) -> str:
    """First host of Slurm's node list: `gpu007` for `gpu[007-010,12],login`."""
    plain = re.match(r"[^,\[]+(?=,|$)", nodes)
    if plain:
        return plain[0]
    ranged = re.match(r"(?P<name>[^,\[]+)\[(?P<number>\d+)[^\]]*\](?P<rest>[^,\[]*)", nodes)
    if not ranged:
        raise ConfigError(f"SLURM_STEP_NODELIST {nodes!r} is not a node list: set MASTER_ADDR, RANK and WORLD_SIZE instead")
    return ranged["name"] + ranged["number"] + ranged["rest"]


def worker_share(tasks: Sequence[Task], index: int | None, count: int, environment: Mapping[str, str]) -> list[Task]:
    """The tasks of job `index`: every `count`-th task. The jobs' shares don't overlap and cover all tasks.

    Args:
        tasks: All tasks, in the same order in every job, largest first.
        index: Index of this job; None reads it from the environment of a Slurm array or Kubernetes indexed job.
        count: Number of jobs.
        environment: Environment variables of the process.

    Raises:
        ConfigError: The index is missing, or not below `count`.
    """
    if index is None and count > 1:
        given = [name for name in _INDEX_VARIABLES if name in environment]
        if not given:
            raise ConfigError(
                f"--worker_count {count} needs --worker_index, or environment variable {' or '.join(_INDEX_VARIABLES)}"
            )
        index = environment_number(environment, given[0])
    if count < 1 or not 0 <= (index or 0) < count:
        raise ConfigError(f"--worker_index {index} must be from 0 to {count - 1} (--worker_count {count})")
    return list(tasks[index or 0 :: count])
