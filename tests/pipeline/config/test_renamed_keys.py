"""Old names of recipe keys stay valid in YAML files, on the command line, and in recipes that runs and models keep."""

import logging

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config import renamed_keys
from pipeline.config.cli import CommandParser, parse_recipe, recipe_parser
from pipeline.config.recipe import Recipe
from pipeline.config.renamed_keys import RENAMED_KEYS, rename_recipe_keys

OLD, NEW = "tokenizer.still_weight", "tokenizer.static_patch_weight"


@pytest.fixture(autouse=True)
def no_warning_yet():
    renamed_keys._warn_once.cache_clear()


def weight(*words: str) -> float:
    return parse_recipe(recipe_parser("test", ""), words)[0].tokenizer.static_patch_weight


def test_every_new_name_is_a_key_of_the_recipe_and_no_old_name_is():
    keys = {f"{section}.{key}" for section, values in Recipe().as_dict().items() for key in values}
    assert set(RENAMED_KEYS.values()) <= keys and not keys & RENAMED_KEYS.keys()


@pytest.mark.parametrize(
    "text", ["tokenizer: {still_weight: 0.5}", "tokenizer.still_weight: 0.5", '{"tokenizer": {"still_weight": 0.5}}']
)
def test_a_recipe_file_may_use_an_old_key_and_gets_one_warning_line(tmp_path, caplog, text):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with caplog.at_level(logging.WARNING):
        parser = recipe_parser("test", "")
        assert parse_recipe(parser, ["--config", str(recipe)])[0].tokenizer.static_patch_weight == 0.5
        assert parser.given("tokenizer") == {"static_patch_weight": 0.5}
    assert caplog.messages == [f"the recipe key {OLD} is now called {NEW}: rename it"]


@pytest.mark.parametrize(
    "words",
    [(f"--{OLD}", "0.5"), (f"--{OLD}=0.5",), ("--tokenizer", '{"still_weight": 0.5}'), (f"--{OLD}=0.5", f"--{NEW}", "5e-1")],
)
def test_the_command_line_may_use_an_old_key_and_gets_one_warning_line(caplog, words):
    with caplog.at_level(logging.WARNING):
        assert weight(*words) == 0.5
    assert caplog.messages == [f"the recipe key {OLD} is now called {NEW}: rename it"]


def test_the_command_line_overrides_the_recipe_file_under_either_name(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for in_file, on_line in ((OLD, NEW), (NEW, OLD)):
        recipe.write_text(f"tokenizer: {{{in_file.partition('.')[2]}: 0.5}}")
        assert weight("--config", str(recipe), f"--{on_line}", "0.25") == 0.25


@pytest.mark.parametrize("words", [(f"--{OLD}", "1", f"--{NEW}=2"), ("--config", "FILE")])
def test_different_values_under_both_names_are_an_error_that_names_both(tmp_path, capsys, words):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("tokenizer: {still_weight: 1, static_patch_weight: 2}")
    with pytest.raises(SystemExit) as ended:
        weight(*(str(recipe) if word == "FILE" else word for word in words))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"{NEW} is 2, but its old name" in said and f"{OLD} is 1: remove" in said


def test_a_kept_recipe_gets_the_new_names_and_keeps_everything_else():
    kept = {"data": {"mixture": None}, "tokenizer": {"revive_every": 3, "steps": 7}}
    assert rename_recipe_keys(kept) == {"data": {"mixture": None}, "tokenizer": {"dead_code_reset_every": 3, "steps": 7}}
    assert kept["tokenizer"] == {"revive_every": 3, "steps": 7}
    with pytest.raises(ConfigError, match="dead_code_reset_every is 4, but its old name"):
        rename_recipe_keys({"tokenizer": {"revive_every": 3, "dead_code_reset_every": 4}})


def test_a_wrong_value_of_an_old_option_is_blamed_on_the_command_line_and_not_on_the_recipe(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("tokenizer: {steps: 3}")
    with pytest.raises(SystemExit):
        CommandParser.parse_args(recipe_parser("test", ""), ["--config", str(recipe), f"--{OLD}", "heavy"])
    assert f"--{NEW}: 'heavy' is not a number" in capsys.readouterr().err
