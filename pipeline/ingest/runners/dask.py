"""Tasks on the workers of a Dask cluster, by `dask.distributed` itself.

Beam has a runner for Dask, but it turns a pipeline into some hundred partitions: all that a lost worker had done of a partition
is done again, one error ends the job, and large tasks first is not kept. Here a task is a future of its own: the scheduler
gives it to another worker where its own is lost, a task that takes worker after worker with it is given up, and the others go
on. The price is a message of a few kB to the scheduler for every task.
"""

import logging
import uuid
from collections.abc import Sequence

from pipeline.common.errors import ConfigError, SourceError
from pipeline.ingest.work_unit import UnitGroup, give_up, run_group

_log = logging.getLogger(__name__)
_LONGEST_REASON = 500


def run(tasks: Sequence[UnitGroup], address: str) -> None:
    """Run tasks in the order given and wait for their end.

    Args:
        tasks: What is to be done.
        address: Of the scheduler. TLS and the like are Dask's own configuration.

    Raises:
        ConfigError: Dask isn't installed, or no scheduler answers.
        SourceError: The scheduler went away; what was published stays.
    """
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise ConfigError(f"--dask needs {error.name}: pip install 'ivideogpt-pipeline[dask]'") from error
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--dask {address}: no scheduler answers there ({error}); start `dask scheduler`, or name it"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            _log.warning("%s has no workers yet: the work starts when one comes", address)
        name = f"ingest-{uuid.uuid4().hex[:8]}"
        futures = [
            client.submit(run_group, task, key=f"{name}-{task[0].unit.shard}-{position}", pure=False, priority=-position)
            for position, task in enumerate(tasks)
        ]
        waiting = dict(zip(futures, tasks, strict=True))
        del futures
        for future in as_completed(list(waiting)):
            task = waiting.pop(future)
            if future.status == "error":
                raised = future.exception()
                give_up(task, f"{type(raised).__name__}: {raised}"[:_LONGEST_REASON])
            elif future.status != "finished":
                raise SourceError(
                    f"the scheduler at {address} went away; start it again and run the same command, which goes on"
                )
