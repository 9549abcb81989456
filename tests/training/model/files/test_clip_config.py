"""A model's recipe decides how its clips are cut, unless the user does."""

import json

import fsspec
import pytest
import tiny_models
import waves

from pipeline.common.errors import ConfigError, SourceError
from pipeline.config.recipe import ClipsConfig, Recipe
from training import predict
from training.cli.evaluate import build_parser
from training.evaluation.plan import plan
from training.model.files.clip_config import clips_as_trained
from training.model.files.locate import RECIPE, locate_model

TRAINED = ClipsConfig(stride="1", length=5, goal=True, held_out=0.2, per_episode=9, context_length=1)


def _written(folder, clips=TRAINED):
    (folder / RECIPE).write_text(Recipe(clips=clips).as_yaml())
    return folder


def test_keys_that_the_user_leaves_open_are_as_in_training(tmp_path):
    taken = clips_as_trained(_written(tmp_path), ClipsConfig(), {})
    assert taken == ClipsConfig(stride="1", length=5, goal=True, held_out=0.2)


def test_keys_that_the_user_sets_stay_even_if_they_equal_the_default(tmp_path):
    given = {"stride": "reference", "goal": False}
    taken = clips_as_trained(_written(tmp_path), ClipsConfig(), given)
    assert (taken.stride, taken.goal, taken.length) == ("reference", False, 5)


def test_a_published_model_without_a_recipe_keeps_the_defaults(tmp_path):
    assert clips_as_trained(tmp_path, ClipsConfig(), {}) == ClipsConfig()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("clips: {stride: 3}", SourceError, "3 for clips.stride"),
        ("clips: {length: true}", SourceError, "True for clips.length"),
        ("clips: {stride: never}", ConfigError, "clips.stride"),
        ("clips: 3", SourceError, "not a recipe"),
        ("[", SourceError, "not a recipe"),
        ("model: {}", SourceError, "not a recipe"),
        ("#" * (1 << 20) + "\nclips: {}", SourceError, "larger than a recipe"),
    ],
)
def test_an_invalid_recipe_is_refused_by_name(tmp_path, text, error, message):
    (tmp_path / RECIPE).write_text(text)
    with pytest.raises(error, match=message):
        clips_as_trained(tmp_path, ClipsConfig(), {})


def test_the_recipe_of_a_model_on_an_object_store_is_fetched(tmp_path):
    model = tiny_models.save_model(tmp_path / "model", tiny_models.world_model())
    _written(model)
    fsspec.filesystem("memory").put(str(model), "/with-recipe", recursive=True)
    folder = locate_model("memory://with-recipe")
    assert clips_as_trained(folder, ClipsConfig(), {}).length == 5


def test_predict_uses_the_models_stride_and_length_unless_the_command_line_sets_them(tmp_path, capsys):
    model = tiny_models.save_model(tmp_path / "model", tiny_models.world_model())
    _written(model, ClipsConfig(stride="2", length=5))
    shard = waves.write_shard(tmp_path / "train-000000.tar", [waves.episode(count=20)])
    arguments = ["--model", str(model), "--input", str(shard), "--output", str(tmp_path / "out")]
    for more, indices in (([], [0, 2, 4, 6, 8]), (["--clips.stride", "3", "--steps", "2"], [0, 3, 6, 9])):
        assert predict.main([*arguments, *more]) == 0
        assert json.loads((tmp_path / "out" / "metrics.json").read_text())["frame_indices"] == indices
    capsys.readouterr()


def test_a_protocol_takes_precedence_over_the_models_clips():
    parser = build_parser()
    options = parser.parse_args(["--model_dir", "m", "--shards", "s", "--output", "o", "--protocol", "bair"])
    model = tiny_models.world_model()
    with pytest.raises(ConfigError, match="defined for 1 context frames"):  # and not that the length is the user's
        plan(model, ClipsConfig(stride="2", length=5), options)
