"""Tasks through Apache Beam: on this machine with a worker process a core, or on any runner that Beam has.

Beam sees one small element per task and nothing comes back through it, so every runner will do. On this machine it only starts
the processes, which take the tasks themselves, one at a time; see `pipeline.ingest.runners.claims`.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.common.errors import SourceError
from pipeline.ingest.runners import beam_worker
from pipeline.ingest.runners.claims import claimed
from pipeline.ingest.runners.scratch import scratch_folder
from pipeline.ingest.work_unit import UnitGroup, run_group
from pipeline.processes.cpus import usable_cpus

_PROCESSES = "multi_processing"


def run(tasks: Sequence[UnitGroup], options: Sequence[str]) -> None:
    """Run tasks in the order given and wait for their end.

    Args:
        tasks: What is to be done.
        options: For Beam; without a runner among them it is this machine.

    Raises:
        SourceError: The job failed on this machine; a cluster's own errors come as they are.
    """
    # A cluster's log is for its user to see; that of local workers, and of Beam's import, only where they fail.
    if any(option.split("=")[0] == "--runner" for option in options):
        _run_anywhere(tasks, options)
        return
    with scratch_folder() as folder, _chatter_aside(folder):
        _run_here(tasks, options, folder)


def _run_anywhere(tasks: Sequence[UnitGroup], options: Sequence[str]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = pipeline | beam.Create(tasks) | "ingest" >> beam.Map(run_group)


def _run_here(tasks: Sequence[UnitGroup], options: Sequence[str], folder: Path) -> None:
    """With a worker process a core, where the options don't say otherwise.

    FnApiRunner is the engine under DirectRunner; that one would first try to download another runner and, where it could,
    run everything in one process. A single worker needs no process of its own, which saves its start.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    given = PipelineOptions(list(options))
    direct = given.view_as(DirectOptions)
    if not any(option.startswith("--direct_") for option in options):
        direct.direct_num_workers = min(len(tasks), usable_cpus())
        direct.direct_running_mode = "in_memory" if direct.direct_num_workers == 1 else _PROCESSES
    runner = FnApiRunner()
    if direct.direct_running_mode == _PROCESSES:
        # Left to itself, Beam would start workers that outlive a run that is killed.
        direct.direct_running_mode = "in_memory"
        runner = FnApiRunner(SubprocessSDKEnvironment.from_command_string(beam_worker.command()))
    counter = folder / "tasks"
    counter.touch()
    with beam.Pipeline(runner, given) as pipeline:
        # One element a process, or more: those that find nothing left to take cost nothing.
        takers = max(usable_cpus(), direct.direct_num_workers)
        _ = pipeline | beam.Create(range(takers)) | "ingest" >> beam.Map(_take_tasks, list(tasks), str(counter))


def _take_tasks(_: int, tasks: Sequence[UnitGroup], counter: str) -> None:
    for task in claimed(tasks, counter):
        run_group(task)


@contextlib.contextmanager
def _chatter_aside(folder: Path) -> Iterator[None]:
    """Send what Beam and its local worker processes write to stderr to a file, and keep and name it where something fails.

    Workers inherit the file descriptor and log before they could be told not to, so the descriptor itself is redirected;
    `sys.stderr`, and with it the progress line, goes where it went.
    """
    log = folder / "beam.log"
    sys.stderr.flush()
    own = sys.stderr
    kept = os.dup(2)
    try:
        with log.open("wb") as chatter, os.fdopen(os.dup(2), "w") as sys.stderr:
            os.dup2(chatter.fileno(), 2)
            yield
    except Exception as error:
        descriptor, name = tempfile.mkstemp(prefix="ivideogpt-beam-", suffix=".log", dir=folder.parent)
        os.close(descriptor)
        shutil.copyfile(log, name)
        raise SourceError(f"Beam could not run the job: {error!r:.500}. Its log is {name}") from error
    finally:
        os.dup2(kept, 2)
        sys.stderr = own
        os.close(kept)
