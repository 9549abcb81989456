"""The recipes that ship: they read, and describe the published models."""

from pathlib import Path

import pytest
import torch
from test_metrics import PUBLISHED

from pipeline.catalog import mixture
from pipeline.command import parse_recipe, recipe_parser
from training.schedule import plan_batches
from training.world_model import build_network

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(("name", "millions"), [("small", 138), ("medium", 436)])
def test_the_published_pre_training_recipes_make_the_published_models(name, millions):
    recipe, _ = parse_recipe(recipe_parser("test", ""), ["--config", str(CONFIGS / f"oxe-64-act-free-{name}.yaml")])
    with torch.device("meta"):
        network = build_network(recipe.model, PUBLISHED, 0, 0)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions
    assert sum(mixture(recipe.data.mixture).values()) == pytest.approx(1.0)
    for processes in (1, 2, 4, 8, 16, 32, 64):
        assert plan_batches(recipe.training, processes, 0).accumulation == 1
