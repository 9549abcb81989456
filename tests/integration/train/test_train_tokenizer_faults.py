"""Tokenizer training over damaged episodes, non-finite steps, kills and damaged checkpoints."""

import json
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizer_runs import losses, make_episodes, metric_lines, train_arguments, write_episodes
from wandb_logs import logged
from worlds import run_world

from pipeline.episodes.naming import episode_key
from training.tokenizer_training.trainer import TokenizerTrainer
from training.train_tokenizer import main
from training.trainer.checkpoints import saving
from training.trainer.checkpoints.states import DAMAGED_NAME, State, check_checkpoint, tag


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_episodes(tmp_path_factory.mktemp("episodes"))


QUICK = ["--tokenizer.lpips_weight", "0", "--tokenizer.disc_weight", "0"]


def _with_damage(root: Path, episodes: Path, damaged: Collection[int]) -> list[str]:
    """Options of a run over episodes of which some are damaged."""
    write_episodes(root, damaged)
    return [str(root) if word == str(episodes) else word for word in train_arguments(episodes, root / "run", *QUICK)]


def test_damaged_episodes_are_replaced_logged_once_and_listed_also_across_a_resume(
    episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    given = _with_damage(tmp_path, episodes, damaged={1, 4, 5, 8})
    assert main(given) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (
        whole["finished"] and 1 <= whole["episodes_left_out"] <= 4 and whole["samples_replaced"] >= whole["episodes_left_out"]
    )
    keys = {episode_key("train", 0, number) for number in (1, 4, 5, 8)}
    assert {one["key"] for one in whole["left_out"]} <= keys
    assert all("damaged" in one["reason"] and one["dataset"] == "squares" for one in whole["left_out"])
    for one in whole["left_out"]:
        told = [record for record in caplog.records if one["key"] in record.getMessage()]
        assert len(told) == 1 and "is left out" in told[0].getMessage()
    caplog.clear()
    parts = [str(tmp_path / "parts") if word == str(tmp_path / "run") else word for word in given]
    assert main([*parts, "--tokenizer.steps", "3"]) == 0
    capsys.readouterr()
    assert main([*parts, "--resume", "auto"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert {**resumed, "tokenizer": ""} == {**whole, "tokenizer": ""}
    assert metric_lines(tmp_path / "parts") == metric_lines(tmp_path / "run")
    for one in whole["left_out"]:
        assert sum(one["key"] in record.getMessage() for record in caplog.records) == 1


def test_a_data_set_with_only_damaged_episodes_is_a_one_line_error_that_names_it(
    episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = _with_damage(tmp_path, episodes, damaged=range(12))
    assert main([*given, "--workers", "1"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "64 episodes of squares" in line and "train-00000-0000" in line and "header is damaged" in line


def test_steps_that_are_not_finite_are_skipped_and_listed_and_too_many_in_a_row_end_the_run(
    episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    given = train_arguments(episodes, tmp_path, *QUICK, "--tokenizer.learning_rate", "1e30", "--tokenizer.steps", "20")
    assert main(given) == 1
    said = capsys.readouterr().err
    assert "was not finite in 5 steps in a row" in said and "Lower tokenizer.learning_rate" in said
    assert sum("is skipped" in record.getMessage() for record in caplog.records) == 5
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["in_row"], line["terms"]["future_l1"]) for line in skipped] == [
        (step, step - 1, "nan") for step in range(2, 7)
    ]
    assert not (tmp_path / "tokenizer").exists()


def test_results_survive_a_kill_between_the_last_checkpoint_and_the_tokenizer(
    episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given = train_arguments(episodes, tmp_path, *QUICK, "--tokenizer.steps", "3")
    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTrainer, "_write_tokenizer", lambda _: sys.exit(9))
        with pytest.raises(SystemExit):
            main(given)
    assert main([*given, "--resume", "auto"]) == 0
    summary = json.loads(capsys.readouterr().out)
    held_out = [json.loads(line)["held_out"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1:]]
    assert held_out and held_out[0].items() <= summary.items()


def _weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "tokenizer" / "diffusion_pytorch_model.safetensors")


def _killed_in_save(arguments: list[str], part: str, save: int) -> None:
    """Train, and be killed before a part of save number `save`."""
    original, calls = getattr(saving, part), []

    def last(*given: Any) -> None:
        calls.append(part)
        if len(calls) == save:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*given)

    setattr(saving, part, last)
    main(arguments)


def test_a_run_killed_in_a_save_or_with_a_damaged_newest_checkpoint_ends_with_the_weights_of_an_undisturbed_run(
    episodes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    options = ["--tokenizer.lpips_weight", "0", "--tokenizer.checkpoint_every", "2"]
    assert main(train_arguments(episodes, tmp_path / "whole", *options)) == 0
    given = train_arguments(episodes, tmp_path / "run", *options)
    for part, save in (("mark_complete", 2), ("prune", 1)):
        with pytest.raises(AssertionError, match="the process died"):
            run_world(1, _killed_in_save, given, part, save)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [check_checkpoint(path).state for path in sorted(checkpoints.glob("step-*"))] == [State.WHOLE] * 2
    weights = checkpoints / tag(4) / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    caplog.clear()
    assert main(given) == 0
    assert any("step-00000004 is damaged (model.safetensors has SHA-256" in line for line in caplog.messages)
    assert (checkpoints / f"damaged-{tag(4)}" / DAMAGED_NAME).exists()
    assert sorted(path.name for path in checkpoints.glob("step-*")) == [tag(step) for step in (2, 4, 6)]
    whole, run = _weights(tmp_path / "whole"), _weights(tmp_path / "run")
    assert all(np.array_equal(whole[name], run[name]) for name in whole)
    assert metric_lines(tmp_path / "run") == metric_lines(tmp_path / "whole")


def test_a_checkpoint_of_another_run_is_refused(episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, rate in (("one", "1e-4"), ("other", "1e-5")):
        given = train_arguments(episodes, tmp_path / name, *QUICK, "--tokenizer.steps", "1", "--tokenizer.learning_rate", rate)
        assert main(given) == 0
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "own")
    (tmp_path / "other" / "checkpoints").rename(tmp_path / "one" / "checkpoints")
    given = train_arguments(episodes, tmp_path / "one", *QUICK, "--tokenizer.steps", "2", "--tokenizer.learning_rate", "1e-4")
    capsys.readouterr()
    assert main(given) == 1
    assert "was written by a run of another recipe" in capsys.readouterr().err


def test_metrics_and_reconstructions_reach_tensorboard_and_weights_and_biases(
    episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = ["--tokenizer.steps", "2", "--tokenizer.checkpoint_every", "2", "--training.wandb_project", "tests"]
    assert main(train_arguments(episodes, tmp_path, *QUICK, *options)) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    expected = losses(tmp_path)
    assert [event.value for event in events.Scalars("future_l1")] == pytest.approx(expected)
    (picture,) = events.Images("reconstructions")
    assert picture.encoded_image_string == (tmp_path / "reconstructions" / "step-00000002.png").read_bytes()
    assert [event.step for event in events.Scalars("held_out/future_psnr")] == [2]
    _, rows, exits = logged(tmp_path, runs=1)
    assert [row["future_l1"] for row in rows if "future_l1" in row] == pytest.approx(expected)
    assert sum("reconstructions/_type" in row for row in rows) == 1 and exits == [0]
