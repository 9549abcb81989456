"""Every stage starts where only its own extra is installed."""

import importlib.metadata
import pkgutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipeline
import tokenize_offline
import training

PROJECT = "ivideogpt-pipeline"

PROGRAM = """
import importlib, sys
absent = set(sys.argv[1].split())

class WithoutThem:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(WithoutThem, sys.meta_path)
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


def installed_by(extra: str) -> set[str]:
    """Names of the distributions that the project with an extra brings along."""
    found: set[tuple[str, str]] = set()
    waiting = [(PROJECT, extra)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(need.name), wanted) for wanted in ("", *need.extras)]
    return {name for name, _ in found}


def modules_of(package) -> list[str]:
    return [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]


# What a stage's commands import at their start, but for what takes an extra of its own.
STAGES = {
    "ingest": [
        *(
            name
            for name in modules_of(pipeline)
            if name not in ("pipeline.ingest.runners.dask", "pipeline.ingest.runners.spark")
        ),
        "tokenize_offline.inspect",
    ],
    "tokenize": modules_of(tokenize_offline),
    "train": [name for name in modules_of(training) if not name.startswith("training.demo")],
}


@pytest.mark.parametrize("extra", STAGES)
def test_the_modules_of_a_stage_need_nothing_that_its_extra_does_not_install(extra: str):
    there = installed_by(extra)
    absent = [
        top
        for top, distributions in importlib.metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & (there | {PROJECT})
    ]
    assert "hypothesis" in absent and ("torch" in absent) == (extra == "ingest")
    command = [sys.executable, "-c", PROGRAM, " ".join(absent), *STAGES[extra]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
