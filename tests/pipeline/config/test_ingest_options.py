"""Ingest options in a YAML file mean the same as on the command line."""

import pytest
from video_data import write_video

from pipeline.__main__ import build_parser, main
from pipeline.config.cli import parse_recipe


def options(tmp_path, text: str, *given: str):
    (tmp_path / "recipe.yaml").write_text(f"source: somewhere\noutput: elsewhere\n{text}\n")
    return parse_recipe(build_parser(), ["--config", str(tmp_path / "recipe.yaml"), *given])[1]


@pytest.mark.parametrize(("text", "expected"), [("bridge", ["bridge"]), ("[bridge]", ["bridge"]), ("[a, b]", ["a", "b"])])
def test_a_single_value_works_as_a_list_of_one(tmp_path, text, expected):
    assert options(tmp_path, f"dataset: {text}").dataset == expected
    assert options(tmp_path, f"dataset: x\nsplits: {text}").splits == expected
    assert options(tmp_path, f"dataset: {text}", "--dataset", "c", "d").dataset == ["c", "d"]


@pytest.mark.parametrize("text", ["3", "[bridge, 3]", "{name: bridge}"])
def test_a_value_of_the_wrong_type_is_named_with_its_key(tmp_path, capsys, text):
    with pytest.raises(SystemExit):
        options(tmp_path, f"dataset: {text}")
    said = capsys.readouterr().err
    assert "recipe.yaml: dataset: " in said and "is not text" in said


def test_help_lists_only_the_keys_of_ingest_but_all_recipe_keys_are_accepted(tmp_path, capsys):
    shown = build_parser().format_help()
    assert shown.startswith("usage: ivideogpt-ingest --dataset NAME")
    assert "--data.frames" in shown and "--training" not in shown and "--tokenizer" not in shown
    recipe, _ = parse_recipe(
        build_parser(), ["--dataset", "a", "--source", "b", "--output", "c", "--training.steps", "7", "--data.frames", "png"]
    )
    assert (recipe.training.steps, recipe.data.frames) == (7, "png")
    with pytest.raises(SystemExit):
        parse_recipe(build_parser(), ["--dataset", "a", "--source", "b", "--output", "c", "--print_config"])
    assert "global_batch: 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--classes", "all"], "--classes has no effect on video"),
        (["--camera", "wrist"], "--camera has no effect on video"),
        (["--episode_frames", "5"], None),
    ],
)
def test_an_option_without_effect_on_the_kind_of_source_is_refused(tmp_path, capsys, given, said):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", count=6)
    words = [
        "--dataset",
        "mine",
        "--source",
        str(tmp_path / "videos"),
        "--output",
        str(tmp_path / "out"),
        "--rate",
        "10",
        *given,
    ]
    assert main(words) == (0 if said is None else 2)
    if said is not None:
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
