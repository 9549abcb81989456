"""Pre-training on two hosts through torchrun's rendezvous; one host dies and the run resumes on the other."""

import sys
import time

import pytest
from launching import command, losses
from network_hosts import needs_hosts, network_hosts
from synthetic_tokens import write_shard

from pipeline.config.cli import parse_recipe
from training.__main__ import build_parser
from training.trainer.checkpoints.files import newest_checkpoint
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain

SETTINGS = {
    "model__attention_dropout": 0.0,
    "training__schedule": "constant",
    "training__checkpoint_every": 4,
    "training__precision": "fp32",
    "resume": "auto",
}
TOLERANCE = 1e-5


def _launch(hosts, tokens, output, **settings):
    """Starts torchrun on every host with one process each; the first host runs the rendezvous."""
    arguments = command(1, tokens, output, **SETTINGS, **settings)[1:]
    meeting = ["--nnodes", str(len(hosts)), "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "run"]
    meeting += ["--rdzv_endpoint", f"{hosts[0].address}:29400"]
    words = [sys.executable, "-m", "torch.distributed.run", *meeting, *arguments]
    started = []
    for number, host in enumerate(hosts):
        log = (output.parent / f"{output.name}-host{number}.log").open("a")
        started.append(host.popen(words, {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log))
    return started


def _logs(output):
    return "\n".join(path.read_text()[-3000:] for path in sorted(output.parent.glob(f"{output.name}-host*.log")))


def _reached(output):
    """Returns the steps of the newest whole checkpoint."""
    return newest_checkpoint(output / "checkpoints").progress.step


def _finish(launchers, output):
    for launcher in launchers:
        launcher.wait(timeout=400)
    assert not any(launcher.returncode for launcher in launchers), _logs(output)


def _kill_host_after(steps, tokens, output, **settings):
    """Trains on two hosts until the first checkpoint, then loses one host and ends the job like a scheduler."""
    marker = output / "checkpoints" / f"step-{steps:08d}" / "complete.json"
    with network_hosts(2) as hosts:
        launchers = _launch(hosts, tokens, output, **settings)
        deadline = time.monotonic() + 400
        while not marker.exists():
            assert time.monotonic() < deadline and all(launcher.poll() is None for launcher in launchers), _logs(output)
            time.sleep(0.01)
        hosts[1].kill()
        time.sleep(0.5)
        assert launchers[1].poll() is not None


def _losses_by_step(folder):
    return {step: loss for step, loss, _ in losses(folder) if loss is not None}


def _lose_a_host(tmp_path, zero_stage, last):
    """Makes an undisturbed run of `last` steps, and one that loses a host."""
    tokens = tmp_path / "tokens"
    write_shard(tokens, "alpha", 0, 40, views=2)
    chosen = {"training__zero_stage": zero_stage}
    words = command(1, tokens, tmp_path / "alone", **SETTINGS, training__steps=last, **chosen)
    recipe, options = parse_recipe(build_parser(), words[words.index("--tokens") :])
    pretrain(recipe, RunOptions(options.tokens, options.output))
    output = tmp_path / "run"
    _kill_host_after(4, tokens, output, training__steps=1000, **chosen)
    assert not (output / "model").exists()
    return tokens, output, chosen


@needs_hosts
def test_a_run_on_two_hosts_resumes_on_one_after_the_other_is_lost(tmp_path):
    tokens, output, chosen = _lose_a_host(tmp_path, 3, 60)
    reached = _reached(output)
    with network_hosts(1) as (host,):
        _finish(_launch([host], tokens, output, training__steps=reached + 3, **chosen), output)
    alone, run = _losses_by_step(tmp_path / "alone"), _losses_by_step(output)
    assert sorted(run) == list(range(1, reached + 4))
    assert run == pytest.approx({step: alone[step] for step in run}, abs=TOLERANCE)


@needs_hosts
@pytest.mark.soak
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_run_on_two_hosts_resumes_on_one_and_then_on_two_again(tmp_path, zero_stage):
    tokens, output, chosen = _lose_a_host(tmp_path, zero_stage, 60)
    reached = _reached(output)
    for hosts_now, steps in ((1, reached + 10), (2, max(60, reached + 20))):
        with network_hosts(hosts_now) as hosts:
            _finish(_launch(hosts, tokens, output, training__steps=steps, **chosen), output)
    alone, run = _losses_by_step(tmp_path / "alone"), _losses_by_step(output)
    assert len(run) == max(60, reached + 20)
    assert {step: run[step] for step in alone} == pytest.approx(alone, abs=TOLERANCE)
