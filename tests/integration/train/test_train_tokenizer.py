"""`ivideogpt-train-tokenizer` as users run it, on small episodes that the test makes."""

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_logs import logged
from worlds import run_ranks, run_world

from pipeline.common.locks import locked
from pipeline.common.manifests import ShardManifest, write_manifest
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import encode_jpeg
from pipeline.episodes.index import write_index
from pipeline.episodes.naming import episode_key, shard_name
from pipeline.episodes.shards import EpisodeShardWriter
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training.metrics.lpips import VGGFeatures
from training.tokenizer_training.trainer import TokenizerTrainer
from training.train_tokenizer import main
from training.trainer.checkpoints import saving
from training.trainer.checkpoints.states import DAMAGED_NAME, State, check_checkpoint, tag

RECIPE = """
clips: {stride: "1", held_out: 0.3}
tokenizer: {resolution: 32, context_length: 1, block_out_channels: [32, 32], layers_per_block: 1, latent_channels: 8,
  num_vq_embeddings: 64, num_dyn_embeddings: 48, segment_length: 3, horizon: 5, batch_size: 4, steps: 6, log_every: 1,
  checkpoint_every: 3, dead_code_reset_every: 2, warmup_steps: 1, lpips_weight: 1.0, disc_weight: 0.8, disc_start: 1,
  balanced_loss: true, ema_decay: 0.9}
"""


RATES = ("clips_per_second", "data_wait", "memory_bytes")


def _episode(number: int) -> Episode:
    """A square that moves over a gradient."""
    frames = []
    for moment in range(8):
        picture = np.tile(np.linspace(0, 200, 40, dtype=np.uint8)[:, None, None], (1, 40, 3))
        picture[4 + number : 12 + number, 3 * moment : 3 * moment + 8] = (250, 10 * number, 0)
        frames.append(encode_jpeg(picture))
    where = {"source_file": "made-up", "source_record": number}
    facts = {"height": 40, "width": 40, "rate": 10.0, "base_step": 10.0, "camera": "image", "language": "", **where}
    return Episode(key=episode_key("train", 0, number), dataset="squares", frames=frames, **facts)


def _write_episodes(root: Path, damaged: Collection[int] = ()) -> None:
    """A data set of twelve episodes, of which all frames of some are cut short."""
    folder, name = root / "squares", shard_name("train", 0, "tar")
    folder.mkdir()
    with EpisodeShardWriter(folder / name) as writer:
        for number in range(12):
            episode = _episode(number)
            cut = [frame[:200] for frame in episode.frames] if number in damaged else episode.frames
            writer.add(dataclasses.replace(episode, frames=cut))
    made = ShardManifest(name, "0", {}, 12, 96, writer.size, writer.sha256, [], writer.entries, {"filtered": 0, "actions": {}})
    write_manifest(str(folder), made)
    write_index(str(folder), "squares", [made], [])


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    _write_episodes(root)
    (root / "recipe.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    save_file(VGGFeatures().state_dict(), root / "vgg.safetensors")
    return root


def _arguments(episodes: Path, output: Path, *options: str) -> list[str]:
    given = ["--config", str(episodes / "recipe.yaml"), "--shards", str(episodes), "--output", str(output), "--workers", "0"]
    return [*given, "--tokenizer.vgg_weights", str(episodes / "vgg.safetensors"), *options]


def _train(
    episodes: Path, output: Path, *options: str, processes: int = 1, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.train_tokenizer", *_arguments(episodes, output, *options)]
    if processes == 1:
        return warm.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **variables})
    return run_ranks(processes, command, **variables)


def _lines(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics, without what depends on the machine."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in RATES} for line in lines]


def _losses(output: Path, name: str = "future_l1") -> list[float]:
    return [line[name] for line in _lines(output) if name in line]


def test_a_resumed_run_ends_with_the_same_weights_as_one_that_was_not_interrupted(episodes: Path, tmp_path: Path):
    whole = _train(episodes, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    summary = json.loads(whole.stdout.splitlines()[-1])
    assert summary["steps"] == 6
    assert summary["context_codes_used"] > 0
    assert summary["future_lpips"] > 0
    assert len(_losses(tmp_path / "whole", "adversarial")) == 5
    assert (tmp_path / "whole" / "reconstructions" / "step-00000006.png").exists()
    assert _train(episodes, tmp_path / "parts", "--tokenizer.steps", "3").returncode == 0
    again = _train(episodes, tmp_path / "parts", "--resume", "never")
    assert again.returncode == 1
    assert "--resume never" in again.stderr
    rest = _train(episodes, tmp_path / "parts")
    assert rest.returncode == 0, rest.stderr
    for name in ("future_l1", "context_lpips", "adversarial", "discriminator"):
        assert _losses(tmp_path / "parts", name) == _losses(tmp_path / "whole", name)
    weights = [load_file(tmp_path / run / "tokenizer" / "diffusion_pytorch_model.safetensors") for run in ("whole", "parts")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert CompressiveVQModel.from_pretrained(str(tmp_path / "whole" / "tokenizer")).config.resolution == 32
    # The averaged weights are the written ones; a checkpoint's model file holds the last ones.
    last = load_file(tmp_path / "whole" / "checkpoints" / "step-00000006" / "model.safetensors")
    assert not np.array_equal(weights[0]["decoder.conv_in.weight"], last["decoder.conv_in.weight"])


def test_a_run_that_gets_a_stop_signal_saves_and_resumes_to_the_same_weights(
    episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = ["--workers", "1", "--tokenizer.lpips_weight", "0", "--tokenizer.checkpoint_every", "6"]
    options += ["--tokenizer.seed", str(2**63 - 1)]
    assert main(_arguments(episodes, tmp_path / "whole", *options)) == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    step = TokenizerTrainer._train_step

    def asked_to_stop_in_step_two(self, clips):
        terms = step(self, clips)
        if self.step == 2:
            for reader in multiprocessing.active_children():
                os.kill(reader.pid, signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTrainer, "_train_step", asked_to_stop_in_step_two)
        assert main(_arguments(episodes, tmp_path / "parts", *options)) == 0
    stopped = json.loads(capsys.readouterr().out)
    assert (stopped["steps"], stopped["finished"]) == (2, False)
    assert main(_arguments(episodes, tmp_path / "parts", *options)) == 0
    assert _lines(tmp_path / "whole") == _lines(tmp_path / "parts")
    weights = [load_file(tmp_path / run / "tokenizer" / "diffusion_pytorch_model.safetensors") for run in ("whole", "parts")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_processes_of_srun_train_together_and_stop_when_one_gets_a_signal(episodes: Path, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    shared = {**step, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    options = ["--tokenizer.steps", "1000", "--tokenizer.lpips_weight", "0", "--tokenizer.checkpoint_every", "1000"]
    command = [sys.executable, "-m", "training.train_tokenizer", *_arguments(episodes, tmp_path, *options)]
    running = [
        warm.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        )
        for rank in "01"
    ]
    try:
        while not (tmp_path / "metrics.jsonl").exists() and running[0].poll() is None:
            time.sleep(0.05)
        running[1].send_signal(signal.SIGTERM)
        outcomes = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], outcomes
    summary = json.loads(outcomes[0][0])
    assert 0 < summary["steps"] < 1000
    assert not summary["finished"]
    assert "the same command resumes from there" in outcomes[1][1]
    assert outcomes[1][0] == ""


def test_a_folder_of_a_running_run_is_refused(episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / ".lock").touch()
    with locked(tmp_path / ".lock"):
        assert main(_arguments(episodes, tmp_path)) == 1
    assert "another run is using" in capsys.readouterr().err


def test_a_folder_with_a_pre_training_run_is_refused_and_stays_unchanged(
    episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    for name in ("run.json", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    assert main(_arguments(episodes, tmp_path)) == 1
    assert "holds a run of ivideogpt-train: choose another --output" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "{}" and (tmp_path / "checkpoints" / "step-00000002").is_dir()


def test_training_starts_from_a_trained_tokenizer_with_more_context_frames(episodes: Path, tmp_path: Path):
    shape = CompressiveVQConfig(32, 1, (32, 32), 1, 8, 64, 48)
    CompressiveVQModel(shape).save_pretrained(str(tmp_path / "trained"))
    options = ["--tokenizer.context_length", "2", "--tokenizer.steps", "1", "--tokenizer.learning_rate", "1e-9"]
    # One gentle step leaves the weights almost where they were.
    options += ["--tokenizer.dead_code_reset_every", "0", "--tokenizer.ema_decay", "0"]
    done = _train(episodes, tmp_path / "run", "--init_from", str(tmp_path / "trained"), *options)
    assert done.returncode == 0, done.stderr
    assert CompressiveVQModel.from_pretrained(str(tmp_path / "run" / "tokenizer")).config.context_length == 2
    before, after = (
        load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("trained", "run/tokenizer")
    )
    name = "decoder.conv_in.weight"
    np.testing.assert_allclose(after[name], before[name], atol=1e-7)


def test_two_processes_train_on_the_same_clips_as_one(episodes: Path, tmp_path: Path):
    both = _train(episodes, tmp_path / "two", "--tokenizer.steps", "2", processes=2)
    assert both.returncode == 0, both.stderr
    one = _train(episodes, tmp_path / "one", "--tokenizer.steps", "2")
    assert one.returncode == 0, one.stderr
    # Dropout differs between the processes, so only nearly the same.
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=0.02)


def test_a_batch_that_does_not_divide_among_processes_is_an_error_that_names_its_key(episodes: Path, tmp_path: Path):
    refused = _train(episodes, tmp_path / "refused", "--tokenizer.batch_size", "3", processes=2)
    assert refused.returncode != 0
    assert "tokenizer.batch_size 3 does not divide among 2 processes" in refused.stderr


def test_a_cpu_that_is_slow_at_bf16_trains_in_fp32_and_the_run_folder_says_so(episodes: Path, tmp_path: Path):
    options = ["--tokenizer.lpips_weight", "0", "--tokenizer.disc_weight", "0", "--tokenizer.training_precision", "bf16"]
    old = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = _train(episodes, tmp_path, *options, "--tokenizer.steps", "1", processes=2, **old)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tokenizer.training_precision: fp32 instead of bf16") == 1
    assert "training_precision: fp32" in (tmp_path / "recipe.yaml").read_text()
    # Any machine goes on with it, in what it is.
    rest = _train(episodes, tmp_path, *options, "--tokenizer.steps", "2", "--resume", "auto")
    assert rest.returncode == 0, rest.stderr
    assert "stays fp32, in which this run started" in rest.stderr


# Without what takes time and shows nothing here.
QUICK = ["--tokenizer.lpips_weight", "0", "--tokenizer.disc_weight", "0"]


def _with_damage(root: Path, episodes: Path, damaged: Collection[int]) -> list[str]:
    """Options of a run over episodes of which some are damaged."""
    _write_episodes(root, damaged)
    return [str(root) if word == str(episodes) else word for word in _arguments(episodes, root / "run", *QUICK)]


def test_damaged_episodes_are_replaced_logged_once_and_listed_also_across_a_resume(
    episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    given = _with_damage(tmp_path, episodes, damaged={1, 4, 5, 8})
    assert main(given) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (
        whole["finished"] and 1 <= whole["episodes_left_out"] <= 4 and whole["samples_replaced"] >= whole["episodes_left_out"]
    )
    keys = {episode_key("train", 0, number) for number in (1, 4, 5, 8)}
    assert {one["key"] for one in whole["left_out"]} <= keys
    assert all("damaged" in one["reason"] and one["dataset"] == "squares" for one in whole["left_out"])
    for one in whole["left_out"]:
        told = [record for record in caplog.records if one["key"] in record.getMessage()]
        assert len(told) == 1 and "is left out" in told[0].getMessage()
    caplog.clear()
    parts = [str(tmp_path / "parts") if word == str(tmp_path / "run") else word for word in given]
    assert main([*parts, "--tokenizer.steps", "3"]) == 0
    capsys.readouterr()
    assert main([*parts, "--resume", "auto"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert {**resumed, "tokenizer": ""} == {**whole, "tokenizer": ""}
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "run")
    for one in whole["left_out"]:
        assert sum(one["key"] in record.getMessage() for record in caplog.records) == 1


def test_a_data_set_with_only_damaged_episodes_is_a_one_line_error_that_names_it(
    episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = _with_damage(tmp_path, episodes, damaged=range(12))
    assert main([*given, "--workers", "1"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "64 episodes of squares" in line and "train-00000-0000" in line and "header is damaged" in line


def test_steps_that_are_not_finite_are_skipped_and_listed_and_too_many_in_a_row_end_the_run(
    episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    given = _arguments(episodes, tmp_path, *QUICK, "--tokenizer.learning_rate", "1e30", "--tokenizer.steps", "20")
    assert main(given) == 1
    said = capsys.readouterr().err
    assert "was not finite in 5 steps in a row" in said and "Lower tokenizer.learning_rate" in said
    assert sum("is skipped" in record.getMessage() for record in caplog.records) == 5
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["in_row"], line["terms"]["future_l1"]) for line in skipped] == [
        (step, step - 1, "nan") for step in range(2, 7)
    ]
    assert not (tmp_path / "tokenizer").exists()


def test_results_survive_a_kill_between_the_last_checkpoint_and_the_tokenizer(
    episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given = _arguments(episodes, tmp_path, *QUICK, "--tokenizer.steps", "3")
    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTrainer, "_write_tokenizer", lambda _: sys.exit(9))
        with pytest.raises(SystemExit):
            main(given)
    assert main([*given, "--resume", "auto"]) == 0
    summary = json.loads(capsys.readouterr().out)
    held_out = [json.loads(line)["held_out"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1:]]
    assert held_out and held_out[0].items() <= summary.items()


def _weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "tokenizer" / "diffusion_pytorch_model.safetensors")


def _killed_in_save(arguments: list[str], part: str, save: int) -> None:
    """Train, and be killed before a part of save number `save`."""
    original, calls = getattr(saving, part), []

    def last(*given: Any) -> None:
        calls.append(part)
        if len(calls) == save:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*given)

    setattr(saving, part, last)
    main(arguments)


def test_a_run_killed_in_a_save_or_with_a_damaged_newest_checkpoint_ends_with_the_weights_of_an_undisturbed_run(
    episodes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    options = ["--tokenizer.lpips_weight", "0", "--tokenizer.checkpoint_every", "2"]
    assert main(_arguments(episodes, tmp_path / "whole", *options)) == 0
    given = _arguments(episodes, tmp_path / "run", *options)
    for part, save in (("mark_complete", 2), ("prune", 1)):
        with pytest.raises(AssertionError, match="the process died"):
            run_world(1, _killed_in_save, given, part, save)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [check_checkpoint(path).state for path in sorted(checkpoints.glob("step-*"))] == [State.WHOLE] * 2
    weights = checkpoints / tag(4) / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    caplog.clear()
    assert main(given) == 0
    assert any("step-00000004 is damaged (model.safetensors has SHA-256" in line for line in caplog.messages)
    assert (checkpoints / f"damaged-{tag(4)}" / DAMAGED_NAME).exists()
    assert sorted(path.name for path in checkpoints.glob("step-*")) == [tag(step) for step in (2, 4, 6)]
    whole, run = _weights(tmp_path / "whole"), _weights(tmp_path / "run")
    assert all(np.array_equal(whole[name], run[name]) for name in whole)
    assert _lines(tmp_path / "run") == _lines(tmp_path / "whole")


def test_a_checkpoint_of_another_run_is_refused(episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, rate in (("one", "1e-4"), ("other", "1e-5")):
        given = _arguments(episodes, tmp_path / name, *QUICK, "--tokenizer.steps", "1", "--tokenizer.learning_rate", rate)
        assert main(given) == 0
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "own")
    (tmp_path / "other" / "checkpoints").rename(tmp_path / "one" / "checkpoints")
    given = _arguments(episodes, tmp_path / "one", *QUICK, "--tokenizer.steps", "2", "--tokenizer.learning_rate", "1e-4")
    capsys.readouterr()
    assert main(given) == 1
    assert "was written by a run of another recipe" in capsys.readouterr().err


def test_metrics_and_reconstructions_reach_tensorboard_and_weights_and_biases(
    episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = ["--tokenizer.steps", "2", "--tokenizer.checkpoint_every", "2", "--training.wandb_project", "tests"]
    assert main(_arguments(episodes, tmp_path, *QUICK, *options)) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    losses = _losses(tmp_path)
    assert [event.value for event in events.Scalars("future_l1")] == pytest.approx(losses)
    (picture,) = events.Images("reconstructions")
    assert picture.encoded_image_string == (tmp_path / "reconstructions" / "step-00000002.png").read_bytes()
    assert [event.step for event in events.Scalars("held_out/future_psnr")] == [2]
    _, rows, exits = logged(tmp_path, runs=1)
    assert [row["future_l1"] for row in rows if "future_l1" in row] == pytest.approx(losses)
    assert sum("reconstructions/_type" in row for row in rows) == 1 and exits == [0]
