"""Runs `ivideogpt-evaluate` on one and two processes with small data sets and a small model."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from evaluation_worlds import data_set
from safetensors.torch import save_file
from worlds import run_ranks

from training import evaluate
from training.metrics.lpips import VGGFeatures
from training.metrics.weights.published import ALL, I3D_KINETICS, VGG16_LPIPS
from training.model.files.transformer import WEIGHTS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, episodes of two data sets, and VGG16 with random weights."""
    root = tmp_path_factory.mktemp("world")
    tiny_models.save_model(root / "model", tiny_models.world_model())
    data_set(root / "episodes", "left", {"test": [8, 3, 8]})
    data_set(root / "episodes", "right", {"test": [8, 8]})
    save_file(VGGFeatures().state_dict(), root / "vgg.safetensors")
    return root


def _arguments(world: Path, output: Path, *options: str) -> list[str]:
    named = ["--model", str(world / "model"), "--shards", str(world / "episodes"), "--output", str(output), "--split", "test"]
    return [*named, "--clips.length", "5", *options]


def test_two_processes_give_the_scores_of_one(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = ["--samples", "2", "--samples_at_once", "1", "--metrics", "[mse,psnr,ssim,lpips]"]
    asked += ["--vgg_weights", str(world / "vgg.safetensors")]
    assert evaluate.main(_arguments(world, tmp_path / "one", *asked)) == 0
    two = run_ranks(2, [sys.executable, "-m", "training.evaluate", *_arguments(world, tmp_path / "two", *asked)])
    assert two.returncode == 0, two.stderr
    cards = [json.loads((tmp_path / run / "evaluation.json").read_text()) for run in ("one", "two")]
    assert cards[0] == cards[1]
    card = cards[0]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == card["results"]
    assert card["results"].keys() == {"left", "right", "all data sets"}
    assert card["data"]["left"]["clips"] == 2
    assert card["data"]["left"]["left_out"]["too_short"] == 1
    assert card["model"]["weights"].keys() == {f"transformer/{WEIGHTS}", "tokenizer/diffusion_pytorch_model.safetensors"}
    rows = card["results"]["left"]
    for metric, sign in (("mse", -1), ("psnr", 1), ("ssim", 1), ("lpips", -1)):
        found = rows["prediction"][metric]
        assert len(found["per_frame"]) == 3
        assert np.mean(found["per_frame"]) == pytest.approx(found["best"], rel=1e-4)
        assert sign * found["best"] >= sign * found["mean"]
        assert rows["reconstruction"][metric]["best"] == rows["reconstruction"][metric]["mean"]
    markdown = (tmp_path / "one" / "evaluation.md").read_text()
    assert "best of 2" in markdown
    assert card["model"]["weights"][f"transformer/{WEIGHTS}"] in markdown
    assert "VGG16" in markdown


def test_lpips_and_fvd_use_the_fetched_weights_and_the_card_names_them(world: Path, tmp_path: Path):
    if not all(published.cached() for published in ALL):
        pytest.skip("no weights in the cache: run ivideogpt-fetch-weights")
    data_set(tmp_path / "episodes", "long", {"test": [9, 9]})
    named = ["--model", str(world / "model"), "--shards", str(tmp_path / "episodes"), "--output", str(tmp_path / "card")]
    assert evaluate.main([*named, "--split", "test", "--clips.length", "9", "--metrics", "[lpips,fvd]"]) == 0
    card = json.loads((tmp_path / "card" / "evaluation.json").read_text())
    markdown = (tmp_path / "card" / "evaluation.md").read_text()
    for metric, published in (("fvd", I3D_KINETICS), ("lpips", VGG16_LPIPS)):
        for part in (published.file, published.sha256, published.source):
            assert part in card["metrics"][metric]
            assert part in markdown
    rows = card["results"]["long"]
    assert rows["prediction"]["fvd"]["all"] > 0
    assert 0 < rows["reconstruction"]["lpips"]["best"] < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "[psnr,lpips]"], "--metrics lpips needs the weights of VGG16"),
        (["--metrics", "[fvd]"], "fvd needs clips of at least 9 frames, not 5"),
        (["--protocol", "bair"], "leave out --steps, --start, --clips.length"),
        (["--split", "val"], "--split val: no data set has that split; use one of: test"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_a_one_line_error(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
):
    # No weights in the cache.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert evaluate.main(_arguments(world, tmp_path, *options)) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "evaluation.json").exists()
