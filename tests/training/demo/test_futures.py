"""What the demo's numbers say of a model that uses actions, of one that doesn't, and of one that moves things too little."""

import torch

from training.demo.futures import closeness, right_shares


def _moving(speeds: list[float]) -> torch.Tensor:
    """(plans, 4, 3, 16, 16): a bar that leaves its place to either side, the faster the further."""
    frames = torch.ones(len(speeds), 4, 3, 16, 16)
    for plan, speed in enumerate(speeds):
        for step in range(4):
            place = 7 + round(speed * step)
            frames[plan, step, :, :, place : place + 2] = 0
    return frames


def test_predictions_that_follow_their_actions_are_right_both_ways():
    truth = _moving([-2, -1, 1, 2])
    assert right_shares(closeness(truth, truth)) == {"own_predicts_best": 1.0, "own_is_nearest": 1.0}


def test_predictions_that_ignore_actions_are_right_by_chance():
    truth = _moving([-2, -1, 1, 2])
    assert right_shares(closeness(truth, truth[:1].expand_as(truth))) == {"own_predicts_best": 0.25, "own_is_nearest": 0.25}


def test_too_little_motion_in_the_right_direction_still_predicts_every_future_best_but_is_nearest_to_the_stillest():
    truth, predicted = _moving([2, 0]), 0.7 * _moving([0, 0]) + 0.3 * _moving([2, 0])
    assert right_shares(closeness(truth, predicted)) == {"own_predicts_best": 1.0, "own_is_nearest": 0.5}
