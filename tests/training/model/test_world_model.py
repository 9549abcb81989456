import json

import numpy as np
import pytest
import safetensors.torch
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from pipeline.common.errors import ConfigError, SourceError
from pipeline.config.model import ModelConfig
from training.model.files.transformer import open_folder
from training.model.world_model import build_network, load_pretrained_llama, load_transformer, parameter_groups

KINDS = [(actions, rewards) for actions in (False, True) for rewards in (False, True)]
SHAPE = tiny_models.layout()
SMALL = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=256)


def batch(rows=2, seed=0):
    random = np.random.default_rng(seed)
    action = torch.from_numpy(random.normal(size=(rows, tiny_models.CLIP_LENGTH, tiny_models.ACTION_DIM)).astype(np.float32))
    reward = torch.from_numpy(random.normal(size=(rows, tiny_models.CLIP_LENGTH)).astype(np.float32))
    return tiny_models.clip_ids(rows, seed), action, reward


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("actions", [False, True])
def test_loss_and_logits_equal_the_published_ones(shared, context, actions):
    expected = np.load(shared / "parity" / f"context{context}" / "expected.npz")
    network = tiny_models.parity_network(shared, context, actions)
    ids, suffix = torch.from_numpy(expected["tokens"]).long(), "_action" if actions else ""
    action = torch.from_numpy(expected["actions"])
    with torch.no_grad():
        output = network(ids, action)
        last = network.logits(network.hidden_states(ids, action)[:, -1])
    assert abs(output.loss.item() - expected["loss" + suffix]) < 1e-4
    assert output.target_count == (expected["labels"] != -100).sum()
    np.testing.assert_allclose(last.numpy(), expected["logits_last" + suffix], atol=1e-4)


@pytest.mark.parametrize("context", [1, 2])
def test_greedy_tokens_equal_the_published_ones_with_code_zero_masked(shared, context):
    """The action-free fixture was continued with 0 as the padding id, so `generate` hid code 0 of the context there."""
    expected = np.load(shared / "parity" / f"context{context}" / "expected.npz")["greedy_tokens"]
    network = tiny_models.parity_network(shared, context, actions=False)
    ids, first = torch.from_numpy(expected).long(), network.layout.prefix_length
    mask = (ids != 0) | (torch.arange(ids.shape[1]) >= first)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = network.llm(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits
    assert torch.equal(logits[:, first - 1 : -1].argmax(dim=-1), ids[:, first:])


def test_loss_equals_that_of_a_full_forward_pass_with_masked_targets():
    network, (ids, _, _) = tiny_models.network(), batch()
    labels = tiny_models.tokenizer().labels(ids)
    output = network(ids)
    assert torch.isclose(output.loss, network.llm(input_ids=ids, labels=labels).loss, atol=1e-6)
    assert output.target_count == (labels != -100).sum()
    assert output.reward_loss is None


def test_reward_is_read_at_the_last_token_of_each_future_frame_and_belongs_to_the_action_before():
    network, (ids, action, reward) = tiny_models.network(actions=True, rewards=True), batch()
    output = network(ids, action, reward)
    last = SHAPE.prefix_length - 2 + SHAPE.tokens_per_future_frame * torch.arange(1, 4)
    predicted = network.reward_linear(network.hidden_states(ids, action)[:, last])[..., 0]
    assert torch.isclose(output.reward_loss, (predicted - reward[:, 1:4]).square().mean())
    assert torch.isclose(output.loss, output.token_loss + output.reward_loss)


def test_every_token_of_a_future_frame_predicts_the_action_before_it_and_losses_are_weighted():
    config = ModelConfig(
        **{**vars(SMALL), "actions": True, "rewards": True, "reward_weight": 3.0, "action_reconstruction": 0.5}
    )
    network, (ids, action, reward) = build_network(config, SHAPE, tiny_models.ACTION_DIM, seed=3).eval(), batch()
    output = network(ids, action, reward)
    predicted = network.action_recon_linear(network.hidden_states(ids, action))
    errors = [
        (predicted[:, SHAPE.prefix_length - 1 + SHAPE.tokens_per_future_frame * frame + place] - action[:, 1 + frame]).square()
        for frame in range(3)
        for place in range(SHAPE.tokens_per_future_frame)
    ]
    assert torch.isclose(output.action_loss, torch.stack(errors).mean())
    assert torch.isclose(output.loss, output.token_loss + 3.0 * output.reward_loss + 0.5 * output.action_loss)


def test_only_actions_that_lead_to_future_frames_matter():
    network, (ids, action, _) = tiny_models.network(actions=True), batch()
    action.requires_grad_()
    network(ids, action).loss.backward()
    used = action.grad.abs().sum(dim=(0, 2)) > 0
    assert used.tolist() == [False, True, True, True, False]


def test_an_action_changes_nothing_before_its_frame():
    network, (ids, action, _) = tiny_models.network(actions=True), batch()
    changed = action.clone()
    changed[:, 2] += 1.0
    with torch.no_grad():
        difference = (network.hidden_states(ids, action) - network.hidden_states(ids, changed)).abs().amax(dim=(0, 2))
    slot = SHAPE.prefix_length - 1 + SHAPE.tokens_per_future_frame
    assert difference[:slot].max() < 1e-6
    assert difference[slot:].min() > 1e-4


def test_fresh_action_head_changes_nothing():
    config = ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=256, attention_dropout=0.0, actions=True)
    network, (ids, action, _) = build_network(config, SHAPE, tiny_models.ACTION_DIM, seed=3), batch()
    with torch.no_grad():
        assert torch.equal(network(ids, action).loss, network(ids, action * 100).loss)


@pytest.mark.parametrize(("actions", "rewards"), KINDS)
def test_every_parameter_learns(actions, rewards):
    network = tiny_models.network(actions, rewards).train()
    network(*batch(rows=4)).loss.backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("wrong", [None, torch.zeros(2, 3, 3), torch.zeros(2, 5, 4)])
def test_missing_or_misshapen_actions_are_refused(wrong):
    with pytest.raises(ValueError, match="actions of shape"):
        tiny_models.network(actions=True)(batch()[0], wrong)


def test_missing_rewards_are_refused():
    with pytest.raises(ValueError, match="rewards"):
        tiny_models.network(rewards=True)(batch()[0])


def test_weights_depend_on_the_seed_alone_and_leave_the_global_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_network(SMALL, SHAPE, 0, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["llm.lm_head.weight"], other["llm.lm_head.weight"])


def test_clip_longer_than_the_positions_is_refused():
    with pytest.raises(ConfigError, match=r"144 tokens but model.positions is 100"):
        build_network(ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=100), SHAPE, 0, 0)


def test_conditioning_on_actions_that_are_not_there_is_refused():
    with pytest.raises(ConfigError, match="no actions"):
        build_network(ModelConfig(layers=1, heads=2, width=16, mlp_width=32, actions=True), SHAPE, 0, 0)


def test_actions_in_the_data_are_left_aside_by_an_action_free_model():
    assert build_network(SMALL, SHAPE, action_dim=7, seed=0).action_dim == 0


def test_forward_compiles_into_one_graph():
    network, inputs = tiny_models.network(True, True), batch()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.isclose(compiled(*inputs).loss, network(*inputs).loss, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "millions"), [(ModelConfig(), 138), (ModelConfig(layers=24, heads=16, width=1024, mlp_width=4096), 436)]
)
def test_published_sizes_have_their_number_of_parameters(model, millions):
    shape = tiny_models.layout(16, tiny_models.CompressiveVQConfig())
    with torch.device("meta"):
        network = build_network(model, shape, 0, 0)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions


def test_only_weight_matrices_decay():
    network = tiny_models.network(True, True)
    decayed, plain = parameter_groups(network, 0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert {names[p] for p in plain["params"] if p.ndim > 1} == {"llm.model.embed_tokens.weight"}
    assert all(names[p].endswith("weight") and p.ndim == 2 and "embed" not in names[p] for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


@pytest.mark.parametrize(("actions", "rewards"), KINDS)
def test_a_saved_transformer_loads_unchanged(tmp_path, actions, rewards):
    network, inputs = tiny_models.network(actions, rewards), batch()
    network.save_transformer(tmp_path)
    loaded = load_transformer(tmp_path, SHAPE)
    assert (loaded.action_dim, loaded.has_reward) == (tiny_models.ACTION_DIM if actions else 0, rewards)
    with torch.no_grad():
        assert torch.equal(loaded(*inputs).loss, network(*inputs).loss)


def test_transformers_opens_an_action_free_export(tmp_path):
    network, (ids, _, _) = tiny_models.network(), batch()
    network.save_transformer(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, network.llm(ids).logits)


@pytest.mark.parametrize("actions", [False, True])
def test_files_and_names_are_those_of_published_folders(shared, tmp_path, actions):
    published = shared / "parity" / "context2" / ("transformer-action" if actions else "transformer")
    tiny_models.parity_network(shared, 2, actions).save_transformer(tmp_path)
    ours = safetensors.torch.load_file(tmp_path / "model.safetensors")
    theirs = safetensors.torch.load_file(published / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((published / "config.json").read_text())
    assert (tmp_path / "generation_config.json").is_file()


def test_weights_from_an_engine_are_saved_instead_of_the_networks_own(tmp_path):
    network = tiny_models.network()
    given = {name: torch.full_like(tensor, 0.5, dtype=torch.float32) for name, tensor in network.state_dict().items()}
    network.bfloat16().save_transformer(tmp_path, given)
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(tensor.dtype == torch.float32 and (tensor == 0.5).all() for tensor in saved.values())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_incomplete_weights_are_not_saved(tmp_path):
    network = tiny_models.network()
    state = network.state_dict()
    del state["llm.lm_head.weight"]
    with pytest.raises(ValueError, match="lm_head"):
        network.save_transformer(tmp_path, state)


def rewrite_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), r"missing: llm\.lm_head\.weight"),
        (lambda tensors: tensors.update(surplus=torch.zeros(2)), r"unknown: llm\.surplus"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(8)}), r"norm\.weight \(8,\) \(expected \(16,\)\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    tiny_models.network().save_transformer(tmp_path)
    rewrite_weights(tmp_path, change)
    with pytest.raises(SourceError, match=message):
        load_transformer(tmp_path, SHAPE)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{}", "not llama"),
        ("config.json", b"nonsense", "not a Llama configuration"),
        ("model.safetensors", b"cut", "safetensors"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, file, content, message):
    tiny_models.network().save_transformer(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        load_transformer(tmp_path, SHAPE)


def test_an_absurd_configuration_is_refused_before_it_takes_memory(tmp_path):
    tiny_models.network().save_transformer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(SourceError, match="1000000000 layers"):
        load_transformer(tmp_path, SHAPE)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 2**20, "intermediate_size": 2**30}))
    with pytest.raises(SourceError, match="of another shape"):
        load_transformer(tmp_path, SHAPE)


def test_transformer_of_another_vocabulary_is_refused(tmp_path):
    tiny_models.network().save_transformer(tmp_path)
    other = tiny_models.layout(tokenizer=tiny_models.CompressiveVQConfig())
    with pytest.raises(ConfigError, match="vocabulary of 42, its tokenizer one of 16386"):
        load_transformer(tmp_path, other)


@pytest.mark.parametrize("actions", [False, True])
def test_a_pretrained_llama_is_loaded_under_new_heads(tmp_path, actions):
    pretrained = tiny_models.network(actions, seed=1)
    pretrained.save_transformer(tmp_path)
    network = tiny_models.network(actions=True, rewards=True, seed=2)
    head = network.action_linear.weight.clone()
    load_pretrained_llama(network, open_folder(tmp_path))
    assert all(torch.equal(tensor, pretrained.llm.state_dict()[name]) for name, tensor in network.llm.state_dict().items())
    assert torch.equal(network.action_linear.weight, head)


def test_pretrained_llama_of_another_shape_is_refused(tmp_path):
    build_network(SMALL, SHAPE, 0, 0).save_transformer(tmp_path)
    with pytest.raises(SourceError, match="missing"):
        load_pretrained_llama(tiny_models.network(actions=True), open_folder(tmp_path))


def test_configuration_written_by_older_releases_opens(tmp_path):
    network, (ids, _, _) = tiny_models.network(), batch()
    network.save_transformer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("rope_parameters", "dtype", "head_dim", "mlp_bias"):
        del config[key]
    older = {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | older | {"transformers_version": "4.37.2"}))
    with torch.no_grad():
        assert torch.equal(load_transformer(tmp_path, SHAPE)(ids).loss, network(ids).loss)
