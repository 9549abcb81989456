"""What a launcher says about a process: its place among those that share a store, and its share where there is none.

torchrun and accelerate set RANK and its companions; a bare `srun` sets its own variables, which come to the same. An array of
jobs (Slurm, Kubernetes) has no store in common: each of its n jobs takes every n-th shard, so the shares are fixed beforehand.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pipeline.common.errors import ConfigError

Task = TypeVar("Task")
# Where array jobs say which one of them this is; Slurm arrays and Kubernetes indexed jobs, both counted from 0.
_INDEX_VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
# Ports for srun steps, below those that Linux hands out by itself (32768 and up).
_FIRST_PORT, _PORTS = 20000, 12000


def environment_number(environment: Mapping[str, str], name: str, default: int | None = None, least: int = 0) -> int:
    """A whole number that a launcher put into the environment.

    Args:
        environment: Of the process.
        name: Of the variable.
        default: Where it is not set, or empty; None requires it.
        least: It must be no less.

    Raises:
        ConfigError: It is no such number.
    """
    text = environment.get(name, "").strip()
    if not text and default is not None:
        return default
    # Digits alone: Python takes `1_0` for a number, no launcher writes it.
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or int(text) < least:
        given = f"is {text!r}" if text else "is not set"
        raise ConfigError(
            f"{name} {given} in the environment, where a launcher puts a whole number of {least} or more: start with torchrun, "
            f"accelerate launch or srun, or unset {name} to run alone"
        )
    return int(text)


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK and its companions of a process that srun started directly; empty for all others.

    The first node of the step hosts the store, on a port that follows from the job's and the step's number, unless MASTER_ADDR
    and MASTER_PORT say otherwise. A shell of `salloc` is a step of one task, and no process among many.
    """
    size = environment.get("SLURM_STEP_NUM_TASKS", "1")
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
    """Tasks of the srun step on this node."""
    text, node = environment.get("SLURM_STEP_TASKS_PER_NODE", ""), environment_number(environment, "SLURM_NODEID", 0)
    try:
        return tasks_per_node(text)[node]
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE {text!r} doesn't say how many tasks node {node} has: set RANK, WORLD_SIZE, LOCAL_RANK, "
            "MASTER_ADDR and MASTER_PORT instead"
        ) from error


def tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first name of Slurm's list of nodes: `gpu[007-010,12],login` begins with `gpu007`."""
    plain = re.match(r"[^,\[]+(?=,|$)", nodes)
    if plain:
        return plain[0]
    ranged = re.match(r"(?P<name>[^,\[]+)\[(?P<number>\d+)[^\]]*\](?P<rest>[^,\[]*)", nodes)
    if not ranged:
        raise ConfigError(f"SLURM_STEP_NODELIST {nodes!r} is no list of nodes: set MASTER_ADDR, RANK and WORLD_SIZE instead")
    return ranged["name"] + ranged["number"] + ranged["rest"]


def worker_share(tasks: Sequence[Task], index: int | None, count: int, environment: Mapping[str, str]) -> list[Task]:
    """Every `count`-th task from the `index`-th on: together the shares of all indices are all tasks, each once.

    Args:
        tasks: All of them, in the same order in every job, the longest first.
        index: Of this job; None takes it from the environment of a Slurm array or a Kubernetes indexed job.
        count: Jobs in all.
        environment: Of the process.

    Raises:
        ConfigError: The index is missing or not below the count.
    """
    if index is None and count > 1:
        given = [name for name in _INDEX_VARIABLES if name in environment]
        if not given:
            raise ConfigError(
                f"--worker_count {count} needs --worker_index, or one of {' and '.join(_INDEX_VARIABLES)} in the environment"
            )
        index = environment_number(environment, given[0])
    if count < 1 or not 0 <= (index or 0) < count:
        raise ConfigError(f"--worker_index {index} must be 0 to {count - 1}, one below --worker_count")
    return list(tasks[index or 0 :: count])
