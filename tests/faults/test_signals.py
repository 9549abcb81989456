"""Whoever is told to end, in whatever way, nothing of a stage is left, and the same command goes on.

Each stage runs as a user starts it, and as the demo does. Signals come from the keyboard, or go to the process that the user
started alone, or to its whole group.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ingest_runs
import pytest
import tiny_models
import tokenize_runs
import warm
import waves
from launching import command as training_command
from launching import losses
from process_trees import SECONDS, Tree, tree, wait_until
from synthetic_episodes import tiny_tokenizer, write_shards
from synthetic_tokens import write_shard
from worlds import run_ranks

from pipeline.common.json_files import read_json

# A stage as the demo starts it: arguments are its log and its command.
AS_DEMO = """
import os, sys
from pathlib import Path
from pipeline.config.cli import run_command
from training.demo.stages import run_stage
run = lambda words: run_stage("stage", words[1:], Path(words[0]), os.environ) and 0
sys.exit(run_command(run, sys.argv[1:]))
"""
KEYBOARD, ALONE, GROUP = "keyboard", "alone", "group"
ENDINGS = [(signal.SIGINT, KEYBOARD)] + [
    (number, target) for target in (ALONE, GROUP) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
]


@dataclass(frozen=True)
class Stage:
    """A stage on small data.

    Attributes:
        command: Goes on wherever it was ended.
        busy: Whether its tree is in the midst of its work.
        result: What it made, once it is done.
        launched: Whether the process that a user starts is a launcher, whose exit status is its own.
    """

    command: list[str]
    busy: Callable[[Tree], bool]
    result: Callable[[], object]
    launched: bool = False


def counts(name: str, number: int) -> Callable[[Tree], bool]:
    """Whether so many processes have something in their command lines."""
    return lambda found: sum(name in line for line in found.commands()) >= number


def has_worked(seconds: float) -> Callable[[Tree], bool]:
    """Whether one of the processes has had so much processor time."""

    def busy(found: Tree) -> bool:
        stats = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in found.all()]
        return any(sum(map(int, fields[11:13])) >= seconds * os.sysconf("SC_CLK_TCK") for fields in stats)

    return busy


def simulate(root: Path) -> Stage:
    words = [sys.executable, "-m", "training.demo.dataset", "--output", str(root / "oxe"), "--episodes", "40", "--steps", "14"]
    finished = root / "oxe" / "pusht" / "0.1.0"
    return Stage(
        words,
        lambda found: counts("spawn_main", 2)(found) and (root / "oxe" / ".pusht.unfinished").exists(),
        lambda: sorted(path.name for path in finished.iterdir()),
    )


def ingest(root: Path) -> Stage:
    source = ingest_runs.write_source(root / "rlds")
    processes = ("--", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    words = [sys.executable, "-m", "pipeline", *ingest_runs.arguments(source, root / "out", *processes)]
    return Stage(words, counts("beam_worker", 2), lambda: ingest_runs.hashes(root / "out"))


def tokenize(root: Path, launcher: tuple[str, ...] = ()) -> Stage:
    tiny_tokenizer(root / "tok")
    write_shards(root / "eps", shards=tokenize_runs.SHARDS, episodes=4)
    words = tokenize_runs.command(root, root / "out", launcher)
    # Readers are copies of their server.
    busy = counts("multiprocessing.forkserver", 3 if launcher else 2)
    return Stage(words, busy, lambda: tokenize_runs.files(root / "out"), bool(launcher))


def fleet(root: Path) -> Stage:
    return tokenize(root, tokenize_runs.TORCHRUN)


def train(root: Path, processes: int = 1) -> Stage:
    write_shard(root / "tokens", "alpha", 0, 40, views=2)
    run = root / "run"
    settings = {"training__steps": 150, "training__checkpoint_every": 5, "training__keep_checkpoints": 50, "resume": "auto"}

    def checkpoints() -> int:
        return len(list(run.glob("checkpoints/*/complete.json")))

    known: dict[int, int] = {}

    def busy(found: Tree) -> bool:
        before = known.setdefault(found.process.pid, checkpoints())
        return checkpoints() > before

    return Stage(training_command(processes, root / "tokens", run, **settings), busy, lambda: losses(run), processes > 1)


def train_by_two(root: Path) -> Stage:
    return train(root, 2)


def predict(root: Path) -> Stage:
    model = tiny_models.save_model(root / "model", tiny_models.world_model(actions=True))
    shard = waves.write_shard(root / "train-000000.tar", [waves.episode(count=20)])
    words = [
        sys.executable,
        "-m",
        "training.predict",
        "--model",
        str(model),
        "--input",
        str(shard),
        "--output",
        str(root / "out"),
    ]
    return Stage(words, has_worked(2.5), lambda: read_json(str(root / "out" / "metrics.json")))


STAGES = [simulate, ingest, tokenize, fleet, train, train_by_two, predict]


def tell(running: Tree, number: signal.Signals, target: str) -> None:
    if target == KEYBOARD:
        running.press_ctrl_c()
    elif target == ALONE:
        os.kill(running.process.pid, number)
    else:
        os.killpg(running.process.pid, number)


def statuses(stage: Stage, number: signal.Signals, as_demo: bool) -> set[int]:
    """The exit statuses that are right after a signal. Under a shell, one that a signal ended has 128 and its number too."""
    if number == signal.SIGKILL:
        return {-number}
    if as_demo:
        return {128 + number}
    if stage.launched:
        return {1, 128 + number, -number}
    if number == signal.SIGTERM and "training" in stage.command:
        return {0}  # After its step, and a checkpoint.
    if "training.predict" in stage.command:
        # It may still be importing, when Python ends by the signal itself.
        return {128 + number, -number}
    return {128 + number}


def end_it(stage: Stage, number: signal.Signals, target: str, as_demo: bool, log: Path) -> None:
    """Start a stage, end it in the midst of its work, and see that nothing is left."""
    words = [sys.executable, "-c", AS_DEMO, str(log), *stage.command] if as_demo else stage.command
    said = f"{number.name} to {target} of {shlex.join(stage.command[1:5])} as_demo={as_demo}"
    with tree(words, terminal=target == KEYBOARD, DS_ACCELERATOR="cpu") as running:
        assert wait_until(lambda: running.process.poll() is not None or stage.busy(running)), said
        assert running.process.poll() is None, (
            f"{said}: ended before, with {running.process.returncode}: {running.said[-3000:]}"
        )
        tell(running, number, target)
        gone = running.is_gone()
        assert gone, f"{said}: left after {SECONDS} s: {running.commands()}, {running.said[-3000:]}"
        assert running.process.returncode in statuses(stage, number, as_demo), (said, running.process.returncode, running.said)


def finish(stage: Stage) -> object:
    words = stage.command
    if stage.launched:  # Two ranks without the launcher make the same, and sooner.
        done = run_ranks(2, [sys.executable, *words[words.index("-m", 2) :]])
    else:
        done = warm.run(
            words, env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    return stage.result()


def check(make: Callable[[Path], Stage], folder: Path, endings: list[tuple[signal.Signals, str, bool]]) -> None:
    stage = make(folder / "ended")
    for number, target, as_demo in endings:
        end_it(stage, number, target, as_demo, folder / "log")
    assert finish(stage) == finish(make(folder / "undisturbed"))


@pytest.mark.parametrize("make", [simulate, ingest, tokenize, train_by_two], ids=lambda make: make.__name__)
def test_nothing_is_left_of_a_stage_of_the_demo_that_is_ended_and_the_same_command_goes_on(make, tmp_path):
    check(make, tmp_path, [(signal.SIGINT, KEYBOARD, True), (signal.SIGKILL, ALONE, True)])


@pytest.mark.soak
@pytest.mark.parametrize("as_demo", [False, True], ids=["by itself", "as the demo"])
@pytest.mark.parametrize("make", STAGES, ids=lambda make: make.__name__)
def test_nothing_is_left_of_a_stage_that_is_ended_in_any_way_and_the_same_command_goes_on(make, as_demo, tmp_path):
    check(make, tmp_path, [(*ending, as_demo) for ending in ENDINGS])


@pytest.mark.parametrize("as_demo", [False, True], ids=["by itself", "as the demo"])
def test_nothing_is_left_of_training_whose_launcher_is_killed(as_demo, tmp_path):
    stage = train_by_two(tmp_path)
    words = [sys.executable, "-c", AS_DEMO, str(tmp_path / "log"), *stage.command] if as_demo else stage.command
    with tree(words, DS_ACCELERATOR="cpu") as running:
        assert wait_until(lambda: running.process.poll() is not None or stage.busy(running))
        launchers = [p for p in running.all() if b"torch.distributed.run" in Path(f"/proc/{p}/cmdline").read_bytes()]
        os.kill(min(set(launchers) - {running.process.pid} or launchers), signal.SIGKILL)
        assert running.is_gone(), running.commands()
        assert running.process.returncode == (1 if as_demo else -signal.SIGKILL)


def test_training_of_the_demo_that_is_asked_to_stop_saves_its_step_first(tmp_path):
    stage = train_by_two(tmp_path)
    words = [sys.executable, "-c", AS_DEMO, str(tmp_path / "log"), *stage.command]
    with tree(words, DS_ACCELERATOR="cpu") as running:
        assert wait_until(lambda: running.process.poll() is not None or stage.busy(running))
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.is_gone(), running.commands()
        assert running.process.returncode == 128 + signal.SIGTERM
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not summary["finished"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{summary['steps']:08d}" / "complete.json").exists()
