"""A worker writes the ids of the planned clips to token shards, and reports bad input."""

import dataclasses

import fsspec
import numpy as np
import pytest
import torch
from synthetic_episodes import TINY, broken, make_episode, tiny_model, write_shard, write_shards

from pipeline import open_shard
from pipeline.common.errors import ConfigError, ConflictError
from pipeline.common.manifests import read_manifest, sha256_of
from pipeline.config.recipe import ClipsConfig, QualityConfig
from tokenize_offline.clips.decode import read_clips
from tokenize_offline.clips.sampling import is_held_out, resolve_clips
from tokenize_offline.shards.token_shards import fixed_size_column, open_token_shard
from tokenize_offline.tasks import TokenizeJob, find_shards, fingerprint_of_keys, token_layout
from tokenize_offline.worker.encoder import BatchEncoder
from tokenize_offline.worker.prefetch import ReserveBytes
from tokenize_offline.worker.worker import EndOfShard, EpisodeWork, episodes_of, run_worker

CLIPS = resolve_clips(ClipsConfig(length=4, per_episode=2, views=2, held_out=0.3), 2)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def encoder(model):
    return BatchEncoder(model, torch.device("cpu"), "fp32", 3)


def run(encoder, shards, output, clips=CLIPS, **options):
    job = TokenizeJob(clips, token_layout(TINY, clips, "fp32", "ab" * 32), str(output), **options)
    return run_worker([task for task in find_shards([str(shards)]) if not job.is_done(task)], job, encoder, readers=2)


def ids_of(path):
    info, table = open_token_shard(path)
    return np.concatenate(list(fixed_size_column(table, "ids", info.layout.sequence_length)))


def test_rows_are_the_ids_of_the_planned_clips_in_order(tmp_path, encoder, model):
    write_shards(tmp_path / "eps", shards=2, episodes=5)
    report = run(encoder, tmp_path / "eps", tmp_path / "out")
    assert report.shards == 2 and not report.failures
    total = {True: 0, False: 0}
    for number in range(2):
        for held_out in (False, True):
            name = f"train_heldout-{number:06d}" if held_out else f"train-{number:06d}"
            expected, keys, actions = [], [], []
            for episode in open_shard(tmp_path / "eps" / "made_up" / f"train-{number:06d}.tar"):
                if is_held_out("made_up", episode.key, 0.3) == held_out:
                    read = read_clips(episode, CLIPS, 2, 0.3, 32)
                    keys += [episode.key] * len(read.plans)
                    expected += [read.pixels[index] for index in read.clip_index]
                    actions.append(read.action)
            path = tmp_path / "out" / "made_up" / f"{name}.arrow"
            if not keys:
                assert held_out and not path.exists()
                continue
            info, table = open_token_shard(path)
            record = read_manifest(str(path.with_suffix(".json")))
            assert np.array_equal(ids_of(path), model.tokenize(torch.stack(expected)).numpy())
            assert table.column("episode").to_pylist() == keys
            assert table.column("view").to_pylist() == ([0] if held_out else [0, 1]) * (len(keys) // info.views)
            action = np.concatenate(list(fixed_size_column(table, "action", 4 * 3)))
            assert np.array_equal(action.reshape(-1, 4, 3), np.concatenate(actions))
            assert (record.samples, record.bytes, record.sha256) == (len(keys), path.stat().st_size, sha256_of(path))
            total[held_out] += len(keys)
    assert total[True] and (report.rows, report.held_out_rows) == (sum(total.values()), total[True])


def test_a_second_run_does_nothing_and_overwrite_gives_the_bytes_of_a_fresh_run(tmp_path, encoder):
    write_shards(tmp_path / "eps", shards=1, episodes=4)
    run(encoder, tmp_path / "eps", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    assert run(encoder, tmp_path / "eps", tmp_path / "out").shards == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == before
    without = dataclasses.replace(CLIPS, held_out=0.0)
    run(encoder, tmp_path / "eps", tmp_path / "out", without, overwrite=True)
    run(encoder, tmp_path / "eps", tmp_path / "fresh", without)
    again, fresh = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "made_up").iterdir()} for name in ("out", "fresh")
    )
    assert again == fresh


def test_an_unusable_episode_is_left_out_and_listed(tmp_path, encoder):
    episodes = [make_episode(index, 8) for index in range(3)]
    episodes[1] = broken(episodes[1], frame=2)
    write_shard(tmp_path / "eps", 0, episodes)
    clips = dataclasses.replace(CLIPS, held_out=0.0, stride="1", per_episode=4)
    report = run(encoder, tmp_path / "eps", tmp_path / "out", clips)
    (left_out,) = read_manifest(str(tmp_path / "out" / "made_up" / "train-000000.json")).left_out
    assert (left_out.source_file, left_out.source_record) == ("made_up.tfrecord", 1)
    assert "damaged" in left_out.reason
    assert (report.left_out, report.rows) == (1, 2 * 4 * 2)


def test_a_damaged_shard_is_reported_and_the_others_are_done(tmp_path, encoder):
    write_shards(tmp_path / "eps", shards=3, episodes=2)
    path = tmp_path / "eps" / "made_up" / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (tmp_path / "eps" / "made_up" / "train-000002.tar").write_bytes(b"")
    report = run(encoder, tmp_path / "eps", tmp_path / "out")
    assert report.shards == 1
    assert sorted(message.split()[0].rsplit("/")[-1] for message in report.failures) == ["train-000001.tar", "train-000002.tar"]
    assert not (tmp_path / "out" / "made_up" / "train-000001.json").exists()


def test_a_shard_with_only_held_out_or_bad_episodes_is_done_without_rows(tmp_path, encoder):
    write_shard(tmp_path / "eps", 0, [make_episode(0, 6), make_episode(1, 6)])
    write_shard(tmp_path / "eps", 1, [broken(make_episode(2, 6))])
    clips = dataclasses.replace(CLIPS, held_out=0.999999)
    run(encoder, tmp_path / "eps", tmp_path / "out", clips)
    info, table = open_token_shard(tmp_path / "out" / "made_up" / "train-000000.arrow")
    assert (table.num_rows, info.action_dim, info.has_reward) == (0, 3, True)
    _, table = open_token_shard(tmp_path / "out" / "made_up" / "train-000001.arrow")
    assert table.num_rows == 0
    assert run(encoder, tmp_path / "eps", tmp_path / "out", clips).shards == 0


def test_episodes_without_actions_give_rows_without_actions_and_mixed_shards_fail(tmp_path, encoder):
    plain = [make_episode(index, 6, actions=0, rewards=False) for index in range(2)]
    write_shard(tmp_path / "plain", 0, plain)
    run(encoder, tmp_path / "plain", tmp_path / "out")
    info, table = open_token_shard(tmp_path / "out" / "made_up" / "train-000000.arrow")
    assert (info.action_dim, info.has_reward, table.column_names) == (0, False, ["ids", "episode", "start", "stride", "view"])
    write_shard(tmp_path / "mixed", 0, [plain[0], make_episode(1, 6)])
    (failure,) = run(encoder, tmp_path / "mixed", tmp_path / "out2").failures
    assert "none in train-00000-000000, 3 in train-00000-000001" in failure


def test_a_stride_in_seconds_without_a_rate_stops_the_run(tmp_path, encoder):
    write_shard(tmp_path / "eps", 0, [dataclasses.replace(make_episode(0, 6), rate=None)])
    with pytest.raises(ConfigError, match="made_up has none"):
        run(encoder, tmp_path / "eps", tmp_path / "out", dataclasses.replace(CLIPS, stride="0.5s"))


def test_shards_can_be_read_from_and_written_to_an_object_store(tmp_path, encoder):
    write_shards(tmp_path / "eps", shards=1, episodes=3)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "eps" / "made_up") + "/", "/eps/made_up/", recursive=True)
    run(encoder, tmp_path / "eps", tmp_path / "out")
    assert run(encoder, "memory://eps", "memory://tokens").shards == 1
    for path in (tmp_path / "out" / "made_up").iterdir():
        assert memory.cat(f"/tokens/made_up/{path.name}") == path.read_bytes()


def test_a_shard_that_another_run_has_made_meanwhile_is_not_changed(tmp_path, encoder):
    write_shards(tmp_path / "eps", shards=3, episodes=2)
    job = TokenizeJob(CLIPS, token_layout(TINY, CLIPS, "fp32", "ab" * 32), str(tmp_path / "out"))
    tasks = find_shards([str(tmp_path / "eps")])
    path = tmp_path / "out" / "made_up" / job.shard(tasks[1], held_out=False)
    stamps = []

    def with_another_run():
        yield tasks[0]
        run_worker(tasks[1:2], job, encoder, readers=1)
        stamps.append(path.stat().st_mtime_ns)
        yield from tasks[1:]

    steps = []
    report = run_worker(with_another_run(), job, encoder, readers=1, on_progress=steps.append)
    # The progress line and the summary agree.
    assert sum(part.waited for part in steps) == pytest.approx(report.waited)
    assert sum(part.passed for part in steps) == pytest.approx(report.passed)
    assert (report.shards, report.skipped_existing, report.failures) == (2, 1, [])
    assert [path.stat().st_mtime_ns] == stamps
    # Skipped shards count as progress.
    assert (sum(step.shards for step in steps), sum(step.rows for step in steps) > report.rows) == (3, True)


def test_another_run_with_another_recipe_on_the_same_output_is_a_conflict(tmp_path, encoder):
    write_shards(tmp_path / "eps", shards=2, episodes=2)
    tasks = find_shards([str(tmp_path / "eps")])
    job, other = (
        TokenizeJob(clips, token_layout(TINY, clips, "fp32", "ab" * 32), str(tmp_path / "out"))
        for clips in (CLIPS, dataclasses.replace(CLIPS, seed=5))
    )

    def with_another_run():
        yield tasks[0]
        run_worker(tasks[1:], other, encoder, readers=1)
        yield tasks[1]

    with pytest.raises(ConflictError, match="seed"):
        run_worker(with_another_run(), job, encoder, readers=1)


def test_episodes_are_excluded_by_number_and_a_wrong_index_is_an_error(tmp_path, encoder):
    write_shards(tmp_path / "eps", shards=1, episodes=4)
    (task,) = find_shards([str(tmp_path / "eps")])
    keys = [episode.key for episode in open_shard(task.source)]
    clips = dataclasses.replace(CLIPS, held_out=0.0)
    layout = token_layout(TINY, clips, "fp32", "ab" * 32)
    chosen = dataclasses.replace(task, excluded=(1, 3), excluded_keys=fingerprint_of_keys([keys[3], keys[1]]))
    limits = QualityConfig(max_static=0.9)
    job = TokenizeJob(clips, layout, str(tmp_path / "out"), quality=limits)
    assert run_worker([chosen], job, encoder, readers=1).shards == 1
    _, table = open_token_shard(tmp_path / "out" / "made_up" / "train-000000.arrow")
    assert set(table.column("episode").to_pylist()) == {keys[0], keys[2]}
    job = dataclasses.replace(job, output=str(tmp_path / "out2"))
    (failure,) = run_worker([dataclasses.replace(chosen, excluded=(1, 2))], job, encoder, readers=1).failures
    assert "quality limits rely, disagree about its episodes" in failure and not list((tmp_path / "out2").rglob("*.arrow"))


@pytest.mark.parametrize("name", ["action", "reward"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_episode_with_values_that_are_not_finite_is_left_out_with_the_step(tmp_path, encoder, name, value):
    episodes = [make_episode(index, 8) for index in range(3)]
    getattr(episodes[1], name)[5:7] = value
    write_shard(tmp_path / "eps", 0, episodes)
    report = run(encoder, tmp_path / "eps", tmp_path / "out", dataclasses.replace(CLIPS, held_out=0.0))
    (left_out,) = read_manifest(str(tmp_path / "out" / "made_up" / "train-000000.json")).left_out
    assert left_out.reason == f"{name} is NaN or infinite at 2 of 8 steps, the first is step 5"
    assert (report.left_out, report.rows) == (1, 2 * 2 * 2)


def test_shards_with_and_without_rewards_in_one_data_set_are_an_error_that_names_both(tmp_path, encoder):
    write_shard(tmp_path / "eps", 0, [make_episode(0, 6)])
    run(encoder, tmp_path / "eps", tmp_path / "out")
    write_shard(tmp_path / "eps", 1, [make_episode(1, 6, rewards=False)])
    (failure,) = run(encoder, tmp_path / "eps", tmp_path / "out").failures
    assert "eps/made_up/train-000001.tar and " in failure and "/out/made_up/train" in failure
    assert "has_reward is False and True: ingest the episodes of each kind separately" in failure
    # The same within one run, whichever shard comes first.
    (failure,) = run(encoder, tmp_path / "eps", tmp_path / "out2").failures
    assert "can't be in one data set, because has_reward is" in failure


def test_memory_for_an_episode_is_reserved_before_it_is_read(tmp_path):
    write_shard(tmp_path / "eps", 0, [make_episode(index, 5 + 20 * index) for index in range(3)])
    (task,) = find_shards([str(tmp_path / "eps")])
    job = TokenizeJob(CLIPS, token_layout(TINY, CLIPS, "fp32", "ab" * 32), str(tmp_path / "out"))
    steps = list(episodes_of([dataclasses.replace(task, excluded=(1,), excluded_keys="")], job))
    assert [type(step) for step in steps] == [
        ReserveBytes,
        EpisodeWork,
        ReserveBytes,
        ReserveBytes,
        EpisodeWork,
        ReserveBytes,
        EndOfShard,
    ]
    pixels = 2 * 2 * 4 * 3 * 32 * 32 * 4
    sizes = [entry["size"] for entry in read_manifest(task.source.replace(".tar", ".json")).entries]
    assert [step.bytes for step in steps if isinstance(step, ReserveBytes)] == [*(2 * size + pixels for size in sizes), 0]
