"""Runs `ivideogpt-predict` in its own process on real inputs, with model folders in the published layout."""

import json
import sys

import pytest
import warm
from PIL import Image


def predict(*arguments):
    command = [sys.executable, "-m", "training.predict", *map(str, arguments)]
    return warm.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("model", "source", "options", "frames"),
    [
        ("context2", "npz/fractal_sample.npz", ["--samples", "2"], 16),
        ("context1", "video/hands/02_cups.mp4", ["--clips.stride", "0.3s", "--steps", "6"], 7),
    ],
)
def test_a_model_in_the_published_layout_predicts_real_input(shared, tmp_path, model, source, options, frames):
    output = tmp_path / "out"
    done = predict("--model", shared / "parity" / model, "--input", shared / "data" / source, "--output", output, *options)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((output / "metrics.json").read_text())
    assert len(metrics["frame_indices"]) == frames
    # The weights of the fixtures are random, but neighbouring real frames are alike.
    assert metrics["repeat_last_frame"]["mean_psnr"] > 10
    assert json.loads(done.stdout)["repeat_last_frame"]["mean_psnr"] == metrics["repeat_last_frame"]["mean_psnr"]
    with Image.open(output / "prediction.gif") as animation:
        assert animation.n_frames == frames
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.width > frames * 96
    assert "predict" in done.stderr


@pytest.mark.parametrize("missing", ["model", "input"])
def test_a_wrong_path_is_a_one_line_error(shared, tmp_path, missing):
    paths = {"model": shared / "parity" / "context2", "input": shared / "data" / "npz" / "fractal_sample.npz"}
    paths[missing] = tmp_path / "nowhere.npz"
    done = predict("--model", paths["model"], "--input", paths["input"], "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "nowhere.npz" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
