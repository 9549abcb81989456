"""Tasks through Apache Beam: on this machine with a worker process a core, or on any runner that Beam has.

Beam sees one small element per task and nothing comes back through it, so every runner will do. On this machine it only starts
the processes, which take the tasks themselves, one at a time; see `pipeline.runners.claims`.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.runners.claims import claimed
from pipeline.runners.task import Task, run_task


def run(tasks: Sequence[Task], options: Sequence[str]) -> None:
    """Run tasks in the order given and wait for their end.

    Args:
        tasks: What is to be done.
        options: For Beam; without a runner among them it is this machine.

    Raises:
        SourceError: The job failed on this machine; a cluster's own errors come as they are.
    """
    # A cluster's log is for its user to see; that of local workers, and of Beam's import, only where they fail.
    with contextlib.nullcontext() if _chooses_runner(options) else _chatter_aside():
        _run(tasks, options)


def _run(tasks: Sequence[Task], options: Sequence[str]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

    given = PipelineOptions([*_local_runner(options, len(tasks)), *options])
    with tempfile.NamedTemporaryFile(prefix="ivideogpt-tasks-") as counter, beam.Pipeline(options=given) as pipeline:
        if _chooses_runner(options):
            _ = pipeline | beam.Create(tasks) | "ingest" >> beam.Map(run_task)
        else:
            # One element a process, or more: those that find nothing left to take cost nothing.
            takers = max(len(os.sched_getaffinity(0)), given.view_as(DirectOptions).direct_num_workers)
            _ = pipeline | beam.Create(range(takers)) | "ingest" >> beam.Map(_take_tasks, list(tasks), counter.name)


def _take_tasks(_: int, tasks: Sequence[Task], counter: str) -> None:
    for task in claimed(tasks, counter):
        run_task(task)


def _local_runner(options: Sequence[str], tasks: int) -> list[str]:
    """Beam's runner for one machine with a worker process a core, where the user's options don't choose otherwise.

    FnApiRunner is the engine under DirectRunner; that one would first try to download another runner and, where it could,
    run everything in one process. A single worker needs no process of its own, which saves its start.
    """
    if _chooses_runner(options):
        return []
    if any(option.startswith("--direct_") for option in options):
        return ["--runner=FnApiRunner"]
    workers = min(tasks, len(os.sched_getaffinity(0)))
    mode = "in_memory" if workers == 1 else "multi_processing"
    return ["--runner=FnApiRunner", f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"]


def _chooses_runner(options: Sequence[str]) -> bool:
    return any(option.split("=")[0] == "--runner" for option in options)


@contextlib.contextmanager
def _chatter_aside() -> Iterator[None]:
    """Send what Beam and its local worker processes write to stderr to a file, and name that file where something fails.

    Workers inherit the file descriptor and log before they could be told not to, so the descriptor itself is redirected;
    `sys.stderr`, and with it the progress line, goes where it went.
    """
    descriptor, name = tempfile.mkstemp(prefix="ivideogpt-beam-", suffix=".log")
    sys.stderr.flush()
    own = sys.stderr
    kept = os.dup(2)
    try:
        with os.fdopen(os.dup(2), "w") as sys.stderr:
            os.dup2(descriptor, 2)
            yield
    except Exception as error:
        raise SourceError(f"Beam could not run the job: {error!r:.500}. Its log is {name}") from error
    else:
        Path(name).unlink()
    finally:
        os.dup2(kept, 2)
        sys.stderr = own
        os.close(kept)
        os.close(descriptor)
