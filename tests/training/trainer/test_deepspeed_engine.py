"""The recipe decides DeepSpeed's configuration; a file may add settings, and contradictions are refused by name."""

import json
from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.model import TrainingConfig
from training.data.batch_plan import plan_batches
from training.trainer.deepspeed_engine import deepspeed_config

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "configs" / "deepspeed").glob("*.json"))


def _config(world=2, **settings):
    training = TrainingConfig(**{"global_batch": 24, "micro_batch": 3, **settings})
    return deepspeed_config(training, plan_batches(training, world, 0))


def test_batch_sizes_come_from_the_recipe_and_the_number_of_processes():
    config = _config()
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (
        24,
        3,
        4,
    )


def test_bf16_accumulates_gradients_in_fp32():
    config = _config(precision="bf16", zero_stage=2)
    assert config["bf16"] == {"enabled": True} and config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    assert "bf16" not in _config(precision="fp32")


def test_bf16_without_fp32_accumulation_is_refused():
    with pytest.raises(ConfigError, match="zero_stage 0 can't accumulate gradients in fp32"):
        _config(precision="bf16", zero_stage=0)


def test_a_deepspeed_file_adds_to_the_recipe(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 5}, "wall_clock_breakdown": True}))
    config = _config(deepspeed=str(path), zero_stage=2)
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 5}
    assert config["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_batch_size": 8, "fp16": {}}, "sets fp16, train_batch_size, which only the recipe may set"),
        ({"zero_optimization": {"stage": 3}}, r"sets ZeRO stage 3, but training.zero_stage is 1"),
        ([1], "must hold a JSON object of DeepSpeed settings"),
        ("text", "must hold a JSON object of DeepSpeed settings"),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        _config(deepspeed=str(path))


def test_a_missing_or_damaged_deepspeed_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.json can't be read as JSON"):
        _config(deepspeed=str(tmp_path / "absent.json"))
    (tmp_path / "torn.json").write_text('{"zero')
    with pytest.raises(ConfigError, match=r"torn\.json can't be read as JSON"):
        _config(deepspeed=str(tmp_path / "torn.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_packaged_deepspeed_file_fits_the_stage_in_its_name(path):
    stage = int(path.stem.split("-")[0].removeprefix("zero"))
    config = _config(deepspeed=str(path), zero_stage=stage)
    assert config["zero_optimization"]["stage"] == stage
