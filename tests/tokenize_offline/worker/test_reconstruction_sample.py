"""The reconstruction sample depends only on the episodes, and its PSNR follows the definition."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_episodes import TINY, make_episode, tiny_model, write_shard

from pipeline import open_shard
from pipeline.common.manifests import read_manifest
from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.decode import EpisodeClips, read_clips
from tokenize_offline.clips.sampling import is_held_out, resolve_clips
from tokenize_offline.metrics import MAX_PSNR
from tokenize_offline.shards.codebook_stats import merged_reconstruction, reconstruction_statistics
from tokenize_offline.tasks import TokenizeJob, find_shards, token_layout
from tokenize_offline.worker.encoder import BatchEncoder
from tokenize_offline.worker.reconstruction_sample import ReconstructionSample
from tokenize_offline.worker.worker import run_worker


def episode(number: int, clips: int) -> EpisodeClips:
    pixels = [torch.full((1, 1, 1, 1), float(number))] * clips
    return EpisodeClips(f"train-00000-{number:06d}", False, "", [], pixels, [0], None, None)


@given(st.integers(0, 300), st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_sample_is_small_and_does_not_depend_on_the_order_of_work(count, clips, order):
    numbers = list(range(count))
    drawn = []
    for _ in range(2):
        sample = ReconstructionSample()
        for number in numbers:
            sample.add(episode(number, clips), first_index=number * clips)
        drawn.append([(clip.index, clip.pixels.item()) for clip in sample.selected()])
        order.shuffle(numbers)
    assert drawn[0] == drawn[1]
    assert all(index == number * clips for index, number in drawn[0])
    assert len(drawn[0]) == (min(4, max(1, count * clips // 400), count) if count else 0)


def test_psnr_is_that_of_the_mean_error_over_all_pixels_and_can_be_merged():
    errors = np.random.default_rng(0).random((5, 6)) / 50
    whole = reconstruction_statistics(errors, 2)
    assert whole["context_psnr"] == round(-10 * math.log10(errors[:, :2].mean()), 2)
    assert whole["future_psnr"] == round(-10 * math.log10(errors[:, 2:].mean()), 2)
    parts = [reconstruction_statistics(part, 2) for part in (errors[:1], errors[1:], errors[:0])]
    merged = merged_reconstruction([{"episodes": 3}, *parts])
    assert merged["sampled_clips"] == 5 and parts[2] == {}
    assert merged["future_psnr"] == pytest.approx(whole["future_psnr"], abs=0.02)
    assert merged_reconstruction([{}]) == {}
    assert reconstruction_statistics(np.zeros((1, 4)), 1)["context_psnr"] == MAX_PSNR


def test_a_manifest_holds_the_psnr_of_its_shards_sample(tmp_path):
    write_shard(tmp_path / "eps", 0, [make_episode(index, 8) for index in range(6)])
    clips = resolve_clips(ClipsConfig(length=4, per_episode=2, views=2, held_out=0.4), 2)
    model = tiny_model()
    job = TokenizeJob(clips, token_layout(TINY, clips, "bf16", "ab" * 32), str(tmp_path / "out"))
    run_worker(find_shards([str(tmp_path / "eps")]), job, BatchEncoder(model, torch.device("cpu"), "bf16", 4), readers=1)
    episodes = list(open_shard(tmp_path / "eps" / "made_up" / "train-000000.tar"))
    for held_out, name in ((False, "train"), (True, "train_heldout")):
        sample = ReconstructionSample()
        chosen = [one for one in episodes if is_held_out("made_up", one.key, 0.4) == held_out]
        for one in random.Random(0).sample(chosen, len(chosen)):
            sample.add(read_clips(one, clips, 2, 0.4, 32), 0)
        (clip,) = sample.selected()
        ids = BatchEncoder(model, torch.device("cpu"), "bf16", 4).tokenize([clip.pixels])
        error = (model.detokenize(ids)[0].clamp(0, 1) - clip.pixels).square().mean(dim=(1, 2, 3))
        statistics = read_manifest(str(tmp_path / "out" / "made_up" / f"{name}-000000.json")).statistics
        assert statistics["sampled_clips"] == 1
        # Stride 2 at 5 frames per second.
        assert statistics["seconds_per_frame"] == 0.4
        assert statistics["context_psnr"] == round(-10 * math.log10(error[:2].mean()), 2)
        assert statistics["future_psnr"] == round(-10 * math.log10(error[2:].mean()), 2)
