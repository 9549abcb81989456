"""The launchers in `scripts/` as a user runs them, with the names filled in: what starts here is run, the others are read."""

import dataclasses
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import yaml
from synthetic_tokens import write_shard

from pipeline.config.cli import parse_recipe
from tokenize_offline.cli import build_parser as tokenize_parser
from tokenize_offline.tokenizer import CompressiveVQModel
from training.__main__ import build_parser

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SHELL = sorted(path for path in SCRIPTS.rglob("*") if path.suffix in (".sh", ".sbatch"))


@pytest.fixture
def names(tmp_path):
    """The environment that fills in the names, for a run of two steps."""
    tiny_models.tokenizer().save_pretrained(str(tmp_path / "tokenizer"))
    sha256 = CompressiveVQModel.from_pretrained(str(tmp_path / "tokenizer")).weights_sha256
    layout = dataclasses.replace(tiny_models.layout(), tokenizer_sha256=sha256)
    write_shard(tmp_path / "tokens", positions=20, layout=layout)
    recipe = {
        "model": {"layers": 1, "heads": 2, "width": 16, "mlp_width": 32, "positions": 192},
        "training": {"global_batch": 4, "steps": 2, "precision": "fp32", "warmup_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    own = {"CONFIG": "recipe.yaml", "TOKENS": "tokens", "TOKENIZER": "tokenizer", "OUTPUT": "run"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **{name: str(tmp_path / value) for name, value in own.items()}, "OMP_NUM_THREADS": "1"}


def _run(script: str, environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(SCRIPTS / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_every_script_is_bash(script):
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_torchrun_trains_with_two_processes(names):
    result = _run("torchrun/train.sh", {**names, "PROCESSES": "2"}, "--training.zero_stage", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads(result.stdout)
    assert (summary["steps"], summary["processes"], summary["finished"]) == (2, 2, True)


def test_deepspeed_trains_on_the_machines_of_a_hostfile(names, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    # DeepSpeed asks by ssh whether a host is there, and starts processes on the only one without.
    (tmp_path / "ssh").write_text("#!/usr/bin/env bash\nhostname\n")
    (tmp_path / "ssh").chmod(0o755)
    own = {"HOSTFILE": str(tmp_path / "hosts"), "DS_ACCELERATOR": "cpu", "PATH": f"{tmp_path}:{names['PATH']}"}
    result = _run("hostfile/train.sh", {**names, **own})
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (summary["steps"], summary["processes"], summary["finished"]) == (2, 2, True)


def _slurm(names, tmp_path, finished: bool, status: int = 0) -> tuple[int, list[list[str]]]:
    """Run the batch script with stand-ins for Slurm's commands; its exit status, and the stand-ins' arguments."""
    calls = tmp_path / "calls"
    summary = json.dumps({"finished": finished}, indent=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "bin").mkdir()
    for name, body in (("srun", f"echo '{summary}' >\"$OUTPUT/metrics.json\"; exit {status}"), ("scontrol", "")):
        tool = tmp_path / "bin" / name
        tool.write_text(f'#!/usr/bin/env bash\nprintf "%q " {name} "$@" >>{calls}; echo >>{calls}\n{body}\n')
        tool.chmod(0o755)
    variables = {"SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "12", "PATH": f"{tmp_path / 'bin'}:{names['PATH']}"}
    result = _run("slurm/train.sbatch", {**names, **variables}, "--training.steps", "9")
    return result.returncode, [shlex.split(line) for line in calls.read_text().splitlines()]


def _require_arguments(words: list[str]) -> None:
    """What stands behind `-m training` is what the command takes."""
    recipe, options = parse_recipe(build_parser(), words[words.index("training") + 1 :])
    assert options.resume == "auto" and options.tokenizer_dir and options.output and recipe.training.steps


def test_slurm_starts_every_process_and_requeues_a_run_that_was_warned(names, tmp_path):
    status, calls = _slurm(names, tmp_path, finished=False)
    assert status == 0
    assert calls[0][:6] == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=12", "python", "-m", "training"]
    assert calls[0][-2:] == ["--training.steps", "9"]
    _require_arguments(calls[0])
    assert calls[1:] == [["scontrol", "requeue", "77"]]


def test_slurm_lets_a_finished_run_end(names, tmp_path):
    status, calls = _slurm(names, tmp_path, finished=True)
    assert (status, len(calls)) == (0, 1)


def test_slurm_does_not_requeue_an_error(names, tmp_path):
    status, calls = _slurm(names, tmp_path, finished=False, status=3)
    assert (status, len(calls)) == (3, 1)


def test_slurm_is_asked_for_the_warning_that_training_understands():
    lines = (SCRIPTS / "slurm" / "train.sbatch").read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    # Without `B:` the signal goes to the processes of the step, not to the batch script.
    assert options["signal"].startswith("USR1@") and "requeue" in options
    assert options["ntasks-per-node"] == options["gpus-per-node"]


def _tokenize_array(names, tmp_path, **variables) -> "tuple[subprocess.CompletedProcess[str], list[str]]":
    """Run the batch script of one task of an array with a stand-in for torchrun; its end, and the stand-in's arguments."""
    tool = tmp_path / "bin" / "torchrun"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/usr/bin/env bash\nprintf "%q " "$@" >{tmp_path}/call\n')
    tool.chmod(0o755)
    paths = {"SHARDS": "episodes", "PATH": f"{tool.parent}:{names['PATH']}"}
    result = _run("slurm/tokenize.sbatch", {**names, **paths, **variables}, "--splits", "train")
    return result, shlex.split((tmp_path / "call").read_text()) if (tmp_path / "call").exists() else []


@pytest.mark.parametrize(
    ("array", "workers", "shares"),
    [
        ("0-7", None, 8),
        ("0-7", 16, 16),
        ("3,5", 8, 8),
        ("0", None, 1),
        (None, None, 1),
        ("3,5", None, None),
        ("4-7", None, None),
    ],
)
def test_a_part_of_an_array_takes_the_shares_of_the_whole_or_is_refused(names, tmp_path, array, workers, shares):
    # What Slurm says of each array: its greatest index, and how many tasks it has.
    said = {"0-7": (7, 8), "3,5": (5, 2), "0": (0, 1), "4-7": (7, 4)}
    variables = {} if workers is None else {"WORKERS": str(workers)}
    if array is not None:
        most, count = said[array]
        variables |= {"SLURM_ARRAY_TASK_MAX": str(most), "SLURM_ARRAY_TASK_COUNT": str(count), "SLURM_ARRAY_TASK_ID": str(most)}
    result, words = _tokenize_array(names, tmp_path, **variables)
    if shares is None:
        assert result.returncode == 2 and "set WORKERS" in result.stderr and not words
        return
    assert result.returncode == 0, result.stderr
    arguments = words[words.index("tokenize_offline") + 1 :]
    _, options = parse_recipe(tokenize_parser(), arguments)
    assert options.worker_count == shares and options.splits == ["train"]


def test_the_pods_that_tokenize_agree_on_their_number():
    job = yaml.safe_load((SCRIPTS / "kubernetes" / "tokenize.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert f"--worker_count={job['spec']['completions']}" in container["command"]


def test_the_pods_of_kubernetes_find_each_other_and_agree_on_their_number(names, tmp_path, monkeypatch):
    service, job = yaml.safe_load_all((SCRIPTS / "kubernetes" / "train.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == ("v1", "Service", "batch/v1", "Job")
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert spec["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    text = container["command"][-1].replace("\\\n", " ")
    words = shlex.split(text[text.index("torchrun") : text.index("&")])
    given = dict(itertools.pairwise(words))
    assert int(given["--nnodes"]) == spec["completions"] == spec["parallelism"]
    assert given["--rdzv_endpoint"] == f"{job['metadata']['name']}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert int(given["--shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]
    _require_arguments([names["CONFIG"] if word == "/data/recipe.yaml" else word for word in words])


@pytest.mark.parametrize(("finished", "status", "wanted"), [(True, 0, 0), (False, 0, 1), (False, 4, 4)])
def test_a_pod_succeeds_only_with_a_finished_run(tmp_path, finished, status, wanted):
    assert _pod(tmp_path, f"exit {status}", finished).wait(60) == wanted


def test_a_pod_that_is_evicted_waits_for_its_processes_to_save(tmp_path):
    body = f"trap 'sleep 1; touch {tmp_path}/saved; exit 1' TERM; touch {tmp_path}/up; for _ in {{1..600}}; do sleep 0.1; done"
    process = _pod(tmp_path, body, finished=False)
    while not (tmp_path / "up").exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 1
    assert (tmp_path / "saved").exists()


def _pod(tmp_path: Path, body: str, finished: bool) -> "subprocess.Popen[bytes]":
    """The pod's command with a stand-in for torchrun, on another folder than /data."""
    _, job = yaml.safe_load_all((SCRIPTS / "kubernetes" / "train.yaml").read_text())
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "metrics.json").write_text(json.dumps({"finished": finished}, indent=1))
    (tmp_path / "torchrun").write_text(f"#!/usr/bin/env bash\n{body}\n")
    (tmp_path / "torchrun").chmod(0o755)
    command = [word.replace("/data/", f"{tmp_path}/") for word in job["spec"]["template"]["spec"]["containers"][0]["command"]]
    return subprocess.Popen(command, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
