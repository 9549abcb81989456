"""A killed evaluation resumes on one or several processes and gives the same scores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from evaluation_worlds import arguments, data_set, model_folder
from worlds import run_world

from pipeline.config.recipe import ClipsConfig
from training import evaluate
from training.evaluation import kept_scores, scoring

CLIPS = 24
# Scores are written at once, and clips are slow enough for a kill between them.
_SLOWLY = """
import sys, time
from training import evaluate
from training.evaluation import kept_scores, scoring
kept_scores.SECONDS_BETWEEN = 0.0
score = scoring.score_clip
def slowly(*given):
    time.sleep(0.1)
    return score(*given)
scoring.score_clip = slowly
sys.exit(evaluate.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    model_folder(root / "model", ClipsConfig(length=5, stride="1"))
    data_set(root / "episodes", "left", {"test": [8] * (CLIPS // 2)})
    data_set(root / "episodes", "right", {"test": [8] * (CLIPS // 2)})
    return root


def _killed(command: list[str], output: Path, number: signal.Signals, parts: int) -> tuple[int, str]:
    """Starts an evaluation and kills it after it has written a number of files."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = warm.Popen(
        [sys.executable, "-c", _SLOWLY, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    until = time.monotonic() + 120
    while len(list((output / "scores").glob("*.npz"))) < parts:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    return process.returncode, err


def _evaluate_counting(command: list[str]) -> int:
    """Evaluates; returns the number of clips scored."""
    scored = []
    score = scoring.score_clip
    scoring.score_clip = lambda *given: (scored.append(given[1].key), score(*given))[1]
    try:
        assert evaluate.main(command) == 0
    finally:
        scoring.score_clip = score
    return len(scored)


def test_a_killed_evaluation_resumes_on_any_number_of_processes_with_the_same_scores(world: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    asked = ["--samples", "2", "--temperature", "0.7"]
    assert _evaluate_counting(arguments(world / "model", world / "episodes", whole, *asked)) == CLIPS
    command = arguments(world / "model", world / "episodes", killed, *asked)
    status, _ = _killed(command, killed, signal.SIGKILL, parts=5)
    assert status == -signal.SIGKILL and not (killed / "evaluation.json").exists()
    scored = run_world(2, _evaluate_counting, command)
    assert 0 < sum(scored) <= CLIPS - 5
    assert (killed / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == ["evaluation.json", "evaluation.md"]


def test_an_interrupt_says_that_the_same_command_resumes(world: Path, tmp_path: Path):
    command = arguments(world / "model", world / "episodes", tmp_path)
    status, err = _killed(command, tmp_path, signal.SIGINT, parts=2)
    assert status == 130
    assert "run the same command again" in err and "Traceback" not in err
    assert _evaluate_counting(command) <= CLIPS - 2
    assert json.loads((tmp_path / "evaluation.json").read_text())["evaluated"]["clips"] == CLIPS
    assert kept_scores.SECONDS_BETWEEN > 0


def test_another_command_in_the_same_output_is_refused_on_all_processes_and_keeps_the_scores(world: Path, tmp_path: Path):
    command = arguments(world / "model", world / "episodes", tmp_path)
    _killed(command, tmp_path, signal.SIGKILL, parts=2)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "scores").iterdir() if path.is_file()}
    assert run_world(2, evaluate.main, [*command, "--seed", "5"]) == [1, 1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "scores").iterdir() if path.is_file()} == kept
