"""Invalid command lines and recipes end with status 2 and plain words; packaged recipes are found by name."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.__main__ import build_parser as ingest_parser
from pipeline.__main__ import main as ingest
from pipeline.common.errors import ConfigError
from pipeline.config.cli import CommandParser, find_recipe, packaged_recipes, recipe_parser
from pipeline.config.cli_errors import Option, Options, describe_type, explain

PYTHON = re.compile(
    r"typing|class '|NoneType|Union|Literal|Parser key|namespace|Traceback|ParserError|<.*object|invalid \w+ value"
)


def refusal(parser: CommandParser, capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(list(words))
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert not PYTHON.search(text), text
    return text.splitlines()[0].split(": error: ", 1)[1]


def every_section() -> CommandParser:
    parser = recipe_parser("some-command", "Does something.")
    parser.add_argument("--count", type=int | None, default=None)
    parser.add_argument("--form", choices=["round", "square"])
    parser.add_argument("--names", type=str, nargs="+", required=True)
    return parser


OPTIONS = [action for action in every_section()._actions if action.option_strings and action.nargs != 0]


@pytest.mark.parametrize("action", OPTIONS, ids=lambda action: action.dest)
@pytest.mark.parametrize("value", ["{1: [", "[a, {b: c}]", "nan-nan"])
def test_no_message_about_an_invalid_value_uses_python_terms(action, value, capsys):
    try:
        every_section().parse_args(["--names", "a", f"{action.option_strings[0]}={value}"])
        return  # any text is valid
    except SystemExit as ended:
        assert ended.code == 2
        said = capsys.readouterr().err
    except ConfigError as error:
        said = str(error)
    assert "--" in said
    assert not PYTHON.search(said), said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.steps", "many"], "--training.steps: 'many' is not a whole number"),
        (["--training.zero_stage", "9"], "--training.zero_stage: '9' is not one of 0, 1, 2, 3"),
        (["--model.actions", "perhaps"], "--model.actions: 'perhaps' is not true or false"),
        (["--data.weights", "3"], "--data.weights: '3' is not a mapping of names to numbers, such as {name: value}"),
        (["--count", "x"], "--count: 'x' is not a whole number"),
        (["--form", "oval"], "--form: 'oval' is not one of round, square"),
        (["--names"], "--names needs one value or more after it"),
        ([], "--names is missing"),
        (["--names", "a", "--versoin"], "there is no option --versoin (did you mean --version?)"),
        (["--names", "a", "--overwrite"], "there is no option --overwrite"),
        (["--names", "a", "--training.step", "3"], "there is no option --training.step (did you mean --training.steps?)"),
    ],
)
def test_an_invalid_command_line_names_option_value_and_what_is_valid(words, said, capsys):
    assert refusal(every_section(), capsys, *words) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training:\n  steps: many\n", "training.steps: 'many' is not a whole number"),
        ("training:\n  step: 3\n", "there is no key training.step (did you mean training.steps?)"),
        ("nonsense: 3\n", "there is no key nonsense"),
        ("training: [1\n", "is not valid YAML: while parsing a flow sequence at line 1, column 11 did not find expected"),
    ],
)
def test_an_error_in_a_recipe_names_file_and_key(text, said, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    found = refusal(every_section(), capsys, "--config", str(recipe), "--names", "a")
    assert found.startswith(str(recipe)) and said in found


def test_an_invalid_value_on_the_command_line_is_not_blamed_on_the_recipe(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training:\n  steps: 3\n")
    found = refusal(every_section(), capsys, "--config", str(recipe), "--training.steps", "many")
    assert found == "--training.steps: 'many' is not a whole number"


@given(st.text(max_size=40))
@settings(max_examples=300)
def test_any_message_becomes_one_line(message):
    options = Options([Option("--count", "count", int)])
    for text in (message, f'Parser key "count": {message}', f"unrecognized arguments: {message}"):
        assert "\n" not in explain(text, options)


def test_types_are_described_in_plain_words():
    assert describe_type(int | None) == "a whole number"
    assert describe_type(list[int]) == "a list of whole numbers in square brackets"
    assert describe_type(tuple[float, float]) == "a list of numbers in square brackets"


def test_a_bare_name_finds_the_packaged_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in packaged_recipes():
        assert find_recipe(name).endswith(f"/{name}.yaml")
    parsed = every_section().parse_args(["--config", "demo", "--names", "a"])
    assert parsed.training.global_batch == 16


def test_a_users_file_wins_over_a_packaged_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("training:\n  global_batch: 24\n")
    assert every_section().parse_args(["--config", "demo", "--names", "a"]).training.global_batch == 24


@pytest.mark.parametrize("name", ["nothing", "datasets", "../configs/nothing.yaml"])
def test_a_missing_recipe_is_an_error_that_lists_the_packaged_ones(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        ingest(["--config", name, "--dataset", "a", "--source", "b", "--output", "c"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"--config {name}: there is no such file" in said and "oxe-64-act-free-small" in said


def test_a_value_out_of_range_ends_with_status_2(capsys):
    assert ingest(["--dataset", "a", "--source", "b", "--output", "c", "--max_episodes", "0"]) == 2
    assert capsys.readouterr().err == "error: --max_episodes must be at least 1, not 0\n"


def test_a_command_prints_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        ingest_parser().parse_args(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"ivideogpt-ingest \S.*\n", capsys.readouterr().out)


@pytest.mark.parametrize("parser", [recipe_parser("some-command", "Does something."), ingest_parser()], ids=lambda p: p.prog)
def test_every_option_has_one_line_of_help(parser):
    described = [action for action in parser._actions if action.option_strings]
    assert len(described) > 100
    for action in described:
        assert action.help and "\n" not in action.help and len(action.help) <= 120, action.option_strings


def test_help_names_options_as_they_are_typed_and_no_python_types(capsys):
    from pipeline.config.cli import add_section_folder

    parser = every_section()
    add_section_folder(parser, "model", "Folder of a model.")
    shown = parser.format_help()
    assert "--model DIR" in shown and "--model_dir" not in shown
    assert not re.search(r"\(type: |<class|NoneType", shown)
