"""`ivideogpt-train-tokenizer` as users run it, on small episodes that the test makes."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import warm
from safetensors.numpy import load_file
from tokenizer_runs import losses, make_episodes, metric_lines, train, train_arguments

from pipeline.common.locks import locked
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training.tokenizer_training.trainer import TokenizerTrainer
from training.train_tokenizer import main


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_episodes(tmp_path_factory.mktemp("episodes"))


def test_a_resumed_run_ends_with_the_same_weights_as_one_that_was_not_interrupted(episodes: Path, tmp_path: Path):
    whole = train(episodes, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    summary = json.loads(whole.stdout.splitlines()[-1])
    assert summary["steps"] == 6
    assert summary["context_codes_used"] > 0
    assert summary["future_lpips"] > 0
    assert len(losses(tmp_path / "whole", "adversarial")) == 5
    assert (tmp_path / "whole" / "reconstructions" / "step-00000006.png").exists()
    assert train(episodes, tmp_path / "parts", "--tokenizer.steps", "3").returncode == 0
    again = train(episodes, tmp_path / "parts", "--resume", "never")
    assert again.returncode == 1
    assert "--resume never" in again.stderr
    rest = train(episodes, tmp_path / "parts")
    assert rest.returncode == 0, rest.stderr
    for name in ("future_l1", "context_lpips", "adversarial", "discriminator"):
        assert losses(tmp_path / "parts", name) == losses(tmp_path / "whole", name)
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
    assert main(train_arguments(episodes, tmp_path / "whole", *options)) == 0
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
        assert main(train_arguments(episodes, tmp_path / "parts", *options)) == 0
    stopped = json.loads(capsys.readouterr().out)
    assert (stopped["steps"], stopped["finished"]) == (2, False)
    assert main(train_arguments(episodes, tmp_path / "parts", *options)) == 0
    assert metric_lines(tmp_path / "whole") == metric_lines(tmp_path / "parts")
    weights = [load_file(tmp_path / run / "tokenizer" / "diffusion_pytorch_model.safetensors") for run in ("whole", "parts")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_processes_of_srun_train_together_and_stop_when_one_gets_a_signal(episodes: Path, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    shared = {**step, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    options = ["--tokenizer.steps", "1000", "--tokenizer.lpips_weight", "0", "--tokenizer.checkpoint_every", "1000"]
    command = [sys.executable, "-m", "training.train_tokenizer", *train_arguments(episodes, tmp_path, *options)]
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
        assert main(train_arguments(episodes, tmp_path)) == 1
    assert "another run is using" in capsys.readouterr().err


def test_a_folder_with_a_pre_training_run_is_refused_and_stays_unchanged(
    episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    for name in ("run.json", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    assert main(train_arguments(episodes, tmp_path)) == 1
    assert "holds a run of ivideogpt-train: choose another --output" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "{}" and (tmp_path / "checkpoints" / "step-00000002").is_dir()


def test_training_starts_from_a_trained_tokenizer_with_more_context_frames(episodes: Path, tmp_path: Path):
    shape = CompressiveVQConfig(32, 1, (32, 32), 1, 8, 64, 48)
    CompressiveVQModel(shape).save_pretrained(str(tmp_path / "trained"))
    options = ["--tokenizer.context_length", "2", "--tokenizer.steps", "1", "--tokenizer.learning_rate", "1e-9"]
    # One gentle step leaves the weights almost where they were.
    options += ["--tokenizer.dead_code_reset_every", "0", "--tokenizer.ema_decay", "0"]
    done = train(episodes, tmp_path / "run", "--init_from", str(tmp_path / "trained"), *options)
    assert done.returncode == 0, done.stderr
    assert CompressiveVQModel.from_pretrained(str(tmp_path / "run" / "tokenizer")).config.context_length == 2
    before, after = (
        load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("trained", "run/tokenizer")
    )
    name = "decoder.conv_in.weight"
    np.testing.assert_allclose(after[name], before[name], atol=1e-7)


def test_two_processes_train_on_the_same_clips_as_one(episodes: Path, tmp_path: Path):
    both = train(episodes, tmp_path / "two", "--tokenizer.steps", "2", processes=2)
    assert both.returncode == 0, both.stderr
    one = train(episodes, tmp_path / "one", "--tokenizer.steps", "2")
    assert one.returncode == 0, one.stderr
    # Dropout differs between the processes, so only nearly the same.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.02)


def test_a_batch_that_does_not_divide_among_processes_is_an_error_that_names_its_key(episodes: Path, tmp_path: Path):
    refused = train(episodes, tmp_path / "refused", "--tokenizer.batch_size", "3", processes=2)
    assert refused.returncode != 0
    assert "tokenizer.batch_size 3 does not divide among 2 processes" in refused.stderr


def test_a_cpu_that_is_slow_at_bf16_trains_in_fp32_and_the_run_folder_says_so(episodes: Path, tmp_path: Path):
    options = ["--tokenizer.lpips_weight", "0", "--tokenizer.disc_weight", "0", "--tokenizer.training_precision", "bf16"]
    old = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = train(episodes, tmp_path, *options, "--tokenizer.steps", "1", processes=2, **old)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tokenizer.training_precision: fp32 instead of bf16") == 1
    assert "training_precision: fp32" in (tmp_path / "recipe.yaml").read_text()
    # Any machine goes on with it, in what it is.
    rest = train(episodes, tmp_path, *options, "--tokenizer.steps", "2", "--resume", "auto")
    assert rest.returncode == 0, rest.stderr
    assert "stays fp32, in which this run started" in rest.stderr


# Without what takes time and shows nothing here.
