"""Processes that read data for a run never get its stop signals, and never outlive or block it."""

import subprocess
import sys
import textwrap


def test_a_process_ends_even_if_its_children_never_get_the_stop_signals():
    code = """
        import multiprocessing, os, signal, time
        from training.trainer.signals import block_stop_signals

        def work(ready):
            ready.set()
            time.sleep(600)

        if __name__ == "__main__":
            ready = multiprocessing.Event()
            with block_stop_signals():
                child = multiprocessing.Process(target=work, args=(ready,), daemon=True)
                child.start()
            ready.wait()
            os.kill(child.pid, signal.SIGTERM)
            child.join(0.2)
            print(child.pid, child.is_alive())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=True)
    pid, alive = done.stdout.split()
    assert alive == "True"
    assert subprocess.run(["kill", "-0", pid], capture_output=True, check=False).returncode != 0
