"""Invalid input of a run is a clear error before any process group is formed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny_models
import torch.distributed as dist
from synthetic_tokens import LAYOUT, write_shard

from pipeline.common.errors import ConfigError, ConflictError, ProjectError, ShardError, SourceError
from pipeline.config.catalog import mixture
from pipeline.config.cli import parse_recipe, recipe_parser
from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import ClipsConfig, DataConfig, Recipe
from training.distributed import find_rank_info
from training.trainer.checkpoints.files import mark_complete
from training.trainer.checkpoints.states import RunProgress, tag
from training.trainer.run import RunOptions
from training.trainer.run_dir import RUN_NAME, lock_run_dir, run_fingerprint
from training.trainer.schedule import learning_rate
from training.trainer.setup import set_up_run

MODEL = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64)
TRAINING = TrainingConfig(global_batch=4, steps=3, precision="fp32")


def _prepare(tmp_path, recipe=None, **options):
    recipe = recipe or Recipe(model=MODEL, training=TRAINING)
    options = {"tokens": [str(tmp_path / "tokens")], "output": str(tmp_path / "run"), **options}
    return set_up_run(recipe, RunOptions(**options), find_rank_info({}))


def _refused(error: type[ProjectError], message: str, tmp_path, recipe=None, **options):
    with pytest.raises(error, match=message):
        _prepare(tmp_path, recipe, **options)
    assert not dist.is_initialized()
    assert not (tmp_path / "run" / RUN_NAME).exists()


def test_no_shards(tmp_path):
    _refused(ShardError, r"no finished token shards .* of split train under .*tokens", tmp_path)


def test_shards_of_two_tokenizers(tmp_path):
    write_shard(tmp_path / "tokens", "alpha")
    write_shard(tmp_path / "tokens", "beta", layout=dataclasses.replace(LAYOUT, tokenizer_sha256="cd" * 32))
    _refused(ShardError, "can't be used together: tokenizer_sha256", tmp_path)


def test_a_clip_longer_than_the_model(tmp_path):
    write_shard(tmp_path / "tokens")
    recipe = Recipe(model=dataclasses.replace(MODEL, positions=30), training=TRAINING)
    _refused(ConfigError, "31 tokens but model.positions is 30", tmp_path, recipe)


@pytest.mark.parametrize(("key", "value"), [("length", 5), ("context_length", 2)])
def test_a_recipe_for_other_clips_than_the_shards_hold(tmp_path, key, value):
    write_shard(tmp_path / "tokens")
    recipe = Recipe(clips=ClipsConfig(**{key: value}), model=MODEL, training=TRAINING)
    _refused(ConfigError, rf"clips.{key} is {value} but the token shards were made with", tmp_path, recipe)


def test_a_mixture_with_absent_data_sets(tmp_path):
    write_shard(tmp_path / "tokens", "fractal20220817_data")
    recipe = Recipe(data=DataConfig(mixture="select"), model=MODEL, training=TRAINING)
    _refused(ConfigError, "data sets have no token shards .* asu_table_top.* set data.missing to skip", tmp_path, recipe)
    _refused(
        ConfigError, "data.weights: 1 of 1 data sets", tmp_path, dataclasses.replace(recipe, data=DataConfig(weights={"x": 1}))
    )


def test_missing_data_sets_are_skipped_on_request_and_the_others_share_the_samples(tmp_path, caplog):
    for name in ("fractal20220817_data", "kuka"):
        write_shard(tmp_path / "tokens", name)
    recipe = Recipe(data=DataConfig(mixture="select", missing="skip"), model=MODEL, training=TRAINING)
    run = _prepare(tmp_path, recipe)
    published = mixture("select")
    assert set(run.order.datasets) == {"fractal20220817_data", "kuka"}
    ratio = run.order.weights["kuka"] / run.order.weights["fractal20220817_data"]
    assert float(ratio) == pytest.approx(published["kuka"] / published["fractal20220817_data"])
    assert "asu_table_top" in caplog.text and "Skipped" in caplog.text


def test_an_unknown_mixture(tmp_path):
    write_shard(tmp_path / "tokens")
    _refused(ConfigError, "'selct'.*did you mean 'select'", tmp_path, Recipe(data=DataConfig(mixture="selct"), model=MODEL))


def test_batch_sizes_that_do_not_divide(tmp_path):
    recipe = Recipe(model=MODEL, training=dataclasses.replace(TRAINING, micro_batch=3))
    _refused(ConfigError, "micro_batch 3 must divide", tmp_path, recipe)


@pytest.mark.parametrize(
    ("column", "message"), [("actions", "hold no actions"), ("rewards", "not all token shards hold rewards")]
)
def test_columns_that_the_shards_lack(tmp_path, column, message):
    write_shard(tmp_path / "tokens")
    recipe = Recipe(model=dataclasses.replace(MODEL, **{column: True}), training=TRAINING)
    _refused(ConfigError, message, tmp_path, recipe)


def test_a_tokenizer_that_did_not_make_the_shards(tmp_path):
    write_shard(tmp_path / "tokens")
    folder = tmp_path / "tokenizer"
    tiny_models.tokenizer().save_pretrained(str(folder))
    _refused(ConflictError, "is not the tokenizer that made the token shards", tmp_path, tokenizer=str(folder))
    _refused(SourceError, "no config.json", tmp_path, tokenizer=str(tmp_path / "tokens"))


def test_an_output_on_an_object_store(tmp_path):
    _refused(ConfigError, "must be a folder on a mounted disk", tmp_path, output="memory://run")


def test_a_folder_that_holds_a_run_already(tmp_path):
    write_shard(tmp_path / "tokens")
    _prepare(tmp_path).write_identity()
    with pytest.raises(ConflictError, match="already holds a run: remove --resume never"):
        _prepare(tmp_path, resume="never")
    assert _prepare(tmp_path).checkpoint is None


def test_a_folder_that_holds_a_run_of_another_recipe_or_other_shards(tmp_path):
    write_shard(tmp_path / "tokens")
    _prepare(tmp_path).write_identity()
    other = Recipe(model=MODEL, training=dataclasses.replace(TRAINING, learning_rate=0.5))
    with pytest.raises(ConflictError, match=r"different: training.learning_rate: 0.0001 -> 0.5"):
        _prepare(tmp_path, other)
    write_shard(tmp_path / "tokens", number=1, positions=3)
    with pytest.raises(ConflictError, match=r"different: datasets.alpha.positions: 10 -> 13"):
        _prepare(tmp_path)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", r"the token shards of beta have changed since the run started \(\w{16} in run.json, \w{16} now\)"),
        ("train_heldout", r"the held-out token shards of beta have changed"),
    ],
)
def test_other_shards_of_equal_size_are_refused_with_their_data_set(tmp_path, split, message):
    for name in ("alpha", "beta"):
        write_shard(tmp_path / "tokens", name)
        write_shard(tmp_path / "tokens", name, split="train_heldout")
    _trained_to(_prepare(tmp_path), 2)
    _prepare(tmp_path)
    write_shard(tmp_path / "tokens", "beta", split=split, seed=7)
    with pytest.raises(ConflictError, match=message + r".*Give --tokens the original shards"):
        _prepare(tmp_path)


def test_held_out_shards_may_be_added_but_not_removed(tmp_path):
    write_shard(tmp_path / "tokens")
    _trained_to(_prepare(tmp_path), 2)
    path = write_shard(tmp_path / "tokens", split="train_heldout")
    run = _prepare(tmp_path)
    run.write_identity()
    assert run.validation is not None
    for name in (path, path.with_suffix(".json")):
        name.unlink()
    with pytest.raises(ConflictError, match="the held-out token shards of alpha are gone"):
        _prepare(tmp_path)


def test_a_run_of_a_release_without_digests_resumes_and_adopts_them(tmp_path, caplog):
    for number, folder in ((1, "first"), (0, "second")):
        write_shard(tmp_path / folder, number=number)
    tokens = [str(tmp_path / folder) for folder in ("first", "second")]
    run = _prepare(tmp_path, tokens=tokens)
    old = {key: value for key, value in run.identity.items() if key not in ("shards", "held_out_shards")}
    _trained_to(dataclasses.replace(run, identity=old), 2)
    again = _prepare(tmp_path, tokens=tokens)
    assert again.checkpoint.progress.step == 2
    assert "run.json has no digests of its token shards: assuming that those of --tokens are the same" in caplog.text
    assert "shards of alpha lie in several folders and are now sorted by name" in caplog.text
    again.write_identity()
    caplog.clear()
    assert _prepare(tmp_path, tokens=tokens[::-1]).checkpoint.progress.step == 2
    assert "run.json" not in caplog.text and "several folders" not in caplog.text
    write_shard(tmp_path / "first", number=1, seed=3)
    with pytest.raises(ConflictError, match="the token shards of alpha have changed"):
        _prepare(tmp_path, tokens=tokens)


def test_samples_come_in_the_same_order_whatever_the_order_of_folders(tmp_path):
    for number, folder in ((1, "first"), (0, "second"), (2, "first")):
        write_shard(tmp_path / folder, number=number)
    tokens = [str(tmp_path / folder) for folder in ("first", "second")]
    one, other = (_prepare(tmp_path, tokens=folders) for folders in (tokens, tokens[::-1]))
    assert one.clips(0, 60) == other.clips(0, 60)
    assert one.identity == other.identity


@pytest.mark.parametrize("name", ["model/transformer", "tokenizer", "metrics.json", "metrics.jsonl", "checkpoints/latest.json"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    write_shard(tmp_path / "tokens")
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.mkdir() if "." not in name else path.write_text("{}")
    _refused(ConflictError, rf"holds {name.split('/tr')[0]} but no run.json, so it belongs to another command", tmp_path)


def test_settings_that_decide_no_result_may_change_at_a_resume(tmp_path):
    write_shard(tmp_path / "tokens")
    _prepare(tmp_path).write_identity()
    free = dataclasses.replace(TRAINING, steps=9, micro_batch=2, workers=3, log_every=2, checkpoint_every=5)
    assert _prepare(tmp_path, Recipe(model=MODEL, training=free)).plan.accumulation == 2


def _trained_to(run, step):
    """Writes a checkpoint into a run folder."""
    run.write_identity()
    folder = run.checkpoints / tag(step)
    folder.mkdir(parents=True)
    mark_complete(folder, RunProgress(step, 1, [0.0], 0, run_fingerprint(run.identity)))


def _weighed(weights, **training):
    training = {"steps": 1000, **training}
    return Recipe(data=DataConfig(weights=weights), model=MODEL, training=dataclasses.replace(TRAINING, **training))


def test_new_weights_at_a_resume_hold_from_the_checkpoints_step_on(tmp_path, caplog):
    for name in ("alpha", "beta", "gamma"):
        write_shard(tmp_path / "tokens", name, positions=40)
    before = _prepare(tmp_path, _weighed({"alpha": 0.5, "beta": 0.5}))
    _trained_to(before, 100)
    run = _prepare(tmp_path, _weighed({"alpha": 0.5, "gamma": 1.5}))
    assert "from step 101 on the mixture is: alpha 0.25, gamma 0.75" in caplog.text
    assert [before.order[n] for n in range(400)] == [run.order[n] for n in range(400)]
    later = [run.order[n][0] for n in range(400, 400 + 2048)]
    assert [later.count(name) for name in ("alpha", "beta", "gamma")] == [512, 0, 1536]
    run.write_identity()
    again = _prepare(tmp_path, _weighed({"alpha": 1, "gamma": 3}))
    assert [again.order[n] for n in range(900)] == [run.order[n] for n in range(900)]
    assert (tmp_path / "run" / "record.json").read_bytes() == json.dumps(again.history.as_json(), indent=1).encode()


def test_a_run_keeps_the_data_sets_that_it_drew_from(tmp_path):
    for name in ("alpha", "beta"):
        write_shard(tmp_path / "tokens", name)
    _trained_to(_prepare(tmp_path, _weighed({"alpha": 0.5, "beta": 0.5})), 10)
    shutil.rmtree(tmp_path / "tokens" / "beta")
    with pytest.raises(ConflictError, match="was trained on clips of beta, which are missing in --tokens"):
        _prepare(tmp_path, _weighed({"alpha": 1}))


def test_a_new_number_of_steps_at_a_resume_logs_the_change_of_the_learning_rate(tmp_path, caplog):
    write_shard(tmp_path / "tokens")
    recipe = Recipe(model=MODEL, training=dataclasses.replace(TRAINING, steps=100, warmup_steps=0, learning_rate=1.0))
    _trained_to(_prepare(tmp_path, recipe), 50)
    longer = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=200))
    run = _prepare(tmp_path, longer)
    changes = "training.steps changes from 100 to 200: the learning rate there changes from 0.5 to 0.8536"
    assert f"from step 51 on {changes}" in caplog.text
    # The rates of steps that may be repeated are those of the time.
    assert run.learning_rate(49) == learning_rate(recipe.training, 49)
    assert run.learning_rate(50) == learning_rate(longer.training, 50)


def test_a_checkpoint_of_another_recipe(tmp_path):
    write_shard(tmp_path / "tokens")
    run = _prepare(tmp_path)
    run.write_identity()
    other = dataclasses.replace(TRAINING, learning_rate=0.5)
    _trained_to(_prepare(tmp_path, Recipe(model=MODEL, training=other), output=str(tmp_path / "other")), 10)
    shutil.move(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(ConflictError, match=r"step-00000010 was written by a run of another recipe"):
        _prepare(tmp_path)


def test_checkpoints_without_a_run_file(tmp_path):
    write_shard(tmp_path / "tokens")
    run = _prepare(tmp_path)
    _trained_to(run, 10)
    (tmp_path / "run" / RUN_NAME).unlink()
    _refused(ConflictError, r"has checkpoints \(.*\) but no run.json", tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"keep_every": 1500, "checkpoint_every": 1000},
            "keep_every must be 0 or a multiple of training.checkpoint_every 1000",
        ),
        ({"nonfinite_limit": 0}, "nonfinite_limit must be at least 1"),
    ],
)
def test_invalid_settings(setting, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**setting)


def test_a_folder_that_another_run_is_using(tmp_path):
    write_shard(tmp_path / "tokens")
    run = _prepare(tmp_path)
    with lock_run_dir(run.folder), pytest.raises(ConflictError, match="another run is using"), lock_run_dir(run.folder):
        pass
    with lock_run_dir(run.folder):
        pass


def test_a_checkpoint_without_a_run_history(tmp_path):
    write_shard(tmp_path / "tokens")
    _trained_to(_prepare(tmp_path), 2)
    (tmp_path / "run" / "record.json").unlink()
    with pytest.raises(ConflictError, match=r"has step-00000002 but no record.json, .*: restore that file"):
        _prepare(tmp_path)


@pytest.mark.parametrize("content", ['{"mod', "", "[]", "{}", '{"model": {}, "training": {}, "layout": 3}', "[1]", "\xff"])
def test_a_damaged_run_file(tmp_path, content):
    write_shard(tmp_path / "tokens")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(ConflictError, match=r"run.json is damaged"):
        _prepare(tmp_path)


def test_held_out_clips_are_opened_only_for_data_sets_of_the_mixture(tmp_path):
    for name in ("alpha", "beta"):
        write_shard(tmp_path / "tokens", name)
        write_shard(tmp_path / "tokens", name, positions=2, split="train_heldout")
    recipe = Recipe(data=DataConfig(weights={"beta": 1.0}), model=MODEL, training=TRAINING)
    run = _prepare(tmp_path, recipe)
    assert run.store.datasets == ("beta",) and run.validation.datasets == ("beta",)
    assert run.validation.positions("beta") == 2


def test_a_sample_is_traced_back_to_its_episode_through_several_shards(tmp_path):
    for number in (0, 1, 2):
        write_shard(tmp_path / "tokens", number=number, positions=4, views=2)
    run = _prepare(tmp_path)
    rows = [run.order[sample][1] for sample in range(24)]
    expected = [(sample, "alpha", f"train-00000-{row % 8 // 2:06d}", row % 2) for sample, row in enumerate(rows)]
    clips = run.clips(0, 24)
    assert [(clip["sample"], clip["dataset"], clip["episode"], clip["view"]) for clip in clips] == expected
    with pytest.raises(IndexError, match="has 24 rows"):
        run.store.sources(("alpha",), np.array([0]), np.array([24]))


def test_the_resolved_recipe_is_read_back_unchanged(tmp_path):
    write_shard(tmp_path / "tokens")
    run = _prepare(tmp_path)
    run.write_identity()
    recipe, _ = parse_recipe(recipe_parser("test", ""), ["--config", str(tmp_path / "run" / "recipe.yaml")])
    assert json.dumps(recipe.as_dict()) == json.dumps(run.recipe.as_dict())
