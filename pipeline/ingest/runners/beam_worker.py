"""A local worker process of Beam that ends when its run ends.

Beam's own worker survives a killed run: it waits forever, or finishes its work while a second run does the same work.
"""

import os
import shlex
import sys

from pipeline.processes.child_processes import follow_parent


def command() -> str:
    """Return the shell command that starts a worker as a child of this process."""
    return f"exec {shlex.quote(sys.executable)} -m {__name__} {os.getpid()}"


def main() -> None:
    """Run a worker that ends when its parent does; the only argument is the parent's process id."""
    # The kernel ends this process with the thread that started it; Beam keeps that thread until the worker ends.
    follow_parent(int(sys.argv[1]))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
