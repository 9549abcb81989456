"""Clips of an input have the time step that the model learned, and a warning says where this is uncertain."""

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
def test_an_input_of_known_rate_gets_a_time_step_of_the_model_or_a_warning(seconds: dict[str, float | None], rate: float):
    shape = dataclasses.replace(VIDEO, rate=rate)
    step = fit_time_step(shape, TRAINED, seconds, ingested=False)
    stride = stride_of(step.clips, shape)
    assert stride >= 1 - 1e-6
    known = [value for value in seconds.values() if value is not None]
    nearest = any(math.isclose(stride / rate, value, rel_tol=0.12) for value in known)
    assert nearest or step.doubtful


def test_a_data_set_of_the_training_keeps_its_stride_and_others_get_the_time_step():
    own = dataclasses.replace(VIDEO, dataset="bridge")
    assert fit_time_step(own, TRAINED, {"bridge": 0.2}, ingested=True).clips == TRAINED
    other = fit_time_step(VIDEO, TRAINED, {"bridge": 0.2, "fractal": 1 / 3}, ingested=True)
    assert stride_of(other.clips, VIDEO) == pytest.approx(6)
    assert "learned from bridge, the nearest of 2 data sets" in other.reason
    chosen = fit_time_step(VIDEO, TRAINED, {"bridge": 0.2, "fractal": 1 / 3}, ingested=True, wanted="fractal")
    assert stride_of(chosen.clips, VIDEO) == pytest.approx(10)


def test_a_data_set_of_unknown_time_step_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ConfigError, match=r"--dataset taco_play: .* it knows the time steps of bridge, fractal"):
        fit_time_step(VIDEO, TRAINED, {"bridge": 0.2, "fractal": 0.3, "x": None}, ingested=False, wanted="taco_play")
    with pytest.raises(ConfigError, match="leave one of them out"):
        fit_time_step(VIDEO, TRAINED, {"bridge": 0.2}, ingested=False, given=True, wanted="bridge")


def test_a_video_is_predicted_and_shown_at_the_time_step_of_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model, source = _model(tmp_path / "model", {"bridge": 0.2}), _video(tmp_path / "clip.mp4")
    found = _predict(model, source, tmp_path / "out")
    assert found["frame_indices"] == [0, 6, 12, 18, 24]
    assert found["seconds_per_frame"] == pytest.approx(0.2)
    assert found["time_step"] == "0.2 s between frames, learned from bridge"
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'data-pause="200"' in page and "0.2 s a frame" in page and "learned from bridge" in page
    assert _predict(model, source, tmp_path / "own", "--clips.stride", "2")["frame_indices"] == [0, 2, 4, 6, 8]


def test_a_prediction_says_whether_the_model_was_trained_on_the_episode(tmp_path: Path):
    model = _model(tmp_path / "model", {"waves": 0.2}, dataclasses.replace(TRAINED, held_out=0.3))
    keys = [f"train-00000-{number:06d}" for number in range(8)] + ["test-00000-000000"]
    shard = waves.write_shard(tmp_path / "train-000000.tar", [waves.episode(key) for key in keys])
    seen = {key: not (key.startswith("test") or is_held_out("waves", key, 0.3)) for key in keys}
    assert 0 < sum(seen.values()) < 8
    for key, words in (
        (min(keys, key=lambda key: seen[key]), "The model was not trained on this"),
        (max(keys, key=seen.get), "TRAINED ON this episode"),
    ):
        assert _predict(model, shard, tmp_path / "out", "--episode", key, "--steps", "1")["trained_on"] is seen[key]
        assert words in (tmp_path / "out" / "index.html").read_text()
    other = _model(tmp_path / "other", {"fractal": 0.2})
    assert _predict(other, shard, tmp_path / "out", "--steps", "1")["trained_on"] is None


def test_without_a_known_time_step_a_video_gets_the_published_rule_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = _model(tmp_path / "model", None, ClipsConfig(length=5))
    assert _predict(model, _video(tmp_path / "clip.mp4"), tmp_path / "out")["frame_indices"] == [0, 10, 20, 30, 40]
    assert "the model does not record its time step" in caplog.text


def test_the_option_rate_sets_the_frame_rate_of_an_input(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    model = _model(tmp_path / "model", {"bridge": 0.2})
    np.savez(tmp_path / "episode.npz", image=waves.pixels(30))
    assert _predict(model, tmp_path / "episode.npz", tmp_path / "a")["frame_indices"] == [0, 1, 2, 3, 4]
    assert "the frame rate of the input is unknown (set it with --rate HZ)" in caplog.text
    found = _predict(model, tmp_path / "episode.npz", tmp_path / "b", "--rate", "30")
    assert (found["frame_indices"], found["seconds_per_frame"]) == ([0, 6, 12, 18, 24], pytest.approx(0.2))
    _predict(model, _video(tmp_path / "clip.mp4"), tmp_path / "c", "--rate", "10")
    assert "using --rate 10, not the 30 Hz" in caplog.text
    options = ["--model", str(model), "--input", str(tmp_path / "episode.npz"), "--output", str(tmp_path / "d")]
    assert predict.main([*options, "--rate", "0"]) == 2
    assert "--rate must be a number of frames per second above 0, not 0" in capsys.readouterr().err
    assert predict.main([*options, "--dataset", "bridge"]) == 2
    assert "the frame rate of npz is not: set --rate HZ" in capsys.readouterr().err


def test_an_input_too_slow_for_the_model_keeps_all_frames_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = _model(tmp_path / "model", {"bridge": 0.2})
    assert _predict(model, _video(tmp_path / "clip.mp4", 10, 1), tmp_path / "out")["frame_indices"] == [0, 1, 2, 3, 4]
    assert "frames are 1 s apart, more than the 0.2 s that the model learned from bridge" in caplog.text


@pytest.mark.parametrize("text", ["[", "{}", '{"seconds_per_frame": 3}', '{"seconds_per_frame": {"a": -1}}', "[[]]"])
def test_an_invalid_clips_file_is_refused_by_name(tmp_path: Path, text: str):
    (tmp_path / CLIPS).write_text(text)
    with pytest.raises(SourceError, match=CLIPS):
        read_trained_on(tmp_path)


def test_the_weighted_median_is_one_of_the_values_and_ignores_unknown_ones():
    assert weighted_median([(0.2, 3), (None, 50), (0.1, 2)]) == 0.2
    assert weighted_median([(0.2, 2), (0.1, 2)]) == 0.1
    assert weighted_median([(None, 3)]) is None and weighted_median([]) is None
