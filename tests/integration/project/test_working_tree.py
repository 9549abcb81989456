"""A run folder may lie anywhere in the working tree: neither the project's checks nor its package see it."""

import shutil
import subprocess
import sys
from pathlib import Path

import deepspeed
import pytest
from setuptools.config.setupcfg import read_configuration

ROOT = Path(__file__).resolve().parents[3]
# What DeepSpeed puts into checkpoints.
SCRIPT = Path(deepspeed.__file__).parent / "utils" / "zero_to_fp32.py"


@pytest.fixture(params=["other_demo/run", "training_run", "training/out/run", "tests/mine"])
def tree(request, tmp_path):
    """A small project with this one's settings, and a run folder in it."""
    for name in ("pyproject.toml", "setup.cfg", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("pipeline", "tokenize_offline", "training", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('"""Something."""\n')
    for place in (request.param, f"{request.param}/nested"):
        folder = tmp_path / place / "checkpoints" / "step-00000002"
        folder.mkdir(parents=True)
        shutil.copy(SCRIPT, folder.parent / SCRIPT.name)
        shutil.copy(SCRIPT, folder / SCRIPT.name)
    return tmp_path


def test_lint_format_and_types_are_those_of_the_project_alone(tree):
    for words in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        done = subprocess.run([sys.executable, "-m", *words], cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "zero_to_fp32" not in done.stdout


def test_a_fault_of_the_projects_own_is_still_found(tree):
    (tree / "training" / "checkpoints.py").write_text('"""Something."""\n\nimport os\n\n\ndef f(a): return a\n')
    for words in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        done = subprocess.run([sys.executable, "-m", *words], cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "checkpoints.py" in done.stdout


def test_all_packages_and_their_data_are_packaged():
    found = set(read_configuration(ROOT / "setup.cfg")["options"]["packages"])
    assert {"pipeline", "pipeline.sources", "training.demo", "configs", "configs.demo-tokenizer"} <= found


def test_a_folder_whose_name_begins_as_a_packages_is_not_packaged(tmp_path):
    for name in ("setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("training", "training/demo", "training_run/run/model", "pipeline_out", "configs/deepspeed"):
        (tmp_path / name).mkdir(parents=True)
    found = set(read_configuration(tmp_path / "setup.cfg")["options"]["packages"])
    assert found == {"training", "training.demo", "configs", "configs.deepspeed"}
