"""Frames of an input lie as far apart as those that the model learned from, and whoever can't be sure is told."""

import dataclasses
import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import tiny_models
import waves
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError, SourceError
from pipeline.config.recipe import ClipsConfig, Recipe
from tokenize_offline.clips.sampling import EpisodeShape, is_held_out, stride_of
from tokenize_offline.shards.codebook_stats import weighted_median
from training import predict
from training.model.files.locate import CLIPS, RECIPE
from training.model.files.trained_on import clips_file, read_trained_on
from training.prediction.time_step import fit_time_step

TRAINED = ClipsConfig(length=5, stride="1")
VIDEO = EpisodeShape("video", "file-00000-000000", 1000, 64, 64, 30.0, 30.0)


def _model(folder: Path, seconds: dict[str, float | None] | None, clips: ClipsConfig = TRAINED) -> Path:
    tiny_models.save_model(folder, tiny_models.world_model())
    (folder / RECIPE).write_text(Recipe(clips=clips).as_yaml())
    if seconds is not None:
        (folder / CLIPS).write_bytes(clips_file(seconds))
    return folder


def _video(path: Path, frames: int = 60, rate: int = 30) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for frame in waves.pixels(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def _predict(model: Path, source: Path, output: Path, *options: str) -> dict[str, object]:
    assert predict.main(["--model", str(model), "--input", str(source), "--output", str(output), *options]) == 0
    found: dict[str, object] = json.loads((output / "metrics.json").read_text())
    return found


@given(
    seconds=st.dictionaries(st.sampled_from("abc"), st.floats(0.01, 10) | st.none(), max_size=3),
    rate=st.floats(0.2, 240),
)
def test_an_input_of_known_rate_is_sampled_at_a_time_step_of_the_model_or_that_is_told(
    seconds: dict[str, float | None], rate: float
):
    shape = dataclasses.replace(VIDEO, rate=rate)
    step = fit_time_step(shape, TRAINED, seconds, of_shard=False)
    stride = stride_of(step.clips, shape)
    assert stride >= 1 - 1e-6
    known = [value for value in seconds.values() if value is not None]
    nearest = any(math.isclose(stride / rate, value, rel_tol=0.12) for value in known)
    assert nearest or step.doubtful


def test_a_data_set_of_the_models_own_is_cut_by_its_own_rule_and_others_at_its_time():
    own = dataclasses.replace(VIDEO, dataset="bridge")
    assert fit_time_step(own, TRAINED, {"bridge": 0.2}, of_shard=True).clips == TRAINED
    other = fit_time_step(VIDEO, TRAINED, {"bridge": 0.2, "fractal": 1 / 3}, of_shard=True)
    assert stride_of(other.clips, VIDEO) == pytest.approx(6)
    assert "as the model learned bridge, the nearest of its 2 data sets" in other.told
    chosen = fit_time_step(VIDEO, TRAINED, {"bridge": 0.2, "fractal": 1 / 3}, of_shard=True, wanted="fractal")
    assert stride_of(chosen.clips, VIDEO) == pytest.approx(10)


def test_a_data_set_whose_time_step_the_model_does_not_know_is_refused_with_those_it_knows():
    with pytest.raises(ConfigError, match=r"--dataset taco_play: .* it knows those of bridge, fractal"):
        fit_time_step(VIDEO, TRAINED, {"bridge": 0.2, "fractal": 0.3, "x": None}, of_shard=False, wanted="taco_play")
    with pytest.raises(ConfigError, match="leave one of them out"):
        fit_time_step(VIDEO, TRAINED, {"bridge": 0.2}, of_shard=False, given=True, wanted="bridge")


def test_a_video_is_predicted_at_the_models_time_step_and_shown_at_its_pace(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model, source = _model(tmp_path / "model", {"bridge": 0.2}), _video(tmp_path / "clip.mp4")
    found = _predict(model, source, tmp_path / "out")
    assert found["frame_indices"] == [0, 6, 12, 18, 24]
    assert found["seconds_per_frame"] == pytest.approx(0.2)
    assert found["time_step"] == "0.2 s between frames, as the model learned bridge"
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'data-pause="200"' in page and "0.2 s a frame" in page and "as the model learned bridge" in page
    assert _predict(model, source, tmp_path / "own", "--clips.stride", "2")["frame_indices"] == [0, 2, 4, 6, 8]


def test_a_prediction_says_whether_the_model_was_trained_on_the_episode(tmp_path: Path):
    model = _model(tmp_path / "model", {"waves": 0.2}, dataclasses.replace(TRAINED, held_out=0.3))
    keys = [f"train-00000-{number:06d}" for number in range(8)] + ["test-00000-000000"]
    shard = waves.write_shard(tmp_path / "train-000000.tar", [waves.episode(key) for key in keys])
    seen = {key: not (key.startswith("test") or is_held_out("waves", key, 0.3)) for key in keys}
    assert 0 < sum(seen.values()) < 8
    for key, words in (
        (min(keys, key=lambda key: seen[key]), "Never trained on"),
        (max(keys, key=seen.get), "TRAINED ON this"),
    ):
        assert _predict(model, shard, tmp_path / "out", "--episode", key, "--steps", "1")["trained_on"] is seen[key]
        assert words in (tmp_path / "out" / "index.html").read_text()
    other = _model(tmp_path / "other", {"fractal": 0.2})
    assert _predict(other, shard, tmp_path / "out", "--steps", "1")["trained_on"] is None


def test_of_a_model_that_does_not_say_a_video_follows_the_published_rule_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = _model(tmp_path / "model", None, ClipsConfig(length=5))
    assert _predict(model, _video(tmp_path / "clip.mp4"), tmp_path / "out")["frame_indices"] == [0, 10, 20, 30, 40]
    assert "the model doesn't say how much time lies between its frames" in caplog.text


def test_the_rate_of_an_input_that_does_not_say_it_is_said_by_an_option(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    model = _model(tmp_path / "model", {"bridge": 0.2})
    np.savez(tmp_path / "episode.npz", image=waves.pixels(30))
    assert _predict(model, tmp_path / "episode.npz", tmp_path / "a")["frame_indices"] == [0, 1, 2, 3, 4]
    assert "nobody says how many frames a second the input has (--rate HZ does)" in caplog.text
    found = _predict(model, tmp_path / "episode.npz", tmp_path / "b", "--rate", "30")
    assert (found["frame_indices"], found["seconds_per_frame"]) == ([0, 6, 12, 18, 24], pytest.approx(0.2))
    _predict(model, _video(tmp_path / "clip.mp4"), tmp_path / "c", "--rate", "10")
    assert "--rate 10 counts in place of the 30 Hz" in caplog.text
    options = ["--model", str(model), "--input", str(tmp_path / "episode.npz"), "--output", str(tmp_path / "d")]
    assert predict.main([*options, "--rate", "0"]) == 2
    assert "--rate must be a number of frames per second above 0, not 0" in capsys.readouterr().err
    assert predict.main([*options, "--dataset", "bridge"]) == 2
    assert "the frame rate of npz is not: say it (--rate HZ" in capsys.readouterr().err


def test_an_input_too_slow_for_the_model_is_predicted_frame_by_frame_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = _model(tmp_path / "model", {"bridge": 0.2})
    assert _predict(model, _video(tmp_path / "clip.mp4", 10, 1), tmp_path / "out")["frame_indices"] == [0, 1, 2, 3, 4]
    assert "frames lie 1 s apart, more than the 0.2 s of bridge" in caplog.text


@pytest.mark.parametrize("text", ["[", "{}", '{"seconds_per_frame": 3}', '{"seconds_per_frame": {"a": -1}}', "[[]]"])
def test_a_clips_file_that_can_not_be_is_refused_by_name(tmp_path: Path, text: str):
    (tmp_path / CLIPS).write_text(text)
    with pytest.raises(SourceError, match=CLIPS):
        read_trained_on(tmp_path)


def test_the_typical_value_is_one_that_occurs_and_unknown_ones_do_not_count():
    assert weighted_median([(0.2, 3), (None, 50), (0.1, 2)]) == 0.2
    assert weighted_median([(0.2, 2), (0.1, 2)]) == 0.1
    assert weighted_median([(None, 3)]) is None and weighted_median([]) is None
