"""The stage supports all shapes, strides, views and step arrays that recipes and sources can have."""

import dataclasses

import numpy as np
import pytest
import torch
from synthetic_episodes import TINY, make_episode, tiny_model, write_shard

from pipeline import open_shard
from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.decode import read_clips
from tokenize_offline.clips.sampling import resolve_clips
from tokenize_offline.shards.token_shards import fixed_size_column, open_token_shard
from tokenize_offline.tasks import TokenizeJob, find_shards, token_layout
from tokenize_offline.worker.encoder import BatchEncoder
from tokenize_offline.worker.worker import run_worker

# The published 256 x 256 tokenizer's five blocks, narrow: downsampled four times to a grid of 16.
LARGE = dataclasses.replace(TINY, resolution=256, block_out_channels=(32, 32, 32, 32, 32))


def tokenized(folder, config, clips, split="train", **episode):
    """Tokenize one shard with one episode of 12 frames; returns the shard's info and table, the clips, and the model."""
    write_shard(folder / "eps", 0, [make_episode(0, 12, split=split, **episode)], split=split)
    model = tiny_model(config=config)
    resolved = resolve_clips(clips, config.context_length)
    layout = token_layout(config, resolved, "fp32", "ab" * 32)
    model.set_context_length(layout.context_length)
    encoder = BatchEncoder(model, torch.device("cpu"), "fp32", 2)
    run_worker(find_shards([str(folder / "eps")]), TokenizeJob(resolved, layout, str(folder / "out")), encoder, readers=1)
    info, table = open_token_shard(folder / "out" / "made_up" / f"{split}-000000.arrow")
    (opened,) = open_shard(folder / "eps" / "made_up" / f"{split}-000000.tar")
    return info, table, read_clips(opened, resolved, info.views, 0.0, config.resolution), model


@pytest.mark.parametrize(
    ("config", "clips"),
    [
        (TINY, ClipsConfig(length=5, goal=True, per_episode=2, held_out=0)),
        (TINY, ClipsConfig(length=4, context_length=1, per_episode=2, held_out=0)),
        (TINY, ClipsConfig(length=4, stride="0.33s", per_episode=2, views=3, held_out=0)),
        (LARGE, ClipsConfig(length=3, per_episode=1, views=2, held_out=0)),
    ],
    ids=["goal", "one of two context frames", "seconds, three views", "256x256"],
)
def test_rows_are_the_ids_of_the_planned_clips(tmp_path, config, clips):
    info, table, read, model = tokenized(tmp_path, config, clips)
    ids = np.concatenate(list(fixed_size_column(table, "ids", info.layout.sequence_length)))
    # One at a time, because other clips in the batch must not matter.
    expected = torch.cat([model.tokenize(read.pixels[index][None]) for index in read.clip_index])
    assert np.array_equal(ids, expected.numpy())
    assert (info.layout.goal, info.views) == (clips.goal, clips.views)
    assert table.column("view").to_pylist() == list(range(clips.views)) * clips.per_episode
    # The source has 5 frames per second and a base step of 6.
    stride = 1.65 if clips.stride == "0.33s" else 2
    assert table.column("stride").to_pylist() == pytest.approx([stride] * table.num_rows)
    if clips.goal:
        # The goal comes first: the episode's last frame.
        assert all(plan.frames[0] == 11 for plan in read.plans)


@pytest.mark.parametrize(("actions", "rewards"), [(0, True), (1, False), (17, True)])
def test_actions_of_any_width_and_rewards_are_in_the_rows_and_the_metadata(tmp_path, actions, rewards):
    clips = ClipsConfig(length=4, per_episode=2, held_out=0)
    info, table, read, _ = tokenized(tmp_path, TINY, clips, actions=actions, rewards=rewards)
    assert (info.action_dim, info.has_reward) == (actions, rewards)
    assert info.action_meaning == ("step and episode" if actions else "")
    assert ("action" in table.column_names, "reward" in table.column_names) == (bool(actions), rewards)
    if actions:
        carried = np.concatenate(list(fixed_size_column(table, "action", 4 * actions))).reshape(-1, 4, actions)
        assert carried[:, :, 0].tolist() == [list(plan.frames) for plan in read.plans]
    if rewards:
        carried = np.concatenate(list(fixed_size_column(table, "reward", 4)))
        assert np.allclose(carried, np.array([plan.frames for plan in read.plans]) / 10)


def test_other_splits_have_only_plain_views_and_no_held_out_rows(tmp_path):
    info, table, _, _ = tokenized(tmp_path, TINY, ClipsConfig(length=4, per_episode=2, views=3, held_out=0.999), split="val")
    assert (info.split, info.views, table.column("view").to_pylist()) == ("val", 1, [0, 0])
