"""Fine-tuning from another model's Llama, whole or by low-rank updates, with new heads, in one and two processes."""

import dataclasses
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from synthetic_tokens import LAYOUT, write_shard
from transformers import AutoModelForCausalLM
from worlds import run_world

from pipeline.common.errors import ConfigError, ConflictError, SourceError
from pipeline.config.model import ModelConfig, TrainingConfig
from pipeline.config.recipe import DataConfig, Recipe
from training import TokenStore
from training.data.loader import BatchReader
from training.data.sampler import SampleOrder
from training.distributed import find_rank_info
from training.model.world_model import build_network, load_transformer
from training.trainer.checkpoints.files import tag
from training.trainer.run import RunOptions
from training.trainer.setup import set_up_run
from training.trainer.trainer import pretrain
from training.trainer.verify_resume.compare import differing_tensors, loss_differences

SHAPE = {"layers": 2, "heads": 2, "width": 32, "mlp_width": 64, "positions": 64, "attention_dropout": 0.0}
HEADS = {"actions": True, "rewards": True, "action_reconstruction": 0.5}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    write_shard(root, "robot", 0, 40, action_dim=2, has_reward=True)
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The transformer folder of an action-free model, wide enough for every part to matter."""
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


def test_a_run_starts_from_the_llama_and_fresh_heads_do_not_change_its_output(tokens, pretrained, tmp_path):
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
        loss = load_transformer(pretrained, LAYOUT)(batch.ids).token_loss
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_all_weights_of_the_heads_learn_and_the_model_opens_again(tokens, pretrained, tmp_path):
    pretrain(_recipe(pretrained, HEADS), RunOptions([str(tokens)], str(tmp_path)))
    network = load_transformer(tmp_path / "model" / "transformer", LAYOUT)
    assert (network.action_dim, network.has_reward, network.reconstructs_actions) == (2, True, True)
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


def test_merged_weights_give_the_same_results_as_the_updates(tokens, pretrained, tmp_path):
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
        assert exported(*batch).token_loss.item() == pytest.approx(line["loss"], abs=1e-5)


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
    ("key", "value", "found"),
    [("layers", 3, 2), ("heads", 4, 2), ("width", 16, 32), ("mlp_width", 32, 64), ("layers", 12, 2)],
)
def test_a_shape_that_differs_from_the_initial_models_is_refused_with_both_values(
    tokens, pretrained, tmp_path, key, value, found
):
    options = RunOptions([str(tokens)], str(tmp_path), model_keys=[key])
    with pytest.raises(ConfigError, match=rf"model\.{key} is {value}, but the model of .* has {found}: set it to {found}"):
        pretrain(_recipe(pretrained, {key: value}), options)


def test_a_recipe_without_a_shape_gets_the_initial_models(tokens, pretrained, tmp_path):
    recipe = dataclasses.replace(_recipe(pretrained, steps=1), model=ModelConfig(actions=True, attention_dropout=0.05))
    pretrain(recipe, RunOptions([str(tokens)], str(tmp_path)))
    resolved = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["model"]
    assert {**SHAPE, "actions": True, "attention_dropout": 0.05}.items() <= resolved.items()
    assert yaml.safe_load((tmp_path / "model" / "recipe.yaml").read_text())["model"] == resolved
    config = load_transformer(tmp_path / "model" / "transformer", LAYOUT).config
    assert (config.num_hidden_layers, config.hidden_size, config.attention_dropout) == (2, 32, 0.05)


def test_a_model_can_get_more_positions_than_it_was_trained_with(tokens, pretrained, tmp_path):
    run = set_up_run(_recipe(pretrained, {"positions": 128}), RunOptions([str(tokens)], str(tmp_path)), find_rank_info({}))
    assert run.network.config.max_position_embeddings == run.recipe.model.positions == 128
    change_config(pretrained, tmp_path / "dynamic", rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ConfigError, match=r"model\.positions is 128, but the model of training\.init_from has 64"):
        set_up_run(
            _recipe(tmp_path / "dynamic", {"positions": 128}),
            RunOptions([str(tokens)], str(tmp_path / "run")),
            find_rank_info({}),
        )


def change_config(folder, copy, **changes):
    """Copies a transformer folder and changes its configuration."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": 0.01, "hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 77.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}},
        {"tie_word_embeddings": True},
    ],
)
def test_all_settings_of_the_initial_model_are_kept_and_exported(tokens, pretrained, tmp_path, changes):
    start = change_config(pretrained, tmp_path / "start", **changes)
    if "tie_word_embeddings" in changes:
        weights = load_file(start / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, start / "model.safetensors", {"format": "pt"})
    recipe = _recipe(start, precision="fp32", steps=1, learning_rate=1e-9)
    pretrain(recipe, RunOptions([str(tokens)], str(tmp_path / "run")))
    store = TokenStore.open(tokens)
    batch = BatchReader(store, SampleOrder(store, {"robot": 1.0}), False, False, pinned=False).read(0, 8)
    theirs = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
    labels = batch.ids.clone()
    labels[:, : LAYOUT.prefix_length] = -100
    with torch.no_grad():
        expected = theirs(batch.ids, labels=labels).loss.item()
        exported = load_transformer(tmp_path / "run" / "model" / "transformer", LAYOUT)(batch.ids).loss.item()
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(expected, abs=1e-5)
    assert exported == pytest.approx(expected, abs=1e-5)


def test_a_resume_from_an_initial_model_with_other_settings_is_refused(tokens, pretrained, tmp_path):
    start = change_config(pretrained, tmp_path / "start")
    options = RunOptions([str(tokens)], str(tmp_path / "run"), resume="auto")
    pretrain(_recipe(start, steps=1), options)
    shutil.rmtree(start)
    change_config(pretrained, start, rms_norm_eps=0.01)
    with pytest.raises(ConflictError, match="rms_norm_eps"):
        pretrain(_recipe(start, steps=2), options)


def test_a_model_of_another_vocabulary_is_refused_with_both(tokens, tmp_path):
    other = dataclasses.replace(LAYOUT, num_vq_embeddings=LAYOUT.num_vq_embeddings + 8)
    build_network(ModelConfig(**SHAPE), other, 0, seed=7).save_transformer(tmp_path / "start")
    message = f"vocabulary of {other.vocabulary}, the token shards one of {LAYOUT.vocabulary}"
    with pytest.raises(ConfigError, match=message):
        pretrain(_recipe(tmp_path / "start"), RunOptions([str(tokens)], str(tmp_path / "run")))


def test_an_initial_model_with_nan_weights_is_refused(tokens, pretrained, tmp_path):
    start = shutil.copytree(pretrained, tmp_path / "start")
    weights = load_file(start / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, start / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"start/model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        pretrain(_recipe(start), RunOptions([str(tokens)], str(tmp_path / "run")))


def test_a_missing_initial_model_is_refused(tokens, tmp_path):
    with pytest.raises(SourceError, match="nowhere"):
        pretrain(_recipe(tmp_path / "nowhere"), RunOptions([str(tokens)], str(tmp_path / "run")))


def test_low_rank_updates_without_an_initial_model_are_refused():
    with pytest.raises(ConfigError, match=r"training\.init_from"):
        TrainingConfig(lora_rank=8)
