"""Tasks on the executors of a Spark cluster, by PySpark itself.

Beam's runner for Spark wants a job server, and a process or container of Beam's on every executor; PySpark wants a Python there
that has the `ingest` extra. A task is a partition of its own: Spark gives it to another executor where its own is lost. An
executor that was only taken for lost, or of which Spark's speculation started a copy, may go on writing: both publish the same.
Spark ends a job when one task fails too often, so the last attempt that it allows doesn't run the task but gives it up.
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
_SPARKS_ATTEMPTS = "4"  # at a task, where `spark.task.maxFailures` doesn't say otherwise


def run(tasks: Sequence[UnitGroup], address: str) -> None:
    """Run tasks in the order given and wait for their end.

    Args:
        tasks: What is to be done.
        address: Of the master, e.g. `spark://host:7077`, `yarn` or `local[4]`. All else is Spark's own configuration.

    Raises:
        ConfigError: PySpark isn't installed, no master answers, or Spark doesn't start.
        SourceError: Spark gave up the job; what was published stays.
    """
    try:
        from pyspark import SparkConf, SparkContext
    except ModuleNotFoundError as error:
        raise ConfigError(f"--spark needs {error.name}: pip install pyspark==4.3.0") from error
    _require_master(address)
    logging.getLogger("py4j").setLevel(logging.WARNING)  # It tells of every connection that closes.
    # Spark's own choice is the `python3` on the path, which may have nothing installed.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # Spark's progress bar would be drawn over the one that counts shards.
    settings = SparkConf().setMaster(address).setAppName("ivideogpt-ingest").set("spark.ui.showConsoleProgress", "false")
    try:
        context = SparkContext(conf=settings)
    except Exception as error:
        raise ConfigError(f"--spark {address}: Spark doesn't start: {_reason(error)}. Its log is above") from error
    # Spark's answer to Ctrl-C is a call to its JVM, for which the main thread must not be in the middle of another.
    with context, ThreadPoolExecutor(1) as pool:
        try:
            attempts = int(context.getConf().get("spark.task.maxFailures", _SPARKS_ATTEMPTS))
            partitions = context.parallelize(tasks, len(tasks))
            pool.submit(partitions.foreachPartition, functools.partial(_run_all, attempts=attempts)).result()
        except Exception as error:
            raise SourceError(
                f"--spark {address}: Spark gave up the job: {_reason(error)}. Its log is above. Executors need "
                f"{os.environ['PYSPARK_PYTHON']} (PYSPARK_PYTHON names another): a Python "
                f"{sys.version_info.major}.{sys.version_info.minor}, as here, with the `ingest` extra. "
                "Run the same command again, which goes on"
            ) from error


def _require_master(address: str) -> None:
    """Refuse a standalone master that doesn't answer, for which Spark would try for a minute or two."""
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
        f"--spark {address}: no master answers there ({'; '.join(reasons)}); start one, or name it as spark://host:7077"
    )


def _reason(error: Exception) -> str:
    """What an error of Spark's says, without its stack traces: the last Python error in it, else its first line."""
    java = getattr(error, "java_exception", None)
    text = str(error if java is None else java.getMessage())
    raised = re.findall(r"^[\w.]+: .+", text, re.MULTILINE)
    return (raised[-1] if raised else text.strip().partition("\n")[0])[:_LONGEST_REASON].rstrip(".")


def _run_all(tasks: Iterator[UnitGroup], attempts: int) -> None:
    """Run tasks on an executor; an error in one is no reason for Spark to give up the others."""
    from pyspark import TaskContext

    earlier = TaskContext.get().attemptNumber()
    for task in tasks:
        if earlier and earlier + 1 >= attempts:
            give_up(task, f"{earlier} processes or executors that made it were lost; see their logs, and their memory")
            continue
        try:
            run_group(task)
        except Exception as error:
            give_up(task, f"{type(error).__name__}: {error}"[:_LONGEST_REASON])
