"""Builds the network that tokenizer training starts from: a new one of the recipe's shape, or a trained one.

A trained network may get another context length or codebooks of another size; the rest of its shape stays.
"""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.config.model import TokenizerConfig, TokenizerShape
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training.tokenizer_training.attention import attend_locally
from training.tokenizer_training.codebooks import cluster_centres

_CONTEXT_ROWS, _CODES = "kv_pos_emb", "quantize.embedding.weight"
_CODEBOOKS = ("num_vq_embeddings", "num_dyn_embeddings")


def model_config(config: TokenizerConfig) -> CompressiveVQConfig:
    """Returns the shape of a new tokenizer, from the recipe."""
    shape = {field.name: getattr(config, field.name) for field in dataclasses.fields(TokenizerShape)}
    return CompressiveVQConfig(**shape | {"block_out_channels": tuple(config.block_out_channels)})


def take_shape(config: TokenizerConfig, trained: CompressiveVQConfig, given: Iterable[str]) -> TokenizerConfig:
    """Returns the recipe's section with the shape of a trained tokenizer, except for context length and codebook sizes.

    Args:
        config: Section `tokenizer` of the recipe.
        trained: Configuration of the tokenizer to start from.
        given: Keys of the section that the user set.

    Raises:
        ConfigError: The user set a shape that the trained tokenizer doesn't have.
    """
    names = [field.name for field in dataclasses.fields(TokenizerShape) if field.name != "context_length"]
    shape = {name: getattr(trained, name) for name in names}
    for name in sorted(set(given) & shape.keys()):
        wanted = getattr(config, name)
        if name in _CODEBOOKS:
            shape[name] = wanted
        if _listed(wanted) != _listed(shape[name]):
            raise ConfigError(
                f"tokenizer.{name} is {wanted}, but the tokenizer of --init_from has {shape[name]}: "
                "leave the key out of the recipe"
            )
    return dataclasses.replace(config, **shape)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def starting_model(config: TokenizerConfig, trained: CompressiveVQModel | None) -> CompressiveVQModel:
    """Returns the network that training starts from, in training mode.

    With fewer context frames than the trained network, its last positions are kept, as published. With more, every added
    earlier frame starts with the positions of the earliest learned frame. Codes added to a codebook start at random, until
    `tokenizer.dead_code_reset_every` gives them features; a smaller codebook starts with cluster centres of the trained codes.

    Args:
        config: Section `tokenizer` of the recipe.
        trained: Tokenizer to start from, with the same shape except for these; None starts with random weights.
    """
    model = CompressiveVQModel(model_config(config))
    if trained is not None:
        model.load_state_dict(_fitted(trained, model.state_dict()))
    if config.local_attention:
        attend_locally(model)
    return model


def _fitted(trained: CompressiveVQModel, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the trained weights in the shapes of `own`."""
    state: dict[str, Tensor] = {}
    for name, tensor in trained.state_dict().items():
        if name.endswith(_CONTEXT_ROWS):
            tensor = _with_context(tensor, len(own[name]), trained.config.context_length)
        elif name.endswith(_CODES):
            count = len(own[name])
            tensor = cluster_centres(tensor, count) if count < len(tensor) else torch.cat([tensor, own[name][len(tensor) :]])
        state[name] = tensor
    return state


def _with_context(rows: Tensor, wanted: int, context_length: int) -> Tensor:
    """Returns positions (t H W, C), cut or extended at the front to `wanted` rows."""
    grid = len(rows) // context_length
    added = max(wanted - len(rows), 0) // grid
    return torch.cat([rows[:grid]] * added + [rows])[-wanted:].clone()
