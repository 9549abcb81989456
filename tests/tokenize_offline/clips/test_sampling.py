"""Clip plans are in range, deterministic and evenly spread, and held-out episodes are separate."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.sampling import (
    EpisodeShape,
    KeyedRandom,
    are_held_out,
    draw_augmentation,
    is_held_out,
    plan_clips,
    resolve_clips,
    stride_of,
)

EPISODE = EpisodeShape("bridge", "train-00000-000000", 40, 64, 80, 5.0, 5.0)

episodes = st.builds(
    EpisodeShape,
    dataset=st.sampled_from(["bridge", "kuka"]),
    key=st.from_regex(r"train-\d{5}-\d{6}", fullmatch=True),
    num_frames=st.integers(1, 400),
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    rate=st.floats(0.5, 60),
    base_step=st.floats(1, 60),
)
recipes = st.builds(
    ClipsConfig,
    length=st.integers(4, 20),
    context_length=st.just(2),
    stride=st.one_of(st.just("reference"), st.just("0.33s"), st.integers(1, 9).map(str)),
    per_episode=st.integers(1, 6),
    views=st.integers(1, 3),
    goal=st.booleans(),
    seed=st.integers(0, 2**31),
)


def resolved(**changes):
    return resolve_clips(ClipsConfig(**changes), 2)


@given(episodes, recipes)
def test_frame_indices_lie_in_the_episode_and_never_decrease(episode, clips):
    plans = plan_clips(episode, clips, clips.views)
    assert len(plans) == clips.per_episode * clips.views
    for plan in plans:
        assert len(plan.frames) == clips.length
        assert all(0 <= index < episode.num_frames for index in plan.frames)
        moving = plan.frames[1:] if clips.goal else plan.frames
        assert moving[0] == plan.start
        assert list(moving) == sorted(moving)


@given(episodes, recipes)
def test_equal_keys_give_equal_plans(episode, clips):
    assert plan_clips(episode, clips, clips.views) == plan_clips(dataclasses.replace(episode), clips, clips.views)


@given(episodes, recipes)
def test_more_views_change_neither_the_plain_view_nor_the_positions(episode, clips):
    plain = plan_clips(episode, clips, 1)
    all_views = plan_clips(episode, clips, 3)
    assert [plan for plan in all_views if plan.view == 0] == plain
    assert all(plan.augmentation is None for plan in plain)
    for number, plan in enumerate(all_views):
        assert plan.view == number % 3
        assert plan.frames == plain[number // 3].frames


@given(episodes, recipes)
def test_a_long_episode_never_repeats_a_frame_at_integer_strides(episode, clips):
    clips = dataclasses.replace(clips, goal=False, stride="2")
    span = (clips.length - 1) * 2
    for plan in plan_clips(episode, clips, 1):
        if episode.num_frames > span:
            assert np.diff(plan.frames).tolist() == [2] * (clips.length - 1)


@given(episodes, st.integers(0, 2**31), st.integers(1, 2))
def test_crops_lie_in_the_frame_with_about_the_area_of_the_recipe(episode, seed, view):
    clips = resolved(seed=seed)
    augmentation = draw_augmentation(KeyedRandom(seed, view), clips, episode)
    box = augmentation.crop
    short = min(episode.height, episode.width)
    assert box.top >= 0 and box.top + box.height <= episode.height
    assert box.left >= 0 and box.left + box.width <= episode.width
    # Rounding moves each side by at most half a pixel.
    assert 0.8 * short**2 - short <= box.height * box.width <= short**2 + short + 1
    assert sorted(name for name, _ in augmentation.jitter) == ["brightness", "contrast", "hue", "saturation"]
    for name, amount in augmentation.jitter:
        assert abs(amount - (0 if name == "hue" else 1)) <= (0.05 if name == "hue" else 0.1)


def test_jitter_comes_in_every_order():
    clips = resolved()
    orders = {tuple(name for name, _ in draw_augmentation(KeyedRandom(n), clips, EPISODE).jitter) for n in range(600)}
    assert len(orders) == 24


@pytest.mark.parametrize(
    ("base_step", "num_frames", "stride"),
    [(3, 100, 1), (5, 100, 2), (10, 100, 3), (30, 1000, 10), (30, 100, 6), (30, 20, 1), (30, 5, 1), (1, 100, 1)],
)
def test_reference_stride_follows_the_base_step_and_shrinks_for_short_episodes(base_step, num_frames, stride):
    episode = dataclasses.replace(EPISODE, base_step=base_step, num_frames=num_frames)
    assert stride_of(resolved(), episode) == stride


def test_a_stride_in_seconds_gives_exact_times_with_rounded_indices():
    episode = dataclasses.replace(EPISODE, rate=5.0, num_frames=400)
    (plan,) = plan_clips(episode, resolved(stride="0.5s", per_episode=1), 1)
    assert plan.stride == 2.5
    assert [index - plan.start for index in plan.frames[:5]] == [0, 3, 5, 8, 10]


def test_a_stride_in_seconds_without_a_rate_is_an_error_that_names_the_data_set():
    with pytest.raises(ConfigError, match="bridge"):
        stride_of(resolved(stride="0.33s"), dataclasses.replace(EPISODE, rate=None))


def test_the_goal_is_the_last_frame_and_comes_before_sixteen_others():
    clips = resolved(goal=True)
    assert clips.length == 17
    for plan in plan_clips(EPISODE, clips, 1):
        assert plan.frames[0] == EPISODE.num_frames - 1
        assert plan.frames[1] == plan.start
        assert len(plan.frames) == 17


def test_starts_cover_the_episode_evenly():
    clips = resolved(per_episode=4, stride="1")
    episode = dataclasses.replace(EPISODE, num_frames=16 + 399)
    starts = [
        [plan.start for plan in plan_clips(dataclasses.replace(episode, key=f"train-00000-{n:06d}"), clips, 1)]
        for n in range(300)
    ]
    for position, column in enumerate(np.array(starts).T):
        assert 100 * position <= column.min() and column.max() < 100 * (position + 1)
        # The mean of 300 uniform numbers is within 5 standard errors (5 x 29 / sqrt(300)) of the middle.
        assert abs(column.mean() - (100 * position + 50)) < 8.5


def test_about_the_given_share_of_episodes_is_held_out():
    keys = [f"train-00000-{number:06d}" for number in range(20_000)]
    held = [is_held_out("bridge", key, 0.01) for key in keys]
    assert 140 < sum(held) < 260
    assert held != [is_held_out("kuka", key, 0.01) for key in keys]
    # A larger share also holds out everything that a smaller one does.
    assert all(is_held_out("bridge", key, 0.05) for key, out in zip(keys, held, strict=True) if out)


@given(st.text(), st.lists(st.text(), max_size=8), st.floats(0, 1))
def test_are_held_out_equals_is_held_out_for_each_episode(dataset, keys, share):
    assert are_held_out(dataset, keys, share).tolist() == [is_held_out(dataset, key, share) for key in keys]


def test_lengths_follow_the_tokenizer_and_invalid_ones_are_errors():
    assert (resolved().length, resolved().context_length) == (16, 2)
    assert resolve_clips(ClipsConfig(context_length=1), 2).context_length == 1
    with pytest.raises(ConfigError, match="context_length must be 1 to 2"):
        resolve_clips(ClipsConfig(context_length=3), 2)
    with pytest.raises(ConfigError, match="no future frames"):
        resolve_clips(ClipsConfig(length=2), 2)
    for stride in ("0", "0.0s"):
        with pytest.raises(ConfigError, match=r"clips\.stride must be above 0"):
            resolve_clips(ClipsConfig(stride=stride), 2)
    with pytest.raises(ConfigError, match="goal"):
        resolve_clips(ClipsConfig(goal=True), 1)
