"""The other published shapes go through the stage: goal-conditioned clips, one of two context frames, 256 x 256 frames."""

import dataclasses

import numpy as np
import pytest
import torch
from synthetic_episodes import TINY, make_episode, tiny_model, write_shard

from pipeline import open_shard
from pipeline.recipe import ClipsConfig
from tokenize_offline.clips import resolve_clips
from tokenize_offline.engine import TokenizerEngine
from tokenize_offline.plan import TokenizeJob, find_shards, token_layout
from tokenize_offline.reader import read_clips
from tokenize_offline.token_shards import fixed_size_column, open_token_shard
from tokenize_offline.worker import run_worker

# The published 256 x 256 tokenizer's five blocks, narrow: four halvings to a grid of 16.
LARGE = dataclasses.replace(TINY, resolution=256, block_out_channels=(32, 32, 32, 32, 32))


@pytest.mark.parametrize(
    ("config", "clips"),
    [
        (TINY, ClipsConfig(length=5, goal=True, per_episode=2, held_out=0)),
        (TINY, ClipsConfig(length=4, context_length=1, per_episode=2, held_out=0)),
        (LARGE, ClipsConfig(length=3, per_episode=1, views=2, held_out=0)),
    ],
    ids=["goal", "one of two context frames", "256x256"],
)
def test_rows_are_the_ids_of_the_planned_clips(tmp_path, config, clips):
    write_shard(tmp_path / "eps", 0, [make_episode(0, 12)])
    model = tiny_model(config=config)
    resolved = resolve_clips(clips, config.context_length)
    layout = token_layout(config, resolved, "fp32", "ab" * 32)
    model.set_context_length(layout.context_length)
    engine = TokenizerEngine(model, torch.device("cpu"), "fp32", 2)
    run_worker(find_shards([str(tmp_path / "eps")]), TokenizeJob(resolved, layout, str(tmp_path / "out")), engine, readers=1)
    info, table = open_token_shard(tmp_path / "out" / "made_up" / "train-000000.arrow")
    ids = np.concatenate(list(fixed_size_column(table, "ids", info.layout.sequence_length)))
    (episode,) = open_shard(tmp_path / "eps" / "made_up" / "train-000000.tar")
    read = read_clips(episode, resolved, clips.views, 0.0, config.resolution)
    expected = model.tokenize(torch.stack([read.pixels[place] for place in read.pixels_of]))
    assert np.array_equal(ids, expected.numpy())
    assert info.layout.goal == clips.goal
    if clips.goal:
        # The goal stands first: the episode's last frame, whatever the clip's start.
        assert all(plan.frames[0] == 11 for plan in read.plans)
