"""Workarounds work, and each is still needed: a test fails once a library no longer has the fault.

Attention in training is causal by SDPA's flag: with a mask in its place there is no flash kernel.
"""

import copy
import importlib.metadata
import os

import pytest
import tiny_models
import torch
from synthetic_tokens import LAYOUT
from torch import nn
from worlds import run_world

from pipeline.config.model import ModelConfig, TrainingConfig
from training.compat import attend_causally, connect_accelerate, import_deepspeed, quiet, repaired_optimizer
from training.data.batch_plan import plan_batches
from training.distributed import Processes, find_rank_info
from training.model.world_model import build_network
from training.trainer.checkpoints.loading import convert
from training.trainer.deepspeed_engine import close_engine, deepspeed_config, start_engine

# Versions whose faults `training.compat` works around.
VERSIONS = {"deepspeed": "0.19.8", "accelerate": "1.15.0", "transformers": "5.23.0", "torch": "2.13.0"}


@pytest.mark.parametrize("name", VERSIONS)
def test_faults_of_the_installed_version_are_known(name):
    installed = importlib.metadata.version(name).partition("+")[0]
    assert installed == VERSIONS[name], "see which functions of training/compat.py this version still needs"


def test_deepspeed_loses_hyperparameters_and_steps_of_zero_3_in_universal_checkpoints_and_they_are_repaired(tmp_path):
    training = TrainingConfig(zero_stage=3, precision="fp32", global_batch=1, weight_decay=0.1)
    with Processes(find_rank_info({})) as processes:
        network = build_network(ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64), LAYOUT, 0, 0)
        config = deepspeed_config(training, plan_batches(training, 1, 0)) | {"checkpoint": {"load_universal": True}}
        engine = start_engine(network, training, config, processes)
        engine.backward(engine(torch.zeros(1, LAYOUT.sequence_length, dtype=torch.int64)).loss)
        engine.step()
        with quiet():
            engine.save_checkpoint(str(tmp_path), tag="saved", save_latest=False)
        convert(tmp_path / "saved", tmp_path / "universal")

        def loaded():
            decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
            steps = {id(state["step"]) for state in engine.basic_optimizer.state.values()}
            return decays, len(steps) == len(engine.basic_optimizer.state)

        assert loaded() == ([0.1, 0.0], True)
        with repaired_optimizer(engine), quiet():
            engine.load_checkpoint(str(tmp_path), tag="universal")
            assert loaded() == ([0.1, 0.1], False)
        assert loaded() == ([0.1, 0.0], True)
        close_engine(engine)


def test_deepspeed_compiles_a_backend_for_a_cpu_where_it_finds_a_compiler(monkeypatch):
    deepspeed = import_deepspeed(torch.device("cpu"))
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    built = []
    monkeypatch.setattr(ShareMemCommBuilder, "load", lambda _: built.append(True))
    assert build_shm_op() is None and not built
    monkeypatch.setitem(vars(deepspeed.ops), "__compatible_ops__", {ShareMemCommBuilder.NAME: True})
    with quiet():
        build_shm_op()
    assert built


def _accelerates(variables, connect):
    """How accelerate sees a process with these variables, left to itself or with the workaround."""
    from accelerate import PartialState

    os.environ.update(variables)
    if connect is not None:
        connect_accelerate(**connect)
    state = PartialState()
    # Rank 0 hosts the store, which the others need until they are connected.
    state.wait_for_everyone()
    state.destroy_process_group()
    return state.distributed_type.value


@pytest.mark.skipif(torch.cuda.is_available(), reason="the faults are those without a GPU")
def test_accelerate_leaves_processes_on_cpus_unconnected_and_wraps_a_process_that_is_alone():
    lone = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "ACCELERATE_USE_CPU": "1"}
    assert run_world(1, _accelerates, lone, {"on_cpu": True, "launched": False}) == ["NO"]
    assert run_world(1, _accelerates, lone, {"on_cpu": True, "launched": True}) == ["MULTI_CPU"]
    assert run_world(2, _accelerates, {}, {"on_cpu": True, "launched": True}) == ["MULTI_CPU"] * 2
    assert run_world(2, _accelerates, {}, None) == ["NO"] * 2


def test_transformers_makes_a_mask_while_it_is_compiled():
    network = tiny_models.network()
    network.llm.set_attn_implementation("sdpa")
    assert all(call["attn_mask"] is not None for call in _attentions(network.train(), True)[0])


def _attentions(network, compiled):
    """Arguments of every call of SDPA in one forward pass."""
    calls = []
    ids = tiny_models.clip_ids(2)
    if compiled:

        def backend(graph, inputs):
            calls.extend(node.kwargs for node in graph.graph.nodes if node.target is nn.functional.scaled_dot_product_attention)
            return graph.forward

        torch._dynamo.reset()
        output = torch.compile(network, backend=backend, fullgraph=True)(ids)
    else:
        real = nn.functional.scaled_dot_product_attention

        def spy(*arguments, **settings):
            calls.append(settings)
            return real(*arguments, **settings)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "scaled_dot_product_attention", spy)
            output = network(ids)
    return calls, output.loss


@pytest.mark.parametrize("compiled", [False, True])
def test_causal_attention_takes_no_mask_and_has_the_loss_of_masked_attention(compiled):
    masked = tiny_models.network()
    masked.llm.set_attn_implementation("eager")
    network = copy.deepcopy(masked)
    attend_causally(network.llm)
    calls, loss = _attentions(network.train(), compiled)
    assert len(calls) == network.config.num_hidden_layers
    assert all(call["attn_mask"] is None and call["is_causal"] is True for call in calls)
    assert torch.isclose(loss, masked(tiny_models.clip_ids(2)).loss, atol=1e-5)


def test_attention_dropout_is_active_only_in_training():
    network = tiny_models.network()
    network.llm.set_attn_implementation("sdpa")
    for layer in network.llm.model.layers:
        layer.self_attn.attention_dropout = 0.5
    attend_causally(network.llm)
    assert [call["dropout_p"] for call in _attentions(network.train(), False)[0]] == [0.5, 0.5]
    assert [call["dropout_p"] for call in _attentions(network.eval(), False)[0]] == [0.0, 0.0]


def test_an_exported_configuration_does_not_name_the_attention(tmp_path):
    network = tiny_models.network()
    attend_causally(network.llm)
    network.save_transformer(tmp_path)
    assert "sdpa_causal" not in (tmp_path / "config.json").read_text()
