"""A worker process of Beam's on this machine, which ends when the run that it belongs to is gone.

Beam's own goes on when the run is killed: it waits for ever for work that nobody gives, or does all that it was given while a
second run does the same.
"""

import os
import shlex
import sys

from pipeline.processes.child_processes import follow_parent


def command() -> str:
    """The shell command by which this process starts a worker, so that it is the worker's parent."""
    return f"exec {shlex.quote(sys.executable)} -m {__name__} {os.getpid()}"


def main() -> None:
    """Work for the process whose number is the only argument."""
    # Beam keeps the thread that starts a worker until the worker ends.
    follow_parent(int(sys.argv[1]))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
