"""The one command that measures training on a device runs to its end, and lists what it can't run."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "benchmarks" / "train_check.py"


def _check(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False, env=environment, timeout=500
    )
    *table, last = done.stdout.strip().splitlines()
    return done, table, json.loads(last)


def test_training_and_the_memory_of_the_loss_are_measured_beside_their_ceilings():
    settings = ["global_batch=2", "log_every=1", "repeats=1"]
    loss = ["--loss", "clips=12", "width=8", "vocabulary=9999", "repeats=1"]
    done, table, result = _check("--models", "tiny", "--stages", "1", "--compile", "off", *loss, "--", *settings)
    assert done.returncode == 0, (done.stderr, result)
    (run,) = result["runs"]
    assert run["train_clips_per_second"]["ceiling"] > 0 and run["loader_clips_per_second"]["measured"] > 0
    assert run["published_clips_per_second"] > 0 and run["peak_memory_gib"] > 0
    assert table[-1].startswith("| tiny | 1 | off |")
    assert result["loss"]["greatest_difference_of_gradients"] < 1e-4
    assert set(result["loss"]["peak_mib"]) == {"plain", "chunked"}


def test_a_combination_that_fails_is_listed_and_the_exit_status_says_so():
    settings = ["global_batch=0", "repeats=1"]
    loss = ["--loss", "clips=1", "width=8", "vocabulary=99", "repeats=1"]
    done, table, result = _check("--models", "tiny", "--stages", "1", "--compile", "off", *loss, "--", *settings)
    assert done.returncode == 1
    assert "global_batch" in result["runs"][0]["failed"] and "failed" in table[-1]
