"""Runs groups of work units with Apache Beam: on this machine with one worker process per core, or with any Beam runner.

Each group is one small Beam element, and groups return nothing, so every runner works. On this machine Beam only starts the
worker processes; they take groups one at a time, see `pipeline.ingest.runners.claims`.
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


def run(groups: Sequence[UnitGroup], options: Sequence[str]) -> None:
    """Run groups in the given order, and return when all have ended.

    Args:
        groups: The groups to run.
        options: Options of Beam; without `--runner` the groups run on this machine.

    Raises:
        SourceError: The job failed on this machine; errors of a cluster are raised unchanged.
    """
    # The log of a cluster goes to the user; the log of local workers, and of Beam's import, is shown only on failure.
    if any(option.split("=")[0] == "--runner" for option in options):
        _run_on_runner(groups, options)
        return
    with scratch_folder() as folder, _redirected_log(folder):
        _run_locally(groups, options, folder)


def _run_on_runner(groups: Sequence[UnitGroup], options: Sequence[str]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = pipeline | beam.Create(groups) | "ingest" >> beam.Map(run_group)


def _run_locally(groups: Sequence[UnitGroup], options: Sequence[str], folder: Path) -> None:
    """Run groups with one worker process per core, unless the options say otherwise.

    FnApiRunner is the engine of DirectRunner. DirectRunner itself would first try to download another runner, which runs
    everything in one process. A single worker runs in this process, which saves its start.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    pipeline_options = PipelineOptions(list(options))
    direct = pipeline_options.view_as(DirectOptions)
    if not any(option.startswith("--direct_") for option in options):
        direct.direct_num_workers = min(len(groups), usable_cpus())
        direct.direct_running_mode = "in_memory" if direct.direct_num_workers == 1 else _PROCESSES
    runner = FnApiRunner()
    if direct.direct_running_mode == _PROCESSES:
        # Beam's own workers would outlive a run that is killed.
        direct.direct_running_mode = "in_memory"
        runner = FnApiRunner(SubprocessSDKEnvironment.from_command_string(beam_worker.command()))
    counter = folder / "claimed"
    counter.touch()
    with beam.Pipeline(runner, pipeline_options) as pipeline:
        # One element per process, or more: an element that finds no group left costs nothing.
        elements = max(usable_cpus(), direct.direct_num_workers)
        _ = pipeline | beam.Create(range(elements)) | "ingest" >> beam.Map(_run_claimed, list(groups), str(counter))


def _run_claimed(_: int, groups: Sequence[UnitGroup], counter: str) -> None:
    for group in claimed(groups, counter):
        run_group(group)


@contextlib.contextmanager
def _redirected_log(folder: Path) -> Iterator[None]:
    """Redirect the stderr of Beam and its local workers to a file; on failure, keep the file and name it in the error.

    Workers inherit the file descriptor and log before they can be configured, so the descriptor itself is redirected.
    `sys.stderr`, and so the progress line, still goes to the terminal.
    """
    log = folder / "beam.log"
    sys.stderr.flush()
    stderr = sys.stderr
    kept = os.dup(2)
    try:
        with log.open("wb") as file, os.fdopen(os.dup(2), "w") as sys.stderr:
            os.dup2(file.fileno(), 2)
            yield
    except Exception as error:
        descriptor, name = tempfile.mkstemp(prefix="ivideogpt-beam-", suffix=".log", dir=folder.parent)
        os.close(descriptor)
        shutil.copyfile(log, name)
        raise SourceError(f"Beam could not run the job: {error!r:.500}. Its log is {name}") from error
    finally:
        os.dup2(kept, 2)
        sys.stderr = stderr
        os.close(kept)
