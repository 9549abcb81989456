"""Reader processes return the same clips as this process, and a crash costs only one episode."""

import dataclasses
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import deadly_reading
import numpy as np
import pytest
import torch
from synthetic_episodes import broken, make_episode

from pipeline.common.errors import BadEpisodeError, ConfigError
from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.decode import read_clips
from tokenize_offline.clips.decode_pool import ReaderPool
from tokenize_offline.clips.sampling import resolve_clips

CLIPS = resolve_clips(ClipsConfig(length=6, per_episode=3, held_out=0), 2)


def marked(index, language):
    return dataclasses.replace(make_episode(index, 12), language=language)


@pytest.fixture
def pool():
    with ReaderPool(CLIPS, 32, 2, deadly_reading.read) as pool:
        yield pool


def test_a_reader_returns_the_clips_that_this_process_reads(pool):
    for index, frames in enumerate((3, 12, 30)):
        episode = make_episode(index, frames)
        expected, got = read_clips(episode, CLIPS, 2, 0.0, 32), pool.read(episode, 2, 0.0)
        assert len(got.pixels) == len(expected.pixels)
        assert all(torch.equal(one, other) for one, other in zip(got.pixels, expected.pixels, strict=True))
        assert np.array_equal(got.action, expected.action) and np.array_equal(got.reward, expected.reward)
        assert (got.plans, got.clip_index, got.held_out) == (expected.plans, expected.clip_index, expected.held_out)


def test_only_the_episode_that_kills_its_reader_twice_is_dropped(pool):
    episodes = [marked(index, "kill" if index % 3 == 1 else "") for index in range(9)]

    def outcome(episode):
        try:
            return len(pool.read(episode, 1, 0.0).plans)
        except BadEpisodeError as error:
            return str(error)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(outcome, episodes)) == [3, "killed its reader process 2 times", 3] * 3


def test_one_crash_of_a_reader_loses_nothing(pool, tmp_path):
    episode = marked(0, f"kill-once {tmp_path / 'died'}")
    assert len(pool.read(episode, 1, 0.0).plans) == 3
    assert (tmp_path / "died").exists()


def test_readers_killed_while_idle_are_replaced(pool):
    pool.read(marked(0, ""), 1, 0.0)
    (reader,) = (child for child in multiprocessing.active_children() if child.name == "reader")
    reader.kill()
    reader.join()
    for index in range(3):
        assert len(pool.read(marked(index, ""), 1, 0.0).plans) == 3


def test_errors_of_a_reader_are_raised_in_this_process(pool):
    with pytest.raises(BadEpisodeError, match="damaged"):
        pool.read(broken(make_episode(0, 5)), 1, 0.0)
    with pytest.raises(ConfigError, match="not this way"):
        pool.read(marked(0, "refuse"), 1, 0.0)
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        pool.read(marked(0, "fail"), 1, 0.0)
    assert len(pool.read(marked(0, ""), 1, 0.0).plans) == 3


def test_the_processes_end_with_the_pool():
    with ReaderPool(CLIPS, 32, 1) as pool:
        pool.read(make_episode(0, 5), 1, 0.0)
        assert [child for child in multiprocessing.active_children() if child.name == "reader"]
    assert not [child for child in multiprocessing.active_children() if child.name == "reader"]
