"""Which episodes are evaluated by default and on request, and that all reports say so."""

import logging
import shutil
from pathlib import Path

import pytest
from evaluation_worlds import SHARE, arguments, card, data_set, model_folder

from pipeline.config.recipe import ClipsConfig
from tokenize_offline.clips.sampling import is_held_out
from training import evaluate

CLIPS = ClipsConfig(length=5, stride="1", held_out=SHARE)
LENGTHS = {"train": [8] * 8, "test": [8, 8, 8]}


@pytest.fixture(autouse=True)
def _all_log_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and a published model, and three data sets: one has short episodes, one has no test split."""
    root = tmp_path_factory.mktemp("world")
    model_folder(root / "model", CLIPS)
    model_folder(root / "published")
    data_set(root / "episodes", "left", LENGTHS)
    data_set(root / "episodes", "right", {"train": [8] * 8})
    data_set(root / "episodes", "short", {"test": [4, 3]})
    return root


def _held_out(dataset: str) -> list[str]:
    keys = [f"train-00000-{number:06d}" for number in range(8)]
    return [key for key in keys if is_held_out(dataset, key, SHARE)]


def test_only_episodes_new_to_the_model_are_evaluated_by_default(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path)) == 0
    found = card(tmp_path)
    held_out = {name: len(_held_out(name)) for name in ("left", "right")}
    assert all(0 < count < 8 for count in held_out.values())
    assert found["data"]["left"]["clips"] == held_out["left"] + 3
    assert found["data"]["right"]["clips"] == held_out["right"]
    assert found["data"]["left"]["splits"] == {
        "test": {"episodes": 3, "evaluated": 3, "trained_on": 0},
        "train": {"episodes": 8, "evaluated": held_out["left"], "trained_on": 0},
    }
    assert found["data"]["left"]["left_out"]["not_held_out"] == 8 - held_out["left"]
    assert found["evaluated"]["trained_on"] == 0
    clips = sum(held_out.values()) + 3
    words = f"{clips} clips from episodes that the model was not trained on"
    assert words in found["evaluated"]["in_words"]
    assert words in caplog.text
    assert words in (tmp_path / "evaluation.md").read_text().splitlines()[2]


def test_a_renamed_folder_has_the_same_held_out_episodes(world: Path, tmp_path: Path):
    (tmp_path / "episodes").mkdir()
    shutil.copytree(world / "episodes" / "right", tmp_path / "episodes" / "moved")
    assert evaluate.main(arguments(world / "model", tmp_path / "episodes", tmp_path / "out")) == 0
    found = card(tmp_path / "out")["data"]["moved"]
    held_out = _held_out("right")
    assert (found["clips"], found["first_episode"], found["last_episode"]) == (len(held_out), held_out[0], held_out[-1])
    assert _held_out("moved") != held_out


def test_scores_of_training_episodes_need_an_option_and_are_marked_first(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    asked = arguments(world / "model", world / "episodes", tmp_path, "--split", "train", "--held_out", "false")
    assert evaluate.main(asked) == 0
    found = card(tmp_path)
    trained_on = 16 - len(_held_out("left")) - len(_held_out("right"))
    assert found["evaluated"]["trained_on"] == trained_on
    assert found["data"]["left"]["splits"]["train"]["trained_on"] == 8 - len(_held_out("left"))
    assert "training episodes are scored" in caplog.records[0].getMessage()
    words = f"TRAINED ON: {trained_on} of 16 clips are from episodes that the model was trained on"
    assert found["evaluated"]["in_words"].startswith(words)
    lines = (tmp_path / "evaluation.md").read_text().splitlines()
    assert "TRAINED ON" in lines[0] and lines[2].startswith(words)
    assert next(iter(found)) == "evaluated"
    assert any(record.levelno == logging.WARNING and words in record.getMessage() for record in caplog.records)


def test_without_a_record_of_the_training_the_assumption_is_reported(world: Path, tmp_path: Path):
    asked = arguments(world / "published", world / "episodes", tmp_path, "--clips.length", "5", "--clips.held_out", "0.4")
    assert evaluate.main([*asked, "--clips.stride", "1"]) == 0
    found = card(tmp_path)
    assert found["evaluated"]["trained_on"] is None
    assert "does not record what it was trained on" in found["evaluated"]["in_words"]
    assert "40 % of train" in found["evaluated"]["in_words"]


def test_a_larger_held_out_fraction_than_in_training_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = arguments(world / "model", world / "episodes", tmp_path, "--clips.held_out", "0.9")
    assert evaluate.main(asked) == 2
    error = capsys.readouterr().err
    assert "clips.held_out is 0.9" in error and "0.4" in error and "--held_out false" in error


def test_left_out_data_sets_and_episodes_are_reported_with_counts_and_reasons(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path)) == 0
    reason = "its 2 episodes have 3 to 4 frames, but a clip of 5 at a stride of 1 needs 5"
    assert card(tmp_path)["evaluated"]["left_out_data_sets"] == {"short": reason}
    assert f"short is left out: {reason}" in caplog.text
    assert f"short is left out: {reason}" in (tmp_path / "evaluation.md").read_text()
    assert f"{8 - len(_held_out('left'))} not held out from training" in caplog.text


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (
            ["--start", "4"],
            1,
            "needs 9 from frame 4; short: its 2 episodes have 3 to 4 frames, but a clip of 5 at a stride of 1 needs 9",
        ),
        (["--start", "4"], 1, ": use --start 3 or less, or use --steps 2"),
        (["--start", "90"], 1, ": use --start 3 or less"),
        (["--steps", "9"], 1, ": use --steps 6"),
        (["--clips.stride", "3"], 1, ": use --steps 1, or use --clips.stride 1"),
        (["--split", "all"], 2, "--split all: no data set has that split; use one of: test, train"),
        (["--start", "-1"], 2, "--start must be at least 0, not -1"),
        (["--episodes", "0"], 2, "--episodes must be at least 1, not 0"),
    ],
)
def test_options_that_leave_nothing_to_evaluate_are_refused_with_a_suggestion(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, message: str
):
    assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path / "out", *options)) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_held_out_episodes_is_refused_with_a_suggestion(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = model_folder(tmp_path / "model", ClipsConfig(length=5, stride="1", held_out=0.0))
    data_set(tmp_path / "episodes", "left", {"train": [8, 8]})
    assert evaluate.main(arguments(model, tmp_path / "episodes", tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert "left: the model was trained on all of its 2 episodes (train; clips.held_out 0)" in error
    assert "--held_out false" in error


def test_fewer_episodes_than_requested_are_logged_per_data_set(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path, "--episodes", "5", "--split", "test")) == 0
    assert "--episodes 5: left has only 3" in caplog.text
    assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path, "--episodes", "2", "--split", "test")) == 0
    assert card(tmp_path)["data"]["left"]["left_out"]["beyond_episodes"] == 1
