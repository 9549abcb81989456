"""Every setting of a Llama that changes results is used like in transformers, or refused by name."""

import json

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.common.errors import SourceError
from training.inference.incremental_llama import IncrementalLlama
from training.model.files.llama_config import parse_llama_config
from training.model.world_model import load_transformer

LAYOUT = tiny_models.layout()
POSITIONS = 160
SHAPE = {
    "model_type": "llama",
    "vocab_size": LAYOUT.vocabulary,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [3.0, 4.0, 5.0, 6.0],
    "original_max_position_embeddings": POSITIONS,
}
# As files spell it: since transformers 5 under `rope_parameters`, before that under `rope_scaling` next to `rope_theta`.
VARIANTS = {
    "plain": {},
    "theta": {"rope_theta": 123.0},
    "theta, new spelling": {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0},
    "linear, new spelling": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "llama3, new spelling": {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}},
    "yarn": {"rope_scaling": YARN},
    "yarn, new spelling": {"rope_parameters": YARN | {"rope_theta": 300.0, "beta_fast": 16.0, "attention_factor": 1.3}},
    "yarn, mscale": {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False}},
    "longrope": {"rope_scaling": LONGROPE | {"factor": 8.0}},
    "longrope, its length next to it": {
        "rope_scaling": {k: v for k, v in LONGROPE.items() if k != "original_max_position_embeddings"} | {"factor": 2.0},
        "original_max_position_embeddings": POSITIONS,
    },
    "eps": {"rms_norm_eps": 0.1},
    "activation": {"hidden_act": "gelu_new"},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "grouped queries": {"num_key_value_heads": 2},
    "one head of keys": {"num_key_value_heads": 1, "attention_bias": True},
    "wide heads": {"head_dim": 24},
    "padding": {"pad_token_id": 3},
    "pretraining_tp": {"pretraining_tp": 2},
    "dropout": {"attention_dropout": 0.3},
    "half precision": {"torch_dtype": "float16"},
    "everything off": {"sliding_window": None, "use_sliding_window": False, "partial_rotary_factor": 1.0, "auto_map": {}},
    "inert": {"_attn_implementation_autoset": True, "temperature": 0.6, "unsloth_version": "2025.1", "torchscript": False},
}


def _write(folder, fields):
    """Writes a folder like transformers, with random weights in which every part matters, and the given config."""
    built = {key: value for key, value in fields.items() if key not in ("torch_dtype", "sliding_window", "auto_map")}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig.from_dict(SHAPE | json.loads(json.dumps(built)))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name), 0.3)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(SHAPE | {"architectures": ["LlamaForCausalLM"]} | fields))
    return folder


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_logits_equal_those_of_transformers_for_whole_sequences_and_step_by_step(tmp_path, name):
    folder = _write(tmp_path, VARIANTS[name])
    expected_of = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tiny_models.clip_ids(2)[:, :POSITIONS]
    expected = expected_of(ids).logits
    network = load_transformer(folder, LAYOUT)
    hidden = network.hidden_states(ids)
    torch.testing.assert_close(network.logits(hidden), expected, atol=1e-5, rtol=0)
    decoder = IncrementalLlama(network.llm, spare=8)
    embedded = network.embed(ids)
    cache, first, pieces = decoder.copied(decoder.prefill(embedded[:, :100])), 100, []
    for length in (1, 2, ids.shape[1] - 103):
        positions = torch.arange(first, first + length).expand(len(ids), -1)
        pieces.append(decoder.logits(decoder.step(embedded[:, first : first + length], positions, cache, first + length)))
        first += length
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected[:, 100:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama3", "yarn", "longrope", "tied", "wide heads", "activation", "grouped queries"])
@torch.no_grad()
def test_a_model_that_is_written_again_gives_the_same_results_here_and_in_transformers(tmp_path, name):
    network, ids = load_transformer(_write(tmp_path, VARIANTS[name]), LAYOUT), tiny_models.clip_ids(2)
    expected = network.logits(network.hidden_states(ids))
    network.save_transformer(tmp_path / "again")
    again = load_transformer(tmp_path / "again", LAYOUT)
    torch.testing.assert_close(again.logits(again.hidden_states(ids)), expected, atol=0, rtol=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32).eval()
    torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-5, rtol=0)


REFUSED = {
    "model_type": ({"model_type": "mistral"}, r"model_type is 'mistral'.*llama"),
    "architecture": ({"architectures": ["MistralForCausalLM"]}, r"architectures is \['MistralForCausalLM'\]"),
    "another head": ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    "own code": ({"auto_map": {"AutoModel": "modeling.Mine"}}, "auto_map"),
    "sliding window": ({"sliding_window": 64}, "sliding_window is 64"),
    "chunks": ({"attention_chunk_size": 8192}, "attention_chunk_size is 8192"),
    "layer types": ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    "partly rotated": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "partly rotated, new spelling": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor is 0.5",
    ),
    "granite": ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
    "softcapping": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    "interleaved": ({"rope_interleaved": True}, "rope_interleaved"),
    "norms of queries": ({"use_qk_norm": True}, "use_qk_norm"),
    "per layer": ({"per_layer_config": {"0": {"num_attention_heads": 2}}}, "per_layer_config"),
    "experts": ({"num_local_experts": 8}, "num_local_experts"),
    "unknown rope": ({"rope_scaling": {"type": "su", "factor": 2.0}}, r"rope_type is 'su'; .*linear"),
    "rope by layers": ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, "full_attention"),
    "rope without its factor": ({"rope_scaling": {"type": "linear"}}, "factor"),
    "rope of words": ({"rope_scaling": {"type": "linear", "factor": "two"}}, "factor is 'two'"),
    "rope that shrinks to nothing": ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "factor is 0.0"),
    "two ropes": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "rope_scaling.*rope_parameters",
    ),
    "two thetas": ({"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, r"rope_theta.*5\.0"),
    "two types": ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}}, "linear.*dynamic"),
    "longrope that changes within a sequence": (
        {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 80}},
        "longrope.*80.*160",
    ),
    "longrope of another width": ({"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "short_factor"),
    "theta": ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    "activation": ({"hidden_act": "sparkle"}, "hidden_act is 'sparkle'"),
    "eps": ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
    "eps of words": ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    "heads of keys": ({"num_key_value_heads": 3}, "num_key_value_heads is 3.*4"),
    "odd heads": ({"head_dim": 9}, "head_dim is 9"),
    "heads": ({"num_attention_heads": 5}, "5"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "words": ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
    "truth": ({"mlp_bias": 1}, "mlp_bias is 1"),
    "dropout": ({"attention_dropout": 1.5}, "attention_dropout is 1.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_settings_are_refused_by_name(name):
    fields, message = REFUSED[name]
    with pytest.raises(SourceError, match=message) as caught:
        parse_llama_config(json.dumps(SHAPE | fields), "there/config.json")
    assert str(caught.value).startswith("there/config.json") and "\n" not in str(caught.value)


def test_harmless_unknown_keys_are_logged(caplog):
    parse_llama_config(json.dumps(SHAPE | {"favourite_colour": "blue", "also_unknown": 3}), "there/config.json")
    assert "there/config.json" in caplog.text and "also_unknown, favourite_colour" in caplog.text


def test_a_configuration_without_a_key_has_the_published_default():
    config = parse_llama_config(json.dumps(SHAPE), "config.json")
    assert config.rms_norm_eps == 1e-6 and config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert config.num_key_value_heads == 4 and config.head_dim == 8


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", '{"model_type": "llama"}'])
def test_an_invalid_configuration_is_refused(text):
    with pytest.raises(SourceError, match=r"^config.json"):
        parse_llama_config(text, "config.json")
