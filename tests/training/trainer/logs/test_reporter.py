"""A line of metrics has the right numbers, and only steps count as training time."""

import json
import math

import pytest
import torch
from synthetic_tokens import LAYOUT, write_shard
from wandb_logs import logged

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import DataConfig, Recipe
from training.distributed import Processes, find_rank_info
from training.trainer.logs import reporter as reporting
from training.trainer.logs import throughput
from training.trainer.logs.reporter import Reporter
from training.trainer.logs.throughput import flops_per_token, peak_memory
from training.trainer.run import RunOptions
from training.trainer.setup import set_up_run
from training.trainer.trainer import pretrain

MODEL = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64)
PEAK = 1e9


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 5.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


@pytest.fixture
def tokens(tmp_path):
    write_shard(tmp_path / "tokens", "alpha", positions=20)
    write_shard(tmp_path / "tokens", "beta", positions=10, seed=1)
    write_shard(tmp_path / "tokens", "beta", positions=4, split="train_heldout", seed=2)
    return tmp_path / "tokens"


def _recipe(**training):
    settings = {"global_batch": 8, "steps": 4, "precision": "fp32", "warmup_steps": 1, "schedule": "constant", **training}
    return Recipe(data=DataConfig(weights={"alpha": 0.5, "beta": 0.5}), model=MODEL, training=TrainingConfig(**settings))


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_speeds_count_only_the_time_spent_in_steps(tokens, tmp_path, clock, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "peak_flops", lambda device: PEAK)
    run = set_up_run(_recipe(), RunOptions([str(tokens)], str(tmp_path / "run")), find_rank_info({}))
    run.write_identity()
    with Processes(find_rank_info({})) as processes, Reporter(run, processes) as reporter:
        for losses, applied in (((1.0, 3.0), True), ((math.nan, 1.0), False), ((4.0, 4.0), True)):
            clock.now += 2.0
            reporter.add_step([torch.tensor(loss) for loss in losses], applied, waited=0.5)
            with reporter.paused():
                clock.now += 100.0
        reporter.write_line(3, 0.25, torch.tensor(7.0), skipped=1)
        clock.now += 1.0
        reporter.add_step([torch.tensor(9.0)], True, waited=0.0)
        reporter.write_line(4, 0.25, torch.tensor(math.inf), skipped=1)
    first, second = _lines(tmp_path / "run")
    tokens_per_second = 3 * 8 * LAYOUT.sequence_length / 6.0
    target_tokens_per_second = 3 * 8 * (LAYOUT.sequence_length - LAYOUT.prefix_length) / 6.0
    assert (first["step"], first["loss"], first["learning_rate"], first["gradient_norm"]) == (3, 3.0, 0.25, 7.0)
    # Under their current and their former keys.
    assert first["tokens_per_second"] == first["ids_per_second"] == pytest.approx(tokens_per_second)
    assert first["target_tokens_per_second"] == first["label_ids_per_second"] == pytest.approx(target_tokens_per_second)
    assert first["mfu"] == pytest.approx(tokens_per_second * flops_per_token(MODEL, LAYOUT) / PEAK)
    assert first["data_wait"] == pytest.approx(1.5 / 6.0)
    assert sum(first["samples"].values()) == 24
    assert first["epochs"] == {name: count / run.store.positions(name) for name, count in first["samples"].items()}
    assert 1 << 26 < first["memory_bytes"] <= peak_memory(torch.device("cpu"))
    assert (second["loss"], second["gradient_norm"], second["data_wait"]) == (9.0, None, 0.0)
    assert (second["not_finite"], first["skipped_steps"]) == ({"gradient_norm": "inf"}, 1)
    assert second["tokens_per_second"] == pytest.approx(8 * LAYOUT.sequence_length)
    shown = capsys.readouterr().err
    assert f"loss 9.000, {8 * LAYOUT.sequence_length:.3g} tokens/s, MFU " in shown and "4/4" in shown


def test_a_whole_run_is_logged_to_weights_and_biases_and_a_resume_continues_there(tokens, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (1, 2):
        recipe = _recipe(steps=steps, log_every=1, evaluate_every=1, wandb_project="tests")
        pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "run")))
    ids, rows, exits = logged(tmp_path / "run", runs=2)
    assert len(ids) == 1 and exits == [0, 0]
    sent = {(row["step"], name): value for row in rows for name, value in row.items()}
    for line in _lines(tmp_path / "run"):
        for name in ("loss", "held_out_loss", "memory_bytes", "mfu"):
            if name in line:
                assert sent[line["step"], name] == pytest.approx(line[name])
        for name, loss in line.get("held_out_loss_by_frame", {}).items():
            assert sent[line["step"], f"held_out_loss_by_frame/{name}"] == pytest.approx(loss)
    assert {step for step, name in sent if name == "loss"} == {1, 2}
