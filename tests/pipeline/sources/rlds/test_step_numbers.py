"""Numbers that a model can't use never enter a shard, from any source."""

import dataclasses

import numpy as np
import pytest
from rlds_data import NAME, episode, picture, plain_episode, write_set

from pipeline.common.errors import BadEpisodeError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.episode import MAX_NUMBER
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import run_unit
from pipeline.sources.base import BadEpisode, SourceShard, make_episode
from pipeline.sources.npz.source import NpzSource
from pipeline.sources.rlds.source import RldsSource
from tokenize_offline.clips.decode import _at_frames

ENTRY = DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0, base_step=10.0)
KEPT = [(frame, (48, 64)) for frame in plain_episode(0, frames=3).frames]
UNFIT = {"nan": np.nan, "infinity": -np.inf, "no bfloat16": np.finfo(np.float32).max}


@pytest.mark.parametrize("value", UNFIT.values(), ids=list(UNFIT))
@pytest.mark.parametrize("name", ["action", "reward"])
def test_an_invalid_action_or_reward_is_a_bad_episode_with_the_reason(name, value):
    array = np.zeros((3, 2) if name == "action" else 3, np.float32)
    array[1] = value
    with pytest.raises(BadEpisodeError, match=rf"^an? {name} is (not finite|3\.403e\+38, the limit is 3\.39e\+38)"):
        make_episode(ENTRY, SourceShard("train", 0, "a"), 0, KEPT, **{name: array})
    with pytest.raises(BadEpisodeError, match=f"{name} is NaN or infinite"):
        _at_frames(name, array, np.arange(3), 3)


@pytest.mark.parametrize("value", UNFIT.values(), ids=list(UNFIT))
def test_an_episode_with_an_invalid_state_is_kept_without_its_states_and_counted(value):
    state = np.full((3, 2), value, np.float32)
    made = make_episode(ENTRY, SourceShard("train", 0, "a"), 0, KEPT, state=state, ignored={"known": 2})
    assert made.state is None and made.ignored.pop("known") == 2 and list(made.ignored.values()) == [1]


def test_the_largest_bfloat16_number_is_valid():
    action = np.full((3, 1), -MAX_NUMBER, np.float32)
    assert make_episode(ENTRY, SourceShard("train", 0, "a"), 0, KEPT, action=action).action[0, 0] == np.float32(-MAX_NUMBER)


def test_every_kind_of_source_leaves_invalid_numbers_out_and_lists_them(tmp_path):
    rewards = [np.nan, 0.0]
    several = [episode(n, frames=3, reward=lambda t, n=n: np.float32(rewards[n])) for n in range(2)]
    rlds = RldsSource(str(write_set(tmp_path / "rlds", several, per_shard=2)), ENTRY, FrameForm("png", 24))
    (tmp_path / "npz").mkdir()
    pixels = np.stack([picture(t) for t in range(3)])
    np.savez(tmp_path / "npz/train_eps_00000000.npz", image=pixels, action=np.full((3, 2), 1e300))
    np.savez(tmp_path / "npz/train_eps_00000001.npz", image=pixels, action=np.ones((3, 2)))
    for source in (rlds, NpzSource(str(tmp_path / "npz"), ENTRY, FrameForm("png", 24))):
        out = str(tmp_path / "out" / source.kind)
        for unit in make_plan(source, ["train"], None, 1 << 20):
            run_unit(unit, source, out)
        records = list(index.read_manifests(out))
        assert sum(record.samples for record in records) == 1
        (lost,) = [item for record in records for item in record.left_out]
        assert lost.reason.endswith("is not finite")


def test_npz_episodes_are_read_without_actions_on_request(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.stack([picture(t) for t in range(3)]), action=np.array("no numbers"))
    for actions in (True, False):
        source = NpzSource(str(tmp_path), dataclasses.replace(ENTRY, actions=actions), FrameForm("png", 24))
        ((_, item),) = source.read(source.plan()[0])
        assert isinstance(item, BadEpisode) == actions
        assert ("actions" in source.inputs()) != actions
    assert item.action is None and item.action_meaning == ""
