"""Fine-tuning: from another model's Llama, whole or by low-rank updates, with new heads; in one process and in two."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_tokens import LAYOUT, write_shard
from transformers import AutoModelForCausalLM
from worlds import run_world

from pipeline.errors import ConfigError, ConflictError, SourceError
from pipeline.network_recipe import ModelConfig, TrainingConfig
from pipeline.recipe import DataConfig, Recipe
from training import TokenStore
from training.batches import BatchReader
from training.checkpoints import tag
from training.order import SampleOrder
from training.preparation import RunOptions
from training.pretrain import pretrain
from training.run_comparison import differing_tensors, loss_differences
from training.world_model import build_network, load_transformer

SHAPE = {"layers": 2, "heads": 2, "width": 32, "mlp_width": 64, "positions": 64, "attention_dropout": 0.0}
HEADS = {"actions": True, "rewards": True, "action_reconstruction": 0.5}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    write_shard(root, "robot", 0, 40, action_dim=2, has_reward=True)
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The transformer folder of an action-free model; matrices are wide enough for every part of it to matter."""
    folder = tmp_path_factory.mktemp("pretrained")
    network = build_network(ModelConfig(**SHAPE), LAYOUT, 0, seed=7)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.2, generator=generator)
    network.save_transformer(folder)
    return folder


def _recipe(pretrained, model=None, **training):
    settings = {
        "global_batch": 8,
        "micro_batch": 2,
        "steps": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "schedule": "constant",
        "log_every": 1,
        "checkpoint_every": 2,
        "init_from": str(pretrained),
        **training,
    }
    return Recipe(
        data=DataConfig(weights={"robot": 1.0}),
        model=ModelConfig(**SHAPE | (model or {})),
        training=TrainingConfig(**settings),
    )


def _exported(folder):
    return load_file(folder / "model" / "transformer" / "model.safetensors")


def test_a_run_starts_from_the_llama_and_heads_that_change_nothing_yet(tokens, pretrained, tmp_path):
    recipe = _recipe(pretrained, HEADS, precision="fp32", steps=1, learning_rate=1e-9)
    pretrain(recipe, RunOptions([str(tokens)], str(tmp_path)))
    before, after = load_file(pretrained / "model.safetensors"), _exported(tmp_path)
    assert after.keys() - {f"llm.{name}" for name in before} == {
        f"{head}.{part}" for head in ("action_linear", "reward_linear", "action_recon_linear") for part in ("weight", "bias")
    }
    assert all(torch.allclose(after[f"llm.{name}"], before[name], atol=1e-7) for name in before)
    store = TokenStore.open(tokens)
    batch = BatchReader(store, SampleOrder(store, {"robot": 1.0}), True, True, pinned=False).read(0, 8)
    with torch.no_grad():
        loss = load_transformer(pretrained, LAYOUT)(batch.ids).label_loss
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_all_weights_of_the_heads_learn_and_the_model_opens_again(tokens, pretrained, tmp_path):
    pretrain(_recipe(pretrained, HEADS), RunOptions([str(tokens)], str(tmp_path)))
    network = load_transformer(tmp_path / "model" / "transformer", LAYOUT)
    assert (network.action_dim, network.has_reward, network.reconstructs) == (2, True, True)
    assert network.action_linear.weight.any() and network.reward_linear.bias.any() and network.action_recon_linear.bias.any()


def test_low_rank_updates_train_little_and_are_exported_merged(tokens, pretrained, tmp_path):
    summary = pretrain(_recipe(pretrained, lora_rank=2, steps=12), RunOptions([str(tokens)], str(tmp_path)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    assert losses[-1] < losses[0] - 0.3
    before, after = load_file(pretrained / "model.safetensors"), _exported(tmp_path)
    assert before.keys() == after.keys()
    for name, value in before.items():
        change = after[name] - value
        if value.ndim == 1:
            assert not change.any(), f"{name} was frozen"
        else:
            assert torch.linalg.matrix_rank(change, rtol=1e-3) in (1, 2), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "transformer")
    assert model.num_parameters() == sum(value.numel() for value in before.values())
    assert summary["finished"]


def test_merged_weights_compute_what_the_updates_did(tokens, pretrained, tmp_path):
    """One more step of the resumed run reports the loss that the export has on that step's clips."""
    recipe = _recipe(pretrained, HEADS, lora_rank=2, precision="fp32", lora_alpha=8.0)
    pretrain(recipe, RunOptions([str(tokens)], str(tmp_path)))
    exported = load_transformer(tmp_path / "model" / "transformer", LAYOUT)
    longer = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=5))
    pretrain(longer, RunOptions([str(tokens)], str(tmp_path)))
    line = next(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"step": 5' in line)
    store = TokenStore.open(tokens)
    batch = BatchReader(store, SampleOrder(store, {"robot": 1.0}), True, True, pinned=False).read(32, 8)
    with torch.no_grad():
        assert exported(*batch).label_loss.item() == pytest.approx(line["loss"], abs=1e-5)


@pytest.mark.parametrize("zero_stage", [1, pytest.param(2, marks=pytest.mark.soak), 3])
def test_two_processes_resume_low_rank_updates_bit_for_bit_and_as_one_process_to_the_same_losses(
    tokens, pretrained, tmp_path, zero_stage
):
    # No parameter is so small that ZeRO-3 keeps it whole: updates of embeddings must be gathered like any other.
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0} if zero_stage == 3 else {}}))
    recipe = _recipe(pretrained, HEADS, lora_rank=2, zero_stage=zero_stage, deepspeed=str(file))
    options = RunOptions([str(tokens)], str(tmp_path / "whole"))
    run_world(2, pretrain, recipe, options)
    for processes in (2, 1):
        part = tmp_path / f"on{processes}"
        shutil.copytree(tmp_path / "whole", part, ignore=shutil.ignore_patterns(tag(4), "model", "metrics.json"))
        run_world(processes, pretrain, recipe, dataclasses.replace(options, output=str(part)))
        assert max(loss_differences(tmp_path / "whole", part, 3).values()) <= (1e-3 if processes == 1 else 0)
    assert differing_tensors(*(tmp_path / name / "checkpoints" / tag(4) for name in ("whole", "on2"))) == []
    whole, again, alone = (_exported(tmp_path / name) for name in ("whole", "on2", "on1"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert all(torch.allclose(whole[name], alone[name], atol=2e-2) for name in whole)
    assert any((whole[f"llm.{name}"] != value).any() for name, value in load_file(pretrained / "model.safetensors").items())


def test_another_llama_under_the_same_path_is_another_run(tokens, pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "start")
    options = RunOptions([str(tokens)], str(tmp_path / "run"))
    pretrain(_recipe(folder, steps=1), options)
    moved = folder.rename(tmp_path / "moved")
    assert pretrain(_recipe(moved, steps=2), options)["steps"] == 2
    weights = load_file(moved / "model.safetensors")
    save_file(weights | {"model.norm.weight": weights["model.norm.weight"] + 1}, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConflictError, match="initial_sha256"):
        pretrain(_recipe(moved, steps=3), options)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ({"layers": 3}, SourceError, r"missing llm\.model\.layers\.2|missing model\.layers\.2"),
        ({"width": 16}, SourceError, "of another shape"),
        ({"heads": 4}, ConfigError, r"has 2 attention heads, model\.heads is 4: set it to 2"),
    ],
)
def test_a_llama_of_another_shape_is_refused(tokens, pretrained, tmp_path, model, error, message):
    with pytest.raises(error, match=message):
        pretrain(_recipe(pretrained, model), RunOptions([str(tokens)], str(tmp_path)))


def test_a_model_that_is_not_there_is_refused(tokens, tmp_path):
    with pytest.raises(SourceError, match="nowhere"):
        pretrain(_recipe(tmp_path / "nowhere"), RunOptions([str(tokens)], str(tmp_path / "run")))


def test_updates_without_a_model_to_update_are_refused():
    with pytest.raises(ConfigError, match=r"training\.init_from"):
        TrainingConfig(lora_rank=8)
