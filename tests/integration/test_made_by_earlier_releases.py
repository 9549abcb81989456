"""Folders that an earlier release made still open, resume and predict.

`data/made-by-0.1.0.tar.xz` holds one small experiment, made by the commands of that release: npz episodes, episode shards,
token shards, a pre-training run stopped at step 4 of 6, a tokenizer run stopped at step 3 of 6, and an evaluation.
`expected.json` has what the same commands measured without a stop.
"""

import contextlib
import io
import json
import os
import tarfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import worlds

ARCHIVE = Path(__file__).parent / "data" / "made-by-0.1.0.tar.xz"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root / "made"


def _call(folder: str, name: str, arguments: list[str]) -> dict[str, Any]:
    os.chdir(folder)
    (command,) = entry_points(group="console_scripts", name=name)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command.load()(arguments)
    assert code == 0
    return dict(json.loads(out.getvalue().splitlines()[-1]))


def _run(folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """The summary that a command prints, run in `folder` in a process of its own."""
    summary: dict[str, Any] = worlds.run_world(1, _call, str(folder), f"ivideogpt-{name}", list(arguments))[0]
    return summary


def _expected(made: Path, name: str) -> dict[str, float]:
    return dict(json.loads((made / "expected.json").read_text())[name])


def _measured(run: Path, key: str) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {str(line["step"]): line[key] for line in lines if key in line}


def test_ingest_finds_episode_shards_done(made: Path):
    arguments = ["--config", "recipe.yaml", "--dataset", "blocks", "--source", "source", "--output", "episodes", "--rate", "5"]
    summary = _run(made, "ingest", *arguments)
    assert (summary["made"], summary["episodes"]) == (0, 12)


def test_tokenize_finds_token_shards_done(made: Path):
    arguments = ["--config", "recipe.yaml", "--shards", "episodes", "--tokenizer", "tokenizer", "--output", "tokens"]
    summary = _run(made, "tokenize", *arguments)
    assert (summary["shards_done_before"], summary["rows"]) == (1, 0)


def test_pre_training_resumes_with_the_losses_of_a_run_without_a_stop(made: Path):
    arguments = ["--config", "recipe.yaml", "--tokens", "tokens", "--output", "run", "--tokenizer", "tokenizer"]
    summary = _run(made, "train", *arguments, "--resume", "auto")
    assert (summary["finished"], summary["steps_made"]) == (True, 2)
    assert _measured(made / "run", "loss") == pytest.approx(_expected(made, "losses"), rel=1e-3)


def test_tokenizer_training_resumes_with_the_losses_of_a_run_without_a_stop(made: Path):
    arguments = ["--config", "recipe.yaml", "--shards", "episodes", "--output", "tok", "--init_from", "zeros", "--workers", "0"]
    assert _run(made, "train-tokenizer", *arguments)["steps"] == 6
    assert _measured(made / "tok", "future_l1") == pytest.approx(_expected(made, "tokenizer"), rel=1e-3)


def test_an_exported_model_predicts(made: Path):
    arguments = ["--model", "run/model", "--input", "source/episode_003.npz", "--output", "prediction", "--temperature", "0"]
    summary = _run(made, "predict", *arguments)
    assert summary["prediction"]["mean"]["mean_psnr"] > 5
    assert summary["repeat_last_frame"]["mean_psnr"] == pytest.approx(16.863, abs=0.01)


def test_an_exported_model_is_evaluated(made: Path):
    arguments = ["--model", "run/model", "--shards", "episodes", "--output", "evaluated", "--metrics", "[mse]"]
    summary = _run(made, "evaluate", *arguments)
    assert summary["results"]["blocks"]["repeat_last_frame"]["mse"]["mean"] == pytest.approx(0.021396, rel=1e-3)
