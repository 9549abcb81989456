"""An estimate matches what tokenizing makes and how often training reads it."""

import dataclasses
import json

import pytest
import torch
from synthetic_episodes import TINY, tiny_model, write_shards

from pipeline.common.errors import ConfigError
from pipeline.config.model import TokenizerConfig, TrainingConfig
from pipeline.config.recipe import ClipsConfig, DataConfig, Recipe
from pipeline.episodes.index import read_manifests, write_index
from tokenize_offline.clips.sampling import resolve_clips
from tokenize_offline.estimate import estimate, recipe_tokens_per_clip, sample_shares
from tokenize_offline.inspect import main
from tokenize_offline.tasks import TokenizeJob, find_shards, token_layout
from tokenize_offline.worker.encoder import BatchEncoder
from tokenize_offline.worker.worker import run_worker

SHAPE = {name: getattr(TINY, name) for name in dataclasses.asdict(TINY)}


def recipe(**data):
    return Recipe(
        data=DataConfig(resolution=32, **data),
        clips=ClipsConfig(length=5, per_episode=3, views=2, held_out=0.2),
        tokenizer=TokenizerConfig(**SHAPE, segment_length=3),
        training=TrainingConfig(steps=100, global_batch=8),
    )


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("episodes")
    for dataset, shards in (("one", 2), ("two", 1)):
        write_shards(folder, shards, 5, dataset)
        records = [
            dataclasses.replace(record, statistics={"filtered": 0, "actions": {}})
            for record in read_manifests(str(folder / dataset))
        ]
        write_index(str(folder / dataset), dataset, records, [])
    return folder


def test_an_estimate_equals_what_tokenizing_makes(episodes, tmp_path):
    made = recipe()
    estimated = estimate(str(episodes), made, clips_per_second=10.0)
    clips = resolve_clips(made.clips, 2)
    layout = token_layout(TINY, clips, "fp32", "ab" * 32)
    assert recipe_tokens_per_clip(made) == layout.sequence_length
    engine = BatchEncoder(tiny_model(), torch.device("cpu"), "fp32", 8)
    job = TokenizeJob(clips, layout, str(tmp_path))
    report = run_worker(find_shards([str(episodes)]), job, engine, readers=1)
    assert sum(line["rows"] for line in estimated) == report.rows and report.held_out_rows
    assert sum(line["clips"] for line in estimated) * 2 == report.rows - report.held_out_rows
    shards = list(tmp_path.rglob("*.arrow"))
    on_disk = sum(path.stat().st_size for path in shards)
    assert 0 <= on_disk - sum(line["bytes"] for line in estimated) < 4096 * len(shards)
    for line in estimated:
        assert line["gpu_hours"] == round(line["rows"] / 36000, 4)
        assert line["ids_per_epoch"] == line["clips"] * layout.sequence_length


def test_epochs_follow_the_mixture(episodes):
    for weights, expected in (({}, None), ({"one": 3.0, "two": 1.0}, {"one": 0.75, "two": 0.25}), ({"two": 1.0}, None)):
        lines = {line["dataset"]: line for line in estimate(str(episodes), recipe(weights=weights), None)}
        assert sum(line["share_of_samples"] for line in lines.values()) == pytest.approx(1, abs=1e-5)
        for name, line in lines.items():
            assert line["epochs"] == pytest.approx(800 * line["share_of_samples"] / line["clips"], abs=2e-3)
            assert expected is None or line["share_of_samples"] == expected[name]
    assert lines["one"]["epochs"] == 0
    assert lines["one"]["gpu_hours"] is None
    with pytest.raises(ConfigError, match="none of the data sets"):
        sample_shares(recipe(weights={"three": 1.0}), {"one": 1})


def test_the_command_prints_a_line_per_data_set(episodes, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("clips: {length: 5}\n")
    assert main([str(episodes), "--plan", str(tmp_path / "recipe.yaml")]) == 0
    assert [json.loads(line)["dataset"] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]
    (tmp_path / "run.json").write_text('{"rows_per_second": 8.0, "processes": 4}')
    assert main([str(episodes), "--plan", str(tmp_path / "recipe.yaml"), "--rate", str(tmp_path / "run.json")]) == 0
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        assert line["gpu_hours"] == round(line["rows"] / 2 / 3600, 4)
    assert main([str(tmp_path), "--plan", str(tmp_path / "recipe.yaml")]) == 2
    assert "no episode shards there" in capsys.readouterr().err


def test_missing_data_sets_of_the_mixture_keep_their_share_and_give_a_warning(episodes, caplog):
    weights = {"one": 1.0, "absent": 3.0}
    rows = {row["dataset"]: row for row in estimate(str(episodes), recipe(weights=weights), None)}
    assert rows["absent"]["missing"] and rows["absent"]["share_of_samples"] == 0.75 and rows["absent"]["clips"] is None
    assert rows["one"]["share_of_samples"] == 0.25 and rows["two"]["share_of_samples"] == 0
    alone = {row["dataset"]: row for row in estimate(str(episodes), recipe(weights=weights, missing="skip"), None)}
    assert alone["one"]["share_of_samples"] == 1 and "absent" not in alone
    assert alone["one"]["epochs"] == pytest.approx(4 * rows["one"]["epochs"], rel=1e-3)
    assert "75.0 % of its samples" in caplog.text and "not used in training: two" in caplog.text
