"""No child outlives its parent: each test kills real processes and looks for survivors."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from process_trees import gone, runs

BEGIN = """
    import os, signal, subprocess, sys, threading, time
    from pipeline.processes.child_processes import Child, adopt_orphans, descendants, kill_descendants, process_pool
    BUSY = [sys.executable, "-S", "-c", "print(flush=True)\\nwhile True: pass"]

    def started(command, **options):
        process = Child(command, stdout=subprocess.PIPE, **options)
        process.stdout.readline()
        return process

    def say(*numbers):
        print(*numbers, flush=True)
"""


def start(body: str, **options) -> "subprocess.Popen[str]":
    code = textwrap.dedent(BEGIN) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)


def test_a_child_in_an_endless_loop_ends_with_its_killed_parent():
    with start("""
        child = started(BUSY)
        say(child.pid)
        time.sleep(60)
    """) as parent:
        child = int(parent.stdout.readline())
        assert runs(child)
        parent.kill()
    assert gone(child)


def test_a_child_ends_when_its_parent_drops_it_but_not_with_the_thread_that_started_it():
    with start("""
        children = []
        thread = threading.Thread(target=lambda: children.append(started(BUSY)))
        thread.start()
        thread.join()
        say(children[0].pid)
        time.sleep(0.3)
        say(int(children[0].poll() is None))
        child = children[0].pid
        children.clear()
        os.waitid(os.P_PID, child, os.WEXITED)
        say("ended")
    """) as parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "1\n"
        assert parent.stdout.readline() == "ended\n"
    assert gone(child)


def test_a_child_that_finishes_has_output_and_status_like_any_process():
    with start("""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with Child(["sh", "-c", "cat; echo >&2 said; exit 3"], **pipes) as child:
            print(child.communicate(b"given"), child.returncode)
    """) as parent:
        assert parent.stdout.read() == "(b'given', b'said\\n') 3\n"


def test_pool_processes_end_with_their_killed_parent():
    with start("""
        if __name__ == "__main__":
            with process_pool(2, "spawn") as pool:
                say(pool.submit(os.getpid).result())
                pool.submit(time.sleep, 1000)
                pool.submit(time.sleep, 1000)
                time.sleep(60)
    """) as parent:
        worker = int(parent.stdout.readline())
        assert runs(worker)
        parent.kill()
    assert gone(worker)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_does_not_finish_its_work_after_an_error(method):
    with start(f"""
        if __name__ == "__main__":
            try:
                with process_pool(2, "{method}") as pool:
                    say(pool.submit(os.getpid).result())
                    for _ in range(10):
                        pool.submit(time.sleep, 1000)
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                say("ended")
    """) as parent:
        worker = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ended\n"
    assert parent.returncode == 0
    assert gone(worker)


def test_a_pool_returns_results_despite_a_keyboard_interrupt():
    with start("""
        if __name__ == "__main__":
            with process_pool(1, "forkserver") as pool:
                worker = pool.submit(os.getpid).result()
                os.kill(worker, signal.SIGINT)
                say(pool.submit(abs, -5).result())
    """) as parent:
        assert parent.stdout.read() == "5\n"


def test_a_process_that_adopts_orphans_kills_them_but_keeps_earlier_processes():
    orphaning = [sys.executable, "-S", "-c", "import os\nif os.fork():\n os._exit(0)\nwhile True: pass"]
    with start(f"""
        adopt_orphans()
        before = started(BUSY)
        others = descendants(os.getpid())
        Child({orphaning!r}).wait()
        (orphan,) = descendants(os.getpid()) - others
        say(orphan)
        kill_descendants(keep=others)
        say(before.pid, int(before.poll() is None), len(descendants(os.getpid())))
        kill_descendants()
        say(len(descendants(os.getpid())))
    """) as parent:
        orphan = int(parent.stdout.readline())
        spared, alive, left = map(int, parent.stdout.readline().split())
        assert (alive, left) == (1, 1) and gone(orphan)
        assert parent.stdout.readline() == "0\n" and gone(spared)


@pytest.mark.parametrize(
    ("variable", "outlives"), [("TORCHELASTIC_RUN_ID", False), ("CROSS_RANK", False), ("SLURM_PROCID", True)]
)
def test_a_command_ends_with_a_launcher_and_may_outlive_a_shell(variable, outlives):
    command = (
        "import os, time; from pipeline.config.cli import run_command\n"
        "run_command(lambda _: [os.write(1, b'.'), time.sleep(60)])"
    )
    with start(
        f"""
        child = subprocess.Popen([sys.executable, "-c", {command!r}], stdout=subprocess.PIPE)
        child.stdout.read(1)
        say(child.pid)
        time.sleep(60)
    """,
        env={**os.environ, variable: "0"},
    ) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        if outlives:
            time.sleep(1)
            assert runs(child)
            os.kill(child, signal.SIGKILL)
    assert gone(child)
