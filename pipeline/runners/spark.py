"""Tasks on the executors of a Spark cluster, by PySpark itself.

Beam's runner for Spark wants a job server, and a process or container of Beam's on every executor; PySpark wants a Python there
that has the `ingest` extra. A task is a partition of its own: Spark gives it to another executor where its own is lost.
"""

import os
import sys
from collections.abc import Iterator, Sequence

from pipeline.errors import ConfigError
from pipeline.runners.task import Task, give_up, run_task

_LONGEST_REASON = 500


def run(tasks: Sequence[Task], address: str) -> None:
    """Run tasks in the order given and wait for their end.

    Args:
        tasks: What is to be done.
        address: Of the master, e.g. `spark://host:7077`, `yarn` or `local[4]`. All else is Spark's own configuration.

    Raises:
        ConfigError: PySpark isn't installed.
    """
    try:
        from pyspark.sql import SparkSession
    except ModuleNotFoundError as error:
        raise ConfigError(f"--spark needs {error.name}: pip install pyspark==4.3.0") from error
    if address.startswith("local"):
        # Spark's own choice is the `python3` on the path, which may have nothing installed.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with SparkSession.builder.master(address).appName("ivideogpt-ingest").getOrCreate() as session:
        session.sparkContext.parallelize(tasks, len(tasks)).foreachPartition(_run_all)


def _run_all(tasks: Iterator[Task]) -> None:
    """Run tasks on an executor; an error in one is no reason for Spark to give up the others."""
    for task in tasks:
        try:
            run_task(task)
        except Exception as error:
            give_up(task, f"{type(error).__name__}: {error}"[:_LONGEST_REASON])
