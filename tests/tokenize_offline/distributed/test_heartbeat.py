"""Lost processes are told from slow ones, and a process that can't reach the store ends itself."""

import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from tokenize_offline.distributed import heartbeat
from tokenize_offline.distributed.heartbeat import HeartbeatMonitor, sending_heartbeats
from tokenize_offline.distributed.worker_group import Fleet


@given(st.lists(st.sets(st.integers(0, 3)), max_size=60))
def test_a_process_is_silent_after_it_missed_all_of_the_last_rounds(rounds):
    monitor, counts = HeartbeatMonitor(), dict.fromkeys(range(4), 0)
    silent = monitor.silent(counts)
    for number, beating in enumerate(rounds, 1):
        counts = {rank: count + (rank in beating) for rank, count in counts.items()}
        silent = monitor.silent(counts)
        last = rounds[max(0, number - heartbeat._MAX_MISSED) : number]
        assert silent == {
            rank for rank in range(4) if len(last) == heartbeat._MAX_MISSED and not any(rank in one for one in last)
        }


def test_the_first_process_gets_the_tasks_that_a_lost_process_claimed(monkeypatch):
    monkeypatch.setattr(heartbeat, "_MAX_MISSED", 10)
    monkeypatch.setattr(HeartbeatMonitor, "interval", 0.2)
    monkeypatch.setattr(heartbeat, "_INTERVAL_SECONDS", 0.02)
    store = dist.HashStore()
    first, lost, slow = (Fleet(rank, 3, 3, torch.device("cpu"), store) for rank in range(3))
    claims = [fleet.claim("abcde") for fleet in (lost, first, lost, slow, slow)]
    taken = [next(claim) for claim in claims]
    assert taken == list("abcde")

    def finish_late():
        with sending_heartbeats(store, 2):
            time.sleep(4)
            slow.send_result("slow")

    thread = threading.Thread(target=finish_late)
    thread.start()
    first.send_result("first")
    results, orphans = first.collect_results("abcde", lambda: None)
    thread.join()
    assert results == ["first", "slow"] and orphans == ["a", "c"]


@pytest.mark.parametrize(("answers", "code"), [(True, 0), (False, 1)])
def test_a_process_whose_store_never_answers_ends_with_a_message(answers, code):
    program = f"""
        import time
        from tokenize_offline.distributed import heartbeat
        heartbeat._INTERVAL_SECONDS, heartbeat._MAX_MISSED = 0.02, 100
        class Store:
            def add(self, key, number):
                time.sleep(0 if {answers} else 60)
                return number
        with heartbeat.sending_heartbeats(Store(), 1):
            time.sleep(5)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert ("run the same command again" in done.stderr) == (not answers)
