"""Metrics are computed right, and their file survives a crash."""

import json

import numpy as np
import pytest
import torch
from synthetic_tokens import LAYOUT, PUBLISHED

from pipeline.config.model import ModelConfig
from training.trainer.logs.throughput import (
    METRICS_NAME,
    RunningLoss,
    flops_per_token,
    target_entropy,
    truncate_logs,
    with_current_names,
)


@pytest.mark.parametrize(
    ("model", "gflops"), [(ModelConfig(), 0.79), (ModelConfig(layers=24, heads=16, width=1024, mlp_width=4096), 2.67)]
)
def test_flops_agree_with_the_published_models(model, gflops):
    assert PUBLISHED.sequence_length == 751
    assert flops_per_token(model, PUBLISHED) / 1e9 == pytest.approx(gflops, abs=0.005)


def test_entropy_counts_target_tokens_only():
    ids = np.zeros((2, LAYOUT.sequence_length), np.int64)
    targets = LAYOUT.sequence_length - LAYOUT.prefix_length
    ids[:, : LAYOUT.prefix_length] = 7
    assert target_entropy(ids, LAYOUT) == 0
    ids[1, LAYOUT.prefix_length :] = 3
    assert target_entropy(ids, LAYOUT) == pytest.approx(np.log(2))
    ids[:, LAYOUT.prefix_length :] = np.arange(targets)
    assert target_entropy(ids, LAYOUT) == pytest.approx(np.log(targets))


def test_the_running_loss_is_a_mean_over_steps_of_means_over_micro_steps():
    loss = RunningLoss(torch.device("cpu"))
    loss.add([torch.tensor(1.0), torch.tensor(3.0)])
    loss.add([torch.tensor(6.0)])
    assert (loss.total / loss.steps) == 4.0
    saved = loss.total, loss.steps
    loss.reset()
    assert (loss.total, loss.steps) == (0.0, 0)
    loss.reset(*saved)
    assert (loss.total, loss.steps) == (8.0, 2)


def test_results_of_an_earlier_version_get_their_current_keys():
    expected = {"loss": 1.0, "ids_per_second": 5.0, "tokens_per_second": 5.0}
    assert with_current_names({"loss": 1.0, "ids_per_second": 5.0}) == expected
    both = {"ids_per_second": 5.0, "tokens_per_second": 6.0}
    assert with_current_names(both) == both and with_current_names({}) == {}


def test_lines_after_the_checkpoint_and_incomplete_ones_are_dropped(tmp_path):
    lines = [json.dumps({"step": step, "loss": step / 7}) for step in range(1, 6)]
    (tmp_path / METRICS_NAME).write_text("\n".join(lines) + '\n{"step": 3, "los')
    truncate_logs(tmp_path, 3)
    assert (tmp_path / METRICS_NAME).read_text().splitlines() == lines[:3]
    truncate_logs(tmp_path, 0)
    assert (tmp_path / METRICS_NAME).read_text() == ""
