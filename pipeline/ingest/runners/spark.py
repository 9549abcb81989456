"""Runs groups of work units on a Spark cluster, with PySpark.

Beam's runner for Spark needs a job server, and a Beam process or container on every executor; PySpark only needs a Python with
the `ingest` extra there. Each group is one partition: if an executor is lost, Spark moves its partition to another one. Two
executors may run the same partition, for example with speculation: both publish the same bytes. Spark ends a job when one task
fails too often, so the last allowed attempt gives the group up instead of running it.
"""

import functools
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.common.errors import ConfigError, SourceError
from pipeline.ingest.work_unit import UnitGroup, give_up, run_group

_LONGEST_REASON = 500
_STANDALONE = "spark://"
_CONNECT_SECONDS = 10.0
_DEFAULT_ATTEMPTS = "4"  # Spark's default of `spark.task.maxFailures`


def run(groups: Sequence[UnitGroup], address: str) -> None:
    """Run groups in the given order, and return when all have ended.

    Args:
        groups: The groups to run.
        address: Address of the master, e.g. `spark://host:7077`, `yarn` or `local[4]`. Other settings come from Spark's own
            configuration.

    Raises:
        ConfigError: PySpark isn't installed, no master answers, or Spark doesn't start.
        SourceError: Spark gave up the job; published shards stay.
    """
    try:
        from pyspark import SparkConf, SparkContext
    except ModuleNotFoundError as error:
        raise ConfigError(f"--spark needs {error.name}: pip install pyspark==4.3.0") from error
    _require_master(address)
    logging.getLogger("py4j").setLevel(logging.WARNING)  # py4j logs every closed connection
    # Spark's default is the `python3` on the path, which may lack the packages.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # Spark's progress bar would overwrite the one that counts shards.
    settings = SparkConf().setMaster(address).setAppName("ivideogpt-ingest").set("spark.ui.showConsoleProgress", "false")
    try:
        context = SparkContext(conf=settings)
    except Exception as error:
        raise ConfigError(f"--spark {address}: Spark doesn't start: {_reason(error)}. Its log is above") from error
    # On Ctrl-C Spark calls its JVM from the main thread, so the main thread must not be inside another call.
    with context, ThreadPoolExecutor(1) as pool:
        try:
            attempts = int(context.getConf().get("spark.task.maxFailures", _DEFAULT_ATTEMPTS))
            partitions = context.parallelize(groups, len(groups))
            pool.submit(partitions.foreachPartition, functools.partial(_run_all, attempts=attempts)).result()
        except Exception as error:
            raise SourceError(
                f"--spark {address}: Spark gave up the job: {_reason(error)}. Its log is above. Executors need "
                f"{os.environ['PYSPARK_PYTHON']} (or set PYSPARK_PYTHON): Python "
                f"{sys.version_info.major}.{sys.version_info.minor}, as here, with the `ingest` extra. "
                "Rerun the same command to resume"
            ) from error


def _require_master(address: str) -> None:
    """Refuse a standalone master that doesn't answer; Spark itself would retry for a minute or two."""
    if not address.startswith(_STANDALONE):
        return
    reasons = []
    for master in address.removeprefix(_STANDALONE).split(","):
        host, _, port = master.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
            return
        except (OSError, ValueError) as error:
            reasons.append(f"{master}: {error}")
    raise ConfigError(
        f"--spark {address}: no master answers there ({'; '.join(reasons)}); start one, or pass its address as spark://host:7077"
    )


def _reason(error: Exception) -> str:
    """Return the message of a Spark error without stack traces: its last Python error, or else its first line."""
    java = getattr(error, "java_exception", None)
    text = str(error if java is None else java.getMessage())
    raised = re.findall(r"^[\w.]+: .+", text, re.MULTILINE)
    return (raised[-1] if raised else text.strip().partition("\n")[0])[:_LONGEST_REASON].rstrip(".")


def _run_all(groups: Iterator[UnitGroup], attempts: int) -> None:
    """Run groups on an executor; an error in one group doesn't stop the others."""
    from pyspark import TaskContext

    earlier = TaskContext.get().attemptNumber()
    for group in groups:
        if earlier and earlier + 1 >= attempts:
            give_up(group, f"{earlier} processes or executors were lost while making it; check their logs and their memory")
            continue
        try:
            run_group(group)
        except Exception as error:
            give_up(group, f"{type(error).__name__}: {error}"[:_LONGEST_REASON])
