"""Reads a transformer's `config.json` so that the network computes exactly what the file says.

Every key that changes results is used as transformers uses it, or refused by name; transformers itself ignores unknown keys.
Keys without effect here (text, generation, implementation) are dropped, except those that published folders keep.
"""

import json
import math
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pipeline.common.errors import SourceError
from tokenize_offline.pretrained.config_keys import shortened, unsupported_key, warn_unknown_keys
from training.model.files.rotary import BY_POSITIONS, rope_parameters

_MODEL_TYPE, _CLASS = "llama", "LlamaForCausalLM"
# Whole numbers above 0; the optional ones may be missing or null.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")
_SWITCHES = ("attention_bias", "mlp_bias", "tie_word_embeddings")
_ROTARY = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
# Other keys of published folders; they don't change the scores.
_KEPT = ("bos_token_id", "eos_token_id", "initializer_range", "use_cache", "pretraining_tp")
_IDLE = (
    "architectures",
    "attn_implementation",
    "chunk_size_feed_forward",  # not used by Llama
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "model_type",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",  # an ordinary token here: nothing is padded
    "problem_type",
    "return_dict",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torch_dtype",  # the weight files have their own dtype
    "torchscript",
    "transformers_version",
    "use_flash_attention_2",
    "use_return_dict",
    # Text generation; transformers 4 stored these here.
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefix",
    "repetition_penalty",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)
_KNOWN = {*_SIZES, *_OPTIONAL_SIZES, *_SWITCHES, *_ROTARY, *_KEPT, *_IDLE, "hidden_act", "rms_norm_eps", "attention_dropout"}
_LARGEST = 1 << 40
_WIDEST_HEAD = 1 << 16


def parse_llama_config(text: bytes | str, where: str) -> LlamaConfig:
    """Reads a transformer's `config.json`.

    Args:
        text: Content of the file.
        where: Name of the file, for messages.

    Raises:
        SourceError: It is not a Llama, or one that this code can't compute; the message names the key and its value.
    """
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError(f"it holds {shortened(raw)}, not a JSON object")
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not a Llama configuration ({error})") from error
    try:
        config = LlamaConfig(**_fields(raw))
        # Building the table checks all its parameters.
        table = LlamaRotaryEmbedding(config).inv_freq
        if not bool(table.isfinite().all()):
            raise ValueError(f"the rotary embedding of {config.rope_parameters} has NaN or infinite values")
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from error
    except (StrictDataclassError, ArithmeticError, TypeError, KeyError) as error:
        raise SourceError(f"{where} is not a Llama configuration ({' '.join(str(error).split())})") from error
    warn_unknown_keys(raw, _KNOWN, where)
    return config


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `LlamaConfig`."""
    if (kind := raw.get("model_type")) != _MODEL_TYPE:
        raise ValueError(f"model_type is {kind!r}, not {_MODEL_TYPE}")
    if (classes := raw.get("architectures") or [_CLASS]) != [_CLASS]:
        raise ValueError(f"architectures is {shortened(classes)}; only {[_CLASS]} is supported")
    if (reason := unsupported_key(raw, _KNOWN)) is not None:
        raise ValueError(reason)
    fields = {name: raw[name] for name in _KEPT if name in raw}
    for name in (*_SIZES, *_OPTIONAL_SIZES):
        value = raw.get(name)
        if value is None and name in _OPTIONAL_SIZES:
            continue
        if not _is_number(value) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            raise ValueError(f"{name} is {value!r}, not a whole number above 0")
        fields[name] = value
    for name in _SWITCHES:
        fields[name] = raw.get(name) or False
        if not isinstance(fields[name], bool):
            raise ValueError(f"{name} is {raw[name]!r}, neither true nor false")
    heads, groups = fields["num_attention_heads"], fields.get("num_key_value_heads", 1)
    if heads % groups:
        raise ValueError(f"num_key_value_heads is {groups}, which doesn't divide num_attention_heads {heads}")
    width = fields.get("head_dim", fields["hidden_size"] // heads)
    if width % 2 or not 2 <= width <= _WIDEST_HEAD:
        raise ValueError(f"head_dim is {width}, not an even number up to {_WIDEST_HEAD}: heads are rotated by pairs of columns")
    activation = raw.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise ValueError(f"hidden_act is {activation!r}, which transformers doesn't support")
    return fields | {
        "architectures": [_CLASS],
        "hidden_act": activation,
        "rms_norm_eps": _number_in(raw, "rms_norm_eps", 1e-6, math.inf),
        "attention_dropout": _number_in(raw, "attention_dropout", 0.0, 1.0),
        "rope_parameters": rope_parameters(raw, fields["max_position_embeddings"], width),
        "pad_token_id": None,
    }


def _number_in(raw: dict[str, Any], name: str, default: float, end: float) -> float:
    value = default if raw.get(name) is None else raw[name]
    if not _is_number(value) or not 0 <= value < end:
        raise ValueError(f"{name} is {value!r}, not a number from 0 to below {end:g}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def arithmetic(config: LlamaConfig) -> dict[str, Any]:
    """Returns the settings that the recipe's `model` section lacks: equal for two Llamas that differ only in shape."""
    fixed = ("hidden_act", "rms_norm_eps", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "rope_parameters")
    return {name: getattr(config, name) for name in fixed}


def depends_on_positions(config: LlamaConfig) -> bool:
    """Returns whether the same weights give other results with another `max_position_embeddings`."""
    return dict(config.rope_parameters or {})["rope_type"] in BY_POSITIONS
