"""`scripts/constraints.txt` pins all that is installed, agrees with setup.cfg, and is what is installed here."""

import configparser
import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "scripts" / "constraints.txt"
PROJECT = "ivideogpt-pipeline"
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython"}
PYTHONS = {version: {**LINUX, "python_version": version, "python_full_version": f"{version}.9"} for version in ("3.11", "3.12")}


def _lines() -> list[Requirement]:
    text = FILE.read_text(encoding="utf-8")
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def _pins(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Package -> version on a Python."""
    pins: dict[str, str] = {}
    for line in _lines():
        if line.marker is None or line.marker.evaluate(environment):
            (specifier,) = line.specifier
            assert specifier.operator == "==" and canonicalize_name(line.name) not in pins, str(line)
            pins[canonicalize_name(line.name)] = specifier.version
    return pins


def _asked() -> list[tuple[str, Requirement]]:
    """Every requirement of setup.cfg, by the extra that has it."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = {"install_requires": config["options"]["install_requires"], **config["options.extras_require"]}
    lines = [(name, line.strip()) for name, group in groups.items() for line in group.splitlines()]
    return [(name, Requirement(line)) for name, line in lines if line and not line.startswith(("#", PROJECT))]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_of_every_extra_has_its_version_in_the_file(python):
    pins = _pins(PYTHONS[python])
    for extra, requirement in _asked():
        assert str(requirement.specifier) == f"=={pins.get(canonicalize_name(requirement.name))}", (extra, str(requirement))


def test_all_that_dev_leads_to_is_installed_in_the_version_of_the_file():
    pins = _pins()
    waiting, seen = [(PROJECT, "dev")], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        installed = importlib.metadata.version(name)
        # A build's label, as torch's `+cpu`, is no part of the version.
        assert name == PROJECT or Version(installed).public == pins.get(name), f"{name} {installed}"
        for need in map(Requirement, importlib.metadata.requires(name) or []):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(need.name), wanted) for wanted in ("", *need.extras)]
    assert len({name for name, _ in seen}) > 150


def test_torch_is_free_to_be_a_cpu_or_a_cuda_build():
    torch = [line for line in _lines() if line.name == "torch"]
    assert len(torch) == 1 and torch[0].marker is None and "+" not in str(torch[0].specifier)
    assert {"triton", "nvidia-nccl-cu13", "cuda-pathfinder"} <= _pins(PYTHONS["3.12"]).keys()


def test_the_file_names_no_registry_and_no_place():
    assert not re.search(r"://|^-|file:|@", FILE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", ["environment.sh", "Dockerfile.gpu", "Dockerfile.ingest"])
def test_whatever_installs_the_project_takes_the_versions_of_the_file(name):
    installs = [line for line in (ROOT / "scripts" / name).read_text().splitlines() if "pip install" in line]
    assert installs and all("scripts/constraints.txt" in line for line in installs), installs
