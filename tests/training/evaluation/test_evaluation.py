"""Scores of clips are summarised, and a published protocol needs a model that fits it."""

import math

import pytest
import tiny_models
import torch
import waves

from pipeline.common.errors import ConfigError
from training.evaluation.metrics import MetricSet
from training.evaluation.protocols import PROTOCOLS, require_fit
from training.evaluation.scores import ClipScores, score_clip, summarise
from training.prediction.clip_prediction import Sampling, clips_for, cut_clip


def _scores() -> ClipScores:
    """Two clips of three samples, one context and two future frames; both baselines come last."""
    first = [[0.0, 10.0, 20.0], [9.0, 30.0, 10.0], [90.0, 12.0, 14.0], [1.0, 2.0, 4.0], [5.0, 50.0, 60.0]]
    second = [[1.0, 8.0, 8.0], [1.0, 6.0, 6.0], [1.0, 2.0, 2.0], [1.0, 4.0, 8.0], [5.0, 70.0, 80.0]]
    return ClipScores(torch.tensor([first, second], dtype=torch.float64)[:, :, None], torch.empty(2, 6, 0))


def test_the_best_sample_is_chosen_per_clip_by_future_frames():
    rows = summarise(_scores(), ["psnr"], context=1)
    found = rows["prediction"]["psnr"]
    assert found["best"] == pytest.approx((20 + 8) / 2)
    assert found["per_frame"] == pytest.approx([(30 + 8) / 2, (10 + 8) / 2])
    assert found["mean"] == pytest.approx(((15 + 20 + 13) / 3 + (8 + 6 + 2) / 3) / 2, rel=1e-5)
    # With the context frame, as in the published code, another sample is the best.
    assert found["best_with_context"] == pytest.approx(((90 + 12 + 14) / 3 + 17 / 3) / 2, rel=1e-5)
    assert rows["repeat_last_frame"]["psnr"]["best"] == pytest.approx((3 + 6) / 2)
    assert rows["reconstruction"]["psnr"]["best"] == pytest.approx((55 + 75) / 2)


def test_the_smallest_error_is_best():
    found = summarise(_scores(), ["lpips"], context=1)["prediction"]["lpips"]
    assert found["best"] == pytest.approx((13 + 2) / 2)


def test_fvd_compares_all_samples_with_the_truth():
    torch.manual_seed(0)
    features = torch.randn(5, 6, 3, dtype=torch.float64)
    features[:, 3] += 4  # the repeat
    features[:, 4] = features[:, 5]  # a perfect reconstruction
    rows = summarise(ClipScores(torch.zeros(5, 5, 0, 3), features), [], context=1)
    assert rows["reconstruction"]["fvd"]["all"] == pytest.approx(0, abs=1e-4)
    assert rows["repeat_last_frame"]["fvd"]["all"] > 40 > rows["prediction"]["fvd"]["all"] > 0


def test_scores_that_are_not_finite_do_not_stop_the_evaluation():
    scores = _scores()
    scores.frames[0, 0, 0, 2] = torch.nan
    features = torch.randn(2, 6, 3, dtype=torch.float64)
    features[0, 0] = torch.inf
    rows = summarise(ClipScores(scores.frames, features), ["psnr"], context=1)
    assert math.isnan(rows["prediction"]["psnr"]["mean"]) and math.isnan(rows["prediction"]["fvd"]["all"])
    assert math.isfinite(rows["reconstruction"]["fvd"]["all"])


def test_samples_do_not_depend_on_the_batch_size():
    model = tiny_models.world_model()
    clip = cut_clip(waves.episode(), model, clips_for(model, waves.CLIPS, None), start=0)
    metrics = MetricSet(["mse"], None, None, len(clip.frames), clip.frames.shape[-1], torch.device("cpu"))
    scores = [score_clip(model, clip, Sampling(samples=4, seed=2), at_once, metrics).frames for at_once in (1, 3, 4)]
    assert len(scores[0][0, :4].unique(dim=0)) == 4
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0])


def test_a_protocol_refuses_models_it_is_not_defined_for():
    assert require_fit("robonet", 2, 64) is PROTOCOLS["robonet"]
    with pytest.raises(ConfigError, match="1 context frames, but the model has 2"):
        require_fit("bair", 2, 64)
    with pytest.raises(ConfigError, match="256 pixels a side, but the model has 64"):
        require_fit("robonet-256", 2, 64)
