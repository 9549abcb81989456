"""Processes of one machine share work: each item goes to exactly one process, and a free process takes the next."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.ingest.runners.claims import claimed

_TAKE = (
    "import json, sys; from pipeline.ingest.runners.claims import claimed\n"
    "print(json.dumps(list(claimed(range(3000), sys.argv[1]))))"
)


def test_parallel_processes_claim_every_item_exactly_once(tmp_path: Path):
    counter = tmp_path / "counter"
    counter.touch()
    command = [sys.executable, "-c", _TAKE, str(counter)]
    takers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    taken = [json.loads(taker.communicate(timeout=120)[0]) for taker in takers]
    assert sorted(item for items in taken for item in items) == list(range(3000))
    assert all(items == sorted(items) for items in taken)


def test_a_slow_process_does_not_hold_items_back_from_a_fast_one(tmp_path: Path):
    counter = tmp_path / "counter"
    counter.touch()
    slow, quick = claimed("abcdef", str(counter)), claimed("abcdef", str(counter))
    assert next(slow) == "a"
    assert next(quick) == "b"
    assert list(quick) == list("cdef")
    assert list(slow) == []


def test_items_come_in_order_and_a_second_process_finds_none(tmp_path: Path):
    counter = tmp_path / "counter"
    counter.touch()
    assert list(claimed("abc" * 5, str(counter))) == list("abc" * 5)
    assert list(claimed("abc" * 5, str(counter))) == []
