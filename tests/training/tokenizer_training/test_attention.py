"""Attention in training is causal by SDPA's flag: with a mask in its place there is no flash kernel."""

import copy

import pytest
import tiny_models
import torch
from torch import nn

from training.trainer.deepspeed_engine import attend_causally


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
def test_no_attention_takes_a_mask_and_the_loss_is_that_of_masked_attention(compiled):
    masked = tiny_models.network()
    masked.llm.set_attn_implementation("eager")
    network = copy.deepcopy(masked)
    attend_causally(network)
    calls, loss = _attentions(network.train(), compiled)
    assert len(calls) == network.config.num_hidden_layers
    assert all(call["attn_mask"] is None and call["is_causal"] is True for call in calls)
    assert torch.isclose(loss, masked(tiny_models.clip_ids(2)).loss, atol=1e-5)


def test_dropout_falls_on_attention_weights_in_training_alone():
    network = tiny_models.network()
    network.llm.set_attn_implementation("sdpa")
    for layer in network.llm.model.layers:
        layer.self_attn.attention_dropout = 0.5
    attend_causally(network)
    assert [call["dropout_p"] for call in _attentions(network.train(), False)[0]] == [0.5, 0.5]
    assert [call["dropout_p"] for call in _attentions(network.eval(), False)[0]] == [0.0, 0.0]


def test_what_is_exported_says_nothing_of_it(tmp_path):
    network = tiny_models.network()
    attend_causally(network)
    network.save_transformer(tmp_path)
    assert "sdpa_causal" not in (tmp_path / "config.json").read_text()
