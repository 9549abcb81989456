"""Steps with a chunked loss equal those without, under every ZeRO stage."""

import json

import pytest
from synthetic_tokens import write_shard
from worlds import pretrain_in_chunks, run_world

from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import DataConfig, Recipe
from training.trainer.run import RunOptions
from training.trainer.verify_resume.compare import loss_differences


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_two_processes_make_the_same_steps_with_and_without_chunks(tmp_path, zero_stage):
    write_shard(tmp_path / "tokens", "alpha", 0, 40)
    # No parameter is so small that ZeRO-3 keeps it whole: the head is gathered again for every chunk.
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0} if zero_stage == 3 else {}}))
    recipe = Recipe(
        data=DataConfig(weights={"alpha": 1.0}),
        model=ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64, attention_dropout=0.0),
        training=TrainingConfig(
            global_batch=8,
            micro_batch=2,
            steps=4,
            learning_rate=1e-2,
            warmup_steps=0,
            precision="fp32",
            zero_stage=zero_stage,
            deepspeed=str(file),
            log_every=1,
        ),
    )
    for chunk in (1000, 10):
        run_world(2, pretrain_in_chunks, recipe, RunOptions([str(tmp_path / "tokens")], str(tmp_path / str(chunk))), chunk)
    differences = loss_differences(tmp_path / "1000", tmp_path / "10", 1)
    assert len(differences) == 4 and max(differences.values()) < 1e-5
