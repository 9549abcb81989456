"""Metrics and pictures reach the file, TensorBoard, and Weights & Biases."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from wandb_logs import logged

from pipeline.common.errors import ConfigError
from training.trainer.logs import loggers
from training.trainer.logs.loggers import WANDB_NAME, MetricsWriter, WandbRun, require_wandb
from training.trainer.logs.throughput import METRICS_NAME
from training.visuals.pictures import Strip, write_gif


def _animation(folder: Path) -> Path:
    frames = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_gif(str(folder / "00-alpha.gif"), [Strip("truth", frames, 3), Strip("prediction", frames, 1)], 1)
    return folder / "00-alpha.gif"


def _events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()


def test_metrics_are_written_immediately_and_reach_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    values = {"loss": 1.5, "gradient_norm": None, "samples": {"alpha": 3}}
    writer.write(5, values)
    assert json.loads((tmp_path / METRICS_NAME).read_text()) == {"step": 5, **values}
    writer.close()
    events = _events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("samples/alpha")] == [(5, 3.0)]


def test_predictions_are_animated_in_tensorboard(tmp_path):
    path = _animation(tmp_path)
    writer = MetricsWriter(tmp_path, 0)
    writer.log_pictures(7, {"predictions/00-alpha": path})
    writer.close()
    (event,) = _events(tmp_path).Images("predictions/00-alpha")
    assert (event.step, event.encoded_image_string) == (7, path.read_bytes())
    with Image.open(path) as picture:
        assert (event.width, event.height, picture.n_frames) == (*picture.size, 3)


def test_a_weights_and_biases_run_works_offline_and_resumes_as_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = _animation(tmp_path)
    for step, failed in ((1, True), (2, False)):
        writer = MetricsWriter(tmp_path, step - 1, WandbRun("tests", tmp_path, {"training": {"steps": 2}}))
        writer.write(step, {"loss": step / 2, "gradient_norm": None, "samples": {"alpha": 3}})
        writer.log_pictures(step, {"predictions/00-alpha": path})
        writer.close(failed)
    ids, rows, exits = logged(tmp_path, runs=2)
    assert ids == {json.loads((tmp_path / WANDB_NAME).read_text())["id"]}
    numbers = [row for row in rows if "loss" in row]
    assert [(row["step"], row["loss"], row["samples/alpha"]) for row in numbers] == [(1, 0.5, 3), (2, 1.0, 3)]
    assert not any("gradient_norm" in row for row in rows)
    videos = [(row["step"], row["predictions/00-alpha/path"]) for row in rows if "predictions/00-alpha/_type" in row]
    assert [step for step, _ in videos] == [1, 2]
    assert all(list(tmp_path.glob(f"wandb/*/files/{film}")) for _, film in videos)
    assert exits == [1, 0]


def test_another_project_is_another_run(tmp_path):
    first = loggers._run_id(tmp_path, "one")
    assert loggers._run_id(tmp_path, "one") == first
    assert loggers._run_id(tmp_path, "two") != first


def test_missing_weights_and_biases_is_an_error_that_says_what_to_install(monkeypatch):
    def absent(name):
        raise loggers.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(loggers.importlib.metadata, "version", absent)
    require_wandb(None)
    with pytest.raises(ConfigError, match=r"wandb_project is worlds but the package wandb is not installed: pip install"):
        require_wandb("worlds")


def test_weights_and_biases_is_imported_only_if_used():
    check = "import sys, training.trainer.trainer; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=200).returncode == 0


def test_an_interrupt_during_a_tensorboard_event_does_not_block_training(tmp_path):
    code = f"""
import os, signal, sys, threading, time
from pathlib import Path
from pipeline.config.cli import run_command
from training.trainer.logs.loggers import MetricsWriter

notify, armed = threading.Condition.notify, []

def interrupted_before(self, n=1):
    if armed and threading.current_thread() is threading.main_thread():
        armed.clear()
        os.kill(os.getpid(), signal.SIGINT)
    notify(self, n)

def main(_):
    writer = MetricsWriter(Path({str(tmp_path)!r}), 0)
    # TensorBoard's thread is asleep then, for as long as nobody tells it of an event.
    time.sleep(1)
    threading.Condition.notify = interrupted_before
    armed.append(True)
    try:
        writer.write(1, {{"loss": 1.0}})
    finally:
        writer.close()

sys.exit(run_command(main))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted; run the same command again to resume"
