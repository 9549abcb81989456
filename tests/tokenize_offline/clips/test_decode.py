"""Decoded clips have the right pixels, actions and rewards in every row."""

import dataclasses

import numpy as np
import pytest
import torch
from synthetic_episodes import broken, make_episode

from pipeline.common.errors import BadEpisodeError
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.frames import decode
from tokenize_offline.clips.decode import read_clips
from tokenize_offline.clips.sampling import resolve_clips
from tokenize_offline.clips.transforms import augment, to_square

CLIPS = resolve_clips(ClipsConfig(length=6, per_episode=3, held_out=0), 2)


def test_pixels_match_the_planned_frames_and_views():
    episode = make_episode(0, 30)
    read = read_clips(episode, CLIPS, views=2, held_out_share=0, side=32)
    assert [plan.view for plan in read.plans] == [0, 1] * 3
    for plan, index in zip(read.plans, read.clip_index, strict=True):
        frames = np.stack([decode(episode.frames[frame]) for frame in plan.frames])
        expected = to_square(frames, 32) if plan.augmentation is None else augment(frames, 32, plan.augmentation)
        assert torch.allclose(read.pixels[index], expected, atol=1e-6)


def test_actions_and_rewards_match_the_frames_of_the_clip():
    read = read_clips(make_episode(4, 30), CLIPS, views=1, held_out_share=0, side=32)
    for row, plan in enumerate(read.plans):
        assert read.action[row, :, 0].tolist() == list(plan.frames)
        assert (read.action[row, :, 1:] == 4).all()
        assert np.allclose(read.reward[row], np.array(plan.frames) / 10)


def test_a_short_episode_decodes_its_only_clip_once():
    read = read_clips(make_episode(0, 3), CLIPS, views=1, held_out_share=0, side=32)
    assert read.clip_index == [0, 0, 0] and len(read.pixels) == 1
    assert read.plans[0].frames == (0, 1, 2, 2, 2, 2)
    assert read.action[0, :, 0].tolist() == [0, 1, 2, 2, 2, 2]


def test_held_out_episodes_have_only_the_plain_view():
    read = read_clips(make_episode(0, 30), CLIPS, views=3, held_out_share=1, side=32)
    assert read.held_out and [plan.view for plan in read.plans] == [0, 0, 0]


def test_an_unusable_episode_is_an_error_with_the_reason():
    episode = make_episode(0, 5)
    with pytest.raises(BadEpisodeError, match="no frames"):
        read_clips(dataclasses.replace(episode, frames=[]), CLIPS, 1, 0, 32)
    with pytest.raises(BadEpisodeError, match="damaged"):
        read_clips(broken(episode), CLIPS, 1, 0, 32)
    with pytest.raises(BadEpisodeError, match="frame 0 has 30 x 44 pixels, the episode 44 x 30"):
        read_clips(dataclasses.replace(episode, height=44, width=30), CLIPS, 1, 0, 32)
    with pytest.raises(BadEpisodeError, match="4 values of action for 5 frames"):
        read_clips(dataclasses.replace(episode, action=episode.action[:4]), CLIPS, 1, 0, 32)
