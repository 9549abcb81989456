"""The device check of the tokenizer measures speed and agreement, and lists combinations that fail."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from synthetic_episodes import tiny_model, tiny_tokenizer

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "tokenizer_check.py"


def test_speed_and_agreement_with_reference_ids_are_measured(tmp_path):
    tiny_tokenizer(tmp_path / "context2")
    frames = np.random.default_rng(0).random((2, 4, 3, 32, 32), dtype=np.float32)
    tokens = tiny_model().tokenize(torch.from_numpy(frames)).numpy()
    tokens[0, 0] += 1
    np.savez(tmp_path / "context2" / "expected.npz", frames=frames, tokens=tokens)
    words = ["--sizes", "tiny", "--precisions", "fp32", "--seconds", "0.1", "--parity", str(tmp_path)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.strip().splitlines()
    result = json.loads(last)
    assert result["ids_equal_to_fp32_on_cpu"] == {"context2": {"fp32": round(1 - 1 / tokens.size, 6)}}
    (run,) = result["runs"]
    assert run["measured"] > 0 and run["ceiling"] > 0 and run["seconds_to_first_batch"] > 0
    assert table[-1].startswith(f"| tiny | fp32 | {run['batch']} |")


def test_a_combination_that_fails_is_listed_and_the_exit_status_says_so():
    words = ["--sizes", "tiny", "--precisions", "int3"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "int3" in json.loads(done.stdout.strip().splitlines()[-1])["runs"][0]["failed"]
