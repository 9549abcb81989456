"""Scores of clips survive a kill, are never mixed with those of another command, and are removed at the end."""

import errno
from pathlib import Path

import pytest
import torch
from evaluation_worlds import arguments, card, data_set, model_folder

from pipeline.common.errors import ConflictError
from pipeline.config.recipe import ClipsConfig
from training import evaluate
from training.evaluation import kept_scores, scoring
from training.evaluation.kept_scores import KeptScores
from training.evaluation.scores import ClipScores

FORM = ClipScores(torch.zeros(1, 3, 1, 5, dtype=torch.float64), torch.zeros(1, 4, 0, dtype=torch.float64))


def _scores(value: float) -> ClipScores:
    return ClipScores(torch.full_like(FORM.frames, value), FORM.features)


def _kept(output: str, **command: object) -> KeptScores:
    return KeptScores(output, {"weights": {"a": "b"}, **command}, FORM)


@pytest.fixture
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_scores, "SECONDS_BETWEEN", 0.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    model_folder(root / "model", ClipsConfig(length=5, stride="1"))
    data_set(root / "episodes", "left", {"test": [8] * 4})
    return root


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_kept_scores_are_read_back_exactly_and_then_removed(tmp_path: Path, place: str, written_at_once: None):
    output = str(tmp_path / "out") if place == "disk" else "memory://out"
    assert _kept(output).claim() == {}
    with _kept(output) as kept:
        for number in range(3):
            kept.add(f"clip {number}", _scores(number / 3))
    again = _kept(output)
    found = again.claim()
    assert found.keys() == {"clip 0", "clip 1", "clip 2"}
    assert all(torch.equal(found[f"clip {number}"].frames, _scores(number / 3).frames) for number in range(3))
    again.remove()
    assert _kept(output).claim() == {}
    if place == "disk":
        assert [path.name for path in (tmp_path / "out" / "scores").iterdir()] == ["command.json"]


def test_pending_scores_are_written_after_an_error(tmp_path: Path):
    kept = _kept(str(tmp_path))
    kept.claim()
    with pytest.raises(KeyboardInterrupt), kept:
        kept.add("clip", _scores(1))
        raise KeyboardInterrupt
    assert _kept(str(tmp_path)).claim().keys() == {"clip"}


def test_scores_of_another_command_are_refused_with_the_difference(tmp_path: Path):
    _kept(str(tmp_path), samples=1).claim()
    with pytest.raises(ConflictError, match=r"samples: 1 -> 2.*Choose another --output, or delete"):
        _kept(str(tmp_path), samples=2).claim()


def test_clips_of_a_damaged_or_foreign_file_are_scored_again_with_a_warning(
    tmp_path: Path, written_at_once: None, caplog: pytest.LogCaptureFixture
):
    for name in ("first", "second", "third"):
        with _kept(str(tmp_path), name=name) as kept:
            kept.add(name, _scores(1))
    parts = sorted((tmp_path / "scores").glob("*.npz"))
    assert len(parts) == 3
    kept = _kept(str(tmp_path), name="third")
    kept.claim()
    (tmp_path / "scores" / "00.npz").write_bytes(parts[0].read_bytes()[:100])
    assert kept.claim().keys() == {"third"}
    assert caplog.text.count("its clips are scored again") == 3


def test_an_unwritable_output_is_an_error_before_the_first_clip(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def scored(*_: object) -> None:
        raise AssertionError("a clip was scored")

    monkeypatch.setattr(scoring, "score_clip", scored)
    (tmp_path / "file").touch()
    assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path / "file" / "out")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "file/out" in error and "Not a directory" in error


def test_results_are_printed_if_the_report_cannot_be_written_and_the_same_command_writes_it_later(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "evaluation.json")

    with monkeypatch.context() as broken:
        broken.setattr(evaluate, "write_card", full)
        assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path)) == 1
    printed = capsys.readouterr()
    assert '"results": {"left"' in printed.out
    assert f"the scores of all clips are in {tmp_path}/scores" in printed.err
    monkeypatch.setattr(scoring, "score_clip", lambda *_: pytest.fail("a clip was scored again"))
    assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path)) == 0
    assert card(tmp_path)["results"].keys() == {"left"}
    assert not (tmp_path / "scores").exists()


def test_an_evaluation_finishes_if_scores_cannot_be_kept(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, written_at_once: None
):
    write = kept_scores.storage.write_bytes

    def refuse_parts(path: str, data: bytes) -> None:
        if path.endswith(".npz"):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        write(path, data)

    monkeypatch.setattr(kept_scores.storage, "write_bytes", refuse_parts)
    assert evaluate.main(arguments(world / "model", world / "episodes", tmp_path)) == 0
    assert caplog.text.count("cannot keep the scores so far") == 1
    assert card(tmp_path)["data"]["left"]["clips"] == 4
