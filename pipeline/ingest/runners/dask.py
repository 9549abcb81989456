"""Runs groups of work units on a Dask cluster, with `dask.distributed`.

Beam's runner for Dask splits a pipeline into some hundred partitions: a lost worker loses its whole partition, one error ends
the job, and the order is not kept. Here each group is a future: if a worker is lost, the scheduler moves its group to another
worker; a group that kills several workers is given up, and the others continue. The price is a message of a few kB per group.
"""

import logging
import uuid
from collections.abc import Sequence

from pipeline.common.errors import ConfigError, SourceError
from pipeline.ingest.work_unit import UnitGroup, give_up, run_group

_log = logging.getLogger(__name__)
_LONGEST_REASON = 500


def run(groups: Sequence[UnitGroup], address: str) -> None:
    """Run groups in the given order, and return when all have ended.

    Args:
        groups: The groups to run.
        address: Address of the scheduler. TLS and other settings come from Dask's own configuration.

    Raises:
        ConfigError: Dask isn't installed, or no scheduler answers.
        SourceError: The connection to the scheduler was lost; published shards stay.
    """
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise ConfigError(f"--dask needs {error.name}: pip install 'ivideogpt-pipeline[dask]'") from error
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--dask {address}: no scheduler answers there ({error}); start `dask scheduler`, or correct the address"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            _log.warning("%s has no workers yet: the work starts when one connects", address)
        name = f"ingest-{uuid.uuid4().hex[:8]}"
        futures = [
            client.submit(run_group, group, key=f"{name}-{group[0].unit.shard}-{position}", pure=False, priority=-position)
            for position, group in enumerate(groups)
        ]
        waiting = dict(zip(futures, groups, strict=True))
        del futures
        for future in as_completed(list(waiting)):
            group = waiting.pop(future)
            if future.status == "error":
                raised = future.exception()
                give_up(group, f"{type(raised).__name__}: {raised}"[:_LONGEST_REASON])
            elif future.status != "finished":
                raise SourceError(
                    f"the connection to the scheduler at {address} was lost; restart it and rerun the same command to resume"
                )
