"""The demo's scores distinguish a model that uses actions, one that ignores them, and one with too little motion."""

import torch

from training.demo.futures import own_plan_fractions, psnr_matrix


def _moving(speeds: list[float]) -> torch.Tensor:
    """Frames (plans, 4, 3, 16, 16) with a bar that moves left or right at a speed per plan."""
    frames = torch.ones(len(speeds), 4, 3, 16, 16)
    for plan, speed in enumerate(speeds):
        for step in range(4):
            place = 7 + round(speed * step)
            frames[plan, step, :, :, place : place + 2] = 0
    return frames


def test_predictions_that_follow_their_actions_have_full_scores():
    truth = _moving([-2, -1, 1, 2])
    assert own_plan_fractions(psnr_matrix(truth, truth)) == {"own_predicts_best": 1.0, "own_is_nearest": 1.0}


def test_predictions_that_ignore_actions_have_chance_scores():
    truth = _moving([-2, -1, 1, 2])
    assert own_plan_fractions(psnr_matrix(truth, truth[:1].expand_as(truth))) == {
        "own_predicts_best": 0.25,
        "own_is_nearest": 0.25,
    }


def test_too_little_motion_still_predicts_best_but_is_nearest_to_the_future_with_least_motion():
    truth, predicted = _moving([2, 0]), 0.7 * _moving([0, 0]) + 0.3 * _moving([2, 0])
    assert own_plan_fractions(psnr_matrix(truth, predicted)) == {"own_predicts_best": 1.0, "own_is_nearest": 0.5}
