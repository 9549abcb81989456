"""The packaged recipes are valid, describe the published models, and train."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from synthetic_tokens import LAYOUT, PUBLISHED, write_shard

from pipeline.config.catalog import mixture
from pipeline.config.cli import parse_recipe, recipe_parser
from training.data.batch_plan import plan_batches
from training.model.world_model import build_network
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Of recipes that pre-train or fine-tune a world model: columns of an action, 0 for action-free ones.
RECIPES = {
    "oxe-64-act-free-small": 0,
    "oxe-64-act-free-medium": 0,
    "oxe-64-goal-cond": 0,
    "oxe-256-act-free": 0,
    "bair-64-act-cond": 4,
    "robonet-64-act-cond": 5,
    "robonet-256-act-cond": 5,
    "vp2-robodesk-64-act-cond": 5,
    "vp2-robosuite-64-act-cond": 4,
}
SHRUNKEN = {
    "--model.layers": 1,
    "--model.heads": 2,
    "--model.width": 16,
    "--model.mlp_width": 32,
    "--training.global_batch": 4,
    "--training.steps": 2,
    "--training.log_every": 1,
}


def _parse(name, **changes):
    words = [str(word) for pair in changes.items() for word in pair]
    return parse_recipe(recipe_parser("test", ""), ["--config", str(CONFIGS / f"{name}.yaml"), *words])[0]


def _tokens(root, recipe, action_dim):
    """Writes token shards of a mixture in the recipe's layout, with smaller grids and codebooks; goals are context frames."""
    clips = recipe.clips
    layout = dataclasses.replace(
        LAYOUT,
        context_length=clips.context_length,
        clip_length=clips.length,
        goal=clips.goal,
        resolution=recipe.data.resolution,
    )
    for dataset in mixture(recipe.data.mixture):
        write_shard(root, dataset, positions=2, layout=layout, action_dim=action_dim)
    return root


def test_every_recipe_of_a_world_model_is_tested():
    others = {"demo", "datasets", "mixtures"}
    names = {path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in others}
    assert {name for name in names if not name.startswith(("tokenizer-", "robonet_test", "something_"))} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_a_shrunken_model(tmp_path, name):
    changes = dict(SHRUNKEN)
    if _parse(name).training.init_from:
        network = build_network(_parse("oxe-64-act-free-small", **changes).model, LAYOUT, 0, 0)
        network.save_transformer(tmp_path / "start")
        changes["--training.init_from"] = tmp_path / "start"
    recipe = _parse(name, **changes)
    tokens = _tokens(tmp_path / "tokens", recipe, RECIPES[name])
    summary = pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "run")))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert summary["finished"] and [line["step"] for line in lines if line.get("loss")] == [1, 2]


@pytest.mark.parametrize("name", RECIPES)
def test_the_clips_of_a_recipe_fit_its_model(name):
    recipe = _parse(name)
    layout = dataclasses.replace(PUBLISHED, context_length=recipe.clips.context_length, clip_length=recipe.clips.length)
    with torch.device("meta"):
        network = build_network(recipe.model, layout, RECIPES[name], 0)
    assert (network.action_dim > 0) == recipe.model.actions == ("act-cond" in name)
    assert recipe.clips.goal == ("goal" in name)
    plan_batches(recipe.training, 4, 0)


@pytest.mark.parametrize(("name", "millions"), [("small", 138), ("medium", 436)])
def test_the_published_pre_training_recipes_make_the_published_models(name, millions):
    recipe = _parse(f"oxe-64-act-free-{name}")
    with torch.device("meta"):
        network = build_network(recipe.model, PUBLISHED, 0, 0)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions
    assert sum(mixture(recipe.data.mixture).values()) == pytest.approx(1.0)
    for processes in (1, 2, 4, 8, 16, 32, 64):
        assert plan_batches(recipe.training, processes, 0).accumulation == 1
