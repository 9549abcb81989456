"""A run uses half precision if the CPU is fast at it, keeps its precision, and records it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from synthetic_tokens import write_shard
from worlds import pretrain_on_an_old_cpu, run_world

from pipeline.common.errors import ConflictError
from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import Recipe
from training.distributed import find_rank_info
from training.trainer.checkpoints.files import tag
from training.trainer.run import Run, RunOptions
from training.trainer.setup import set_up_run
from training.trainer.trainer import pretrain
from training.trainer.verify_resume.compare import differing_tensors
from training.trainer.verify_resume.verify import TOLERANCES, verify_resume

MODEL = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64)


def _recipe(**training) -> Recipe:
    settings = {"global_batch": 4, "steps": 2, "warmup_steps": 1, "log_every": 1, "precision": "bf16", **training}
    return Recipe(model=MODEL, training=TrainingConfig(**settings))


@pytest.fixture
def tokens(tmp_path):
    write_shard(tmp_path / "tokens", views=2)
    write_shard(tmp_path / "tokens", positions=3, split="train_heldout", seed=8)
    return tmp_path / "tokens"


@pytest.fixture
def cpu(monkeypatch):
    """Sets the CPU that this process finds from now on: `old` or `new`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def be(kind: str) -> None:
        if kind == "old":
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        else:
            monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    yield be
    torch.set_num_threads(before)


def _options(tokens: Path, resume: str = "never") -> RunOptions:
    return RunOptions([str(tokens)], str(tokens.parent / "run"), resume)


def _prepare(tokens: Path, recipe: Recipe, resume: str = "never") -> Run:
    return set_up_run(recipe, _options(tokens, resume), find_rank_info({}))


def _written(path: Path) -> str:
    return yaml.safe_load((path / "recipe.yaml").read_text())["training"]["precision"]


def test_a_run_on_a_cpu_that_is_slow_at_bf16_uses_fp32_and_logs_it(tokens, cpu, caplog):
    cpu("old")
    run = _prepare(tokens, _recipe())
    assert run.recipe.training.precision == run.identity["training"]["precision"] == "fp32"
    assert "bf16" not in run.engine_config
    assert [text for text in caplog.messages if "training.precision: fp32 instead of bf16" in text]
    cpu("new")
    caplog.clear()
    other = _prepare(tokens, _recipe())
    assert other.recipe.training.precision == "bf16" and other.engine_config["bf16"] == {"enabled": True}
    assert not caplog.messages


def test_the_recipes_of_run_and_model_have_the_precision_used_and_every_machine_resumes_in_it(tokens, cpu, caplog):
    folder = tokens.parent / "run"
    cpu("old")
    assert pretrain(_recipe(), _options(tokens))["finished"]
    assert _written(folder) == _written(folder / "model") == "fp32"
    assert "fp32, ZeRO 1" in (folder / "model" / "README.md").read_text()
    cpu("new")
    caplog.clear()
    assert pretrain(_recipe(steps=4), _options(tokens, "auto"))["steps"] == 4
    assert [text for text in caplog.messages if "stays fp32, in which this run started, instead of bf16" in text]
    assert _written(folder) == _written(folder / "model") == "fp32"


def test_a_bf16_run_resumes_bit_for_bit_on_a_cpu_that_is_slow_at_bf16(tokens, cpu, caplog):
    cpu("new")
    folders = {name: str(tokens.parent / name) for name in ("whole", "parts")}
    pretrain(_recipe(steps=4, schedule="constant"), RunOptions([str(tokens)], folders["whole"]))
    pretrain(_recipe(steps=2, schedule="constant"), RunOptions([str(tokens)], folders["parts"]))
    cpu("old")
    pretrain(_recipe(steps=4, schedule="constant"), RunOptions([str(tokens)], folders["parts"], "auto"))
    assert [text for text in caplog.messages if "stays bf16, in which this run started, though this CPU is slow at it" in text]
    assert differing_tensors(*(Path(folder) / "checkpoints" / tag(4) for folder in folders.values())) == []


@pytest.mark.parametrize("kind", ["old", "new"])
def test_a_bf16_run_can_not_be_resumed_with_an_fp32_recipe(tokens, cpu, kind):
    cpu("new")
    _prepare(tokens, _recipe()).write_identity()
    cpu(kind)
    with pytest.raises(ConflictError, match=r'different: training.precision: "bf16" -> "fp32"'):
        _prepare(tokens, _recipe(precision="fp32"), "auto")


@pytest.mark.parametrize("old_rank", [0, 1])
def test_ranks_on_several_kinds_of_cpu_compute_in_one_precision(tokens, old_rank):
    first, second = run_world(2, pretrain_on_an_old_cpu, _recipe(), _options(tokens), old_rank)
    folder = tokens.parent / "run"
    assert first["finished"] and second is None
    assert _written(folder) == _written(folder / "model") == "fp32"
    assert json.loads((folder / "run.json").read_text())["training"]["precision"] == "fp32"


@pytest.mark.soak
def test_verify_resume_uses_the_tolerance_of_the_precision_used(tokens, cpu):
    cpu("old")
    verdict = verify_resume(_recipe(), RunOptions([str(tokens)], str(tokens.parent / "verified")), 3, None)
    assert verdict["passed"], verdict
    assert verdict["other_number"]["tolerance"] == TOLERANCES["fp32"]
