"""A signal unwinds a command, and the command always ends; each test uses its own process and real signals."""

import signal
import subprocess
import sys
import textwrap

import pytest
from process_trees import gone

BEGIN = """
    import os, signal, sys, threading, time
    from pipeline.processes import interruption
    from pipeline.config.cli import run_command
    from pipeline.processes.interruption import uninterrupted

    def tell(number=signal.SIGINT):
        os.kill(os.getpid(), number)

    def say(text):
        print(text, flush=True)
"""
END = """
    sys.exit(run_command(main))
"""


def run(body: str, **options) -> subprocess.CompletedProcess:
    """Runs a command whose body is the function `main` of some code, until its process ends."""
    code = textwrap.dedent(BEGIN) + textwrap.dedent(body) + textwrap.dedent(END)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_the_first_signal_unwinds_the_command_and_gives_its_status(number):
    done = run(f"""
        def main(_):
            try:
                tell({int(number)})
                time.sleep(60)
            finally:
                say("unwound")
    """)
    assert (done.returncode, done.stdout) == (128 + number, "unwound\n")
    assert done.stderr == "interrupted; run the same command again to resume\n"


def test_a_second_signal_ends_an_unwinding_command():
    done = run("""
        def main(_):
            try:
                tell()
                time.sleep(60)
            finally:
                time.sleep(1)
                tell()
                while True:
                    time.sleep(1)
    """)
    assert done.returncode == 130
    assert done.stderr == "second signal: ending at once\n"


def test_a_signal_forwarded_by_a_launcher_counts_once():
    done = run("""
        def main(_):
            try:
                tell()
                time.sleep(60)
            finally:
                tell()
                time.sleep(1)
                say("unwound")
    """)
    assert (done.returncode, done.stdout) == (130, "unwound\n")


def test_a_command_that_does_not_unwind_is_killed_with_its_children():
    done = run("""
        import subprocess
        interruption.GRACE_SECONDS = 1.0
        lock = threading.Lock()
        def main(_):
            say(subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)
            lock.acquire()
            try:
                tell()
            finally:
                lock.acquire()
    """)
    assert done.returncode == 130
    assert done.stderr == "still not ended after 1 s: ending at once\n"
    assert gone(int(done.stdout))


def test_an_endless_thread_does_not_keep_an_interrupted_command():
    done = run("""
        interruption.GRACE_SECONDS = 1.0
        def main(_):
            threading.Thread(target=threading.Event().wait).start()
            tell()
            time.sleep(60)
    """)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "still not ended after 1 s: ending at once"


def test_a_command_that_swallows_the_interrupt_still_ends():
    done = run("""
        interruption.GRACE_SECONDS = 1.0
        class Swallows:
            def __del__(self):
                tell()
                time.sleep(0.1)
        def main(_):
            Swallows()
            while True:
                time.sleep(1)
    """)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "still not ended after 1 s: ending at once"


def test_an_uninterrupted_block_finishes_before_the_signal_acts():
    done = run("""
        def main(_):
            with uninterrupted():
                tell()
                with uninterrupted():
                    say("inner")
                say("outer")
            say("after")
    """)
    assert (done.returncode, done.stdout) == (130, "inner\nouter\n")


def test_errors_during_unwinding_are_not_reported():
    done = run("""
        from pipeline.common.errors import SourceError
        def main(_):
            try:
                tell()
                time.sleep(60)
            except KeyboardInterrupt:
                raise SourceError("the workers are gone")
    """)
    assert done.returncode == 130
    assert done.stderr == "interrupted; run the same command again to resume\n"


def test_a_command_that_finishes_despite_a_signal_succeeds():
    done = run("""
        def main(_):
            try:
                tell()
                time.sleep(60)
            except KeyboardInterrupt:
                return 0
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ignored_signal_stays_ignored():
    done = run(
        """
        def main(_):
            tell(signal.SIGHUP)
            say("going on")
            return 0
    """,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert (done.returncode, done.stdout) == (0, "going on\n")


def test_a_handler_set_by_the_command_decides_alone():
    done = run("""
        interruption.GRACE_SECONDS = 0.3
        def main(_):
            signal.signal(signal.SIGTERM, lambda *_: say("noted"))
            tell(signal.SIGTERM)
            time.sleep(1)
            return 0
    """)
    assert (done.returncode, done.stdout) == (0, "noted\n")


def test_a_signal_to_a_forked_process_does_not_reach_its_parent():
    done = run("""
        interruption.GRACE_SECONDS = 0.3
        def main(_):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(write, b".")
                time.sleep(60)
            os.read(read, 1)
            os.kill(child, signal.SIGTERM)
            say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            time.sleep(1)
            return 0
    """)
    assert (done.returncode, done.stdout) == (0, "-15\n")


def test_the_old_handlers_are_back_after_a_command():
    done = run("""
        def main(_):
            return 0
        before = [signal.getsignal(number) for number in interruption.SIGNALS]
        run_command(main)
        assert before == [signal.getsignal(number) for number in interruption.SIGNALS]
        assert signal.set_wakeup_fd(-1) == -1
    """)
    assert done.returncode == 0, done.stderr
