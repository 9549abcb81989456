"""A training that is interrupted at any place of its code ends, and the same command makes what it would have made.

Places are counted in calls and returns of functions, C's too, in the main thread: an interrupt may come between any two,
such as between the taking of a lock and the block that it guards.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest
import warm
from launching import losses, training_arguments
from safetensors.torch import load_file
from synthetic_tokens import write_shard


class InterruptAtCall:
    """Interrupts its process at call or return number `last` of its main thread; at 0 it only counts them."""

    def __init__(self, last: int) -> None:
        self.last, self.count = last, 0

    def __call__(self, _: FrameType, event: str, given: object) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGINT)


def _train(arguments: list[str], last: int, said: Path) -> None:
    import torch

    from training.__main__ import main

    torch.set_num_threads(1)
    interrupt = InterruptAtCall(last)
    sys.setprofile(interrupt)
    status = main(arguments)
    sys.setprofile(None)
    (said / "count").write_text(str(interrupt.count))
    sys.exit(status)


class Trainings:
    """Trainings on the same shards."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_shard(root / "tokens", "alpha", 0, 40, views=2)
        write_shard(root / "tokens", "alpha", 0, 8, split="train_heldout", seed=8)

    def run(self, output: Path, last: int = 0) -> tuple[int, str]:
        """Train, or resume; returns the exit status and the command's output."""
        arguments = training_arguments(
            self.root / "tokens", output, training__steps=6, training__checkpoint_every=2, resume="auto"
        )
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = warm.run((_train, arguments, last, self.root), timeout=200, env=environment, text=True, **streams)
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    return Trainings(tmp_path_factory.mktemp("trainings"))


@pytest.fixture(scope="module")
def whole(trainings):
    """An undisturbed training, and how many places it has."""
    status, said = trainings.run(trainings.root / "whole")
    assert status == 0, said
    return trainings.root / "whole", int((trainings.root / "count").read_text())


def _weights(folder: Path) -> dict[str, list[float]]:
    tensors = load_file(folder / "model" / "transformer" / "model.safetensors")
    return {name: tensor.flatten().tolist() for name, tensor in tensors.items()}


def interrupt(trainings: Trainings, whole: tuple[Path, int], places: list[int]) -> dict[int, tuple[int, str]]:
    """Interrupt a training at each place, let it go on, and compare; by place its status and the last line of what it said."""
    outcomes = {}
    for place in places:
        output = trainings.root / f"interrupted-{place}"
        status, said = trainings.run(output, place)
        outcomes[place] = (status, said.strip().splitlines()[-1] if said.strip() else "")
        print(f"interrupt {place} of {whole[1]}: {outcomes[place]}", flush=True)
        assert status in (0, 130), (place, said[-3000:])
        again, said = trainings.run(output)
        assert again == 0, (place, said[-3000:])
        assert losses(output) == losses(whole[0]), place
        assert _weights(output) == _weights(whole[0]), place
    return outcomes


def spread(count: int, over: int) -> list[int]:
    """So many places from start to end, as far from each other as can be."""
    return [(2 * number + 1) * over // (2 * count) for number in range(count)]


def test_a_training_that_is_interrupted_in_its_code_ends_by_itself_and_goes_on(trainings, whole):
    outcomes = interrupt(trainings, whole, spread(4, whole[1]))
    assert {status for status, _ in outcomes.values()} == {130}
    assert all("ending at once" not in said for _, said in outcomes.values())


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_interrupts_all_over_a_training_end_it_and_it_goes_on(trainings, whole):
    outcomes = interrupt(trainings, whole, spread(100, whole[1]))
    assert sum(status == 130 for status, _ in outcomes.values()) >= 95
    assert all("ending at once" not in said for _, said in outcomes.values())
