"""The demo's report gives speeds only for what this run did, also for stages that were done before or in part."""

import json

import pytest

from training.demo.report import report
from training.demo.stages import StageResult

QUALITY = {"mean_psnr": 20.0, "mean_ssim": 0.9}
SUMMARIES = {
    "simulate": {"frames": 70, "frames_made": 70},
    "ingest": {"episodes": 5, "shards": 2, "frames": 70, "frames_made": 70},
    "tokenize": {"rows": 25, "shards": 2, "shards_done_before": 0},
    "train": {"steps": 6, "steps_made": 6, "label_entropy": 1.0, "held_out_loss": None},
    "predict": {"episodes": 1},
}


@pytest.fixture
def rows(tmp_path):
    """The report's lines by first word, for stages of ten seconds with changes to their summaries."""
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "prediction.gif").touch()
    quality = {"prediction": {"mean": QUALITY}, "repeat_last_frame": QUALITY, "reconstruction": QUALITY}
    (tmp_path / "predictions" / "metrics.json").write_text(json.dumps(quality))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")

    def text(**changed):
        results = [StageResult(name, 10.0, {**SUMMARIES[name], **changed.get(name, {})}) for name in SUMMARIES]
        lines = report(tmp_path, results, 50.0)[0].splitlines()
        return {line.split()[0]: line for line in lines if line}

    return text


def test_a_demo_in_one_run_has_a_speed_for_each_stage(rows):
    lines = rows()
    assert "7.0 frames/s" in lines["simulate"] and "7.0 frames/s" in lines["ingest"]
    assert "2.5 clips/s" in lines["tokenize"] and "0.6 steps/s" in lines["train"]
    assert lines["The"].startswith("The demo took 0.8 minutes")


def test_stages_already_done_have_no_speed_and_the_time_is_that_of_this_run(rows):
    lines = rows(
        simulate={"frames_made": 0}, ingest={"frames_made": 0}, tokenize={"rows": 0, "shards": 0, "shards_done_before": 2}
    )
    for stage in ("simulate", "ingest", "tokenize"):
        assert "already done" in lines[stage] and "/s" not in lines[stage]
    assert "0.6 steps/s" in lines["train"]
    assert "The" not in lines
    assert lines["This"].startswith("This run, which resumed an earlier one, took 0.8 minutes")


def test_stages_done_in_part_have_the_speed_of_that_part(rows):
    lines = rows(
        ingest={"frames_made": 20}, tokenize={"rows": 15, "shards": 1, "shards_done_before": 1}, train={"steps_made": 2}
    )
    assert "5 episodes in 2 shards, 20 frames of these in this run" in lines["ingest"] and "2.0 frames/s" in lines["ingest"]
    assert "15 clips in 1 shards, 1 shards already done" in lines["tokenize"] and "1.5 clips/s" in lines["tokenize"]
    assert "6 steps, 2 processes, 2 steps of these in this run" in lines["train"] and "0.2 steps/s" in lines["train"]
    assert "This" in lines
