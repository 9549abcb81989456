"""The recipe that lies beside a model: what it says of the clips and the tokenizer is true of these, whatever was asked for.

A training reads token shards, not the recipe's sections about how they were made. So a recipe that names no tokenizer, or the
default one, would describe another than the one that the model belongs to.
"""

import dataclasses
from typing import Any, get_args

from pipeline.config.model import Precision, TokenizerShape
from pipeline.config.recipe import Recipe
from tokenize_offline.token_layout import TokenLayout
from tokenize_offline.tokenizer import CompressiveVQConfig


def with_shard_settings(recipe: Recipe, layout: TokenLayout, tokenizer: CompressiveVQConfig | None) -> Recipe:
    """A recipe with the clips and the tokenizer that token shards were made with.

    Args:
        recipe: Of a training.
        layout: Of its token shards.
        tokenizer: That made them, with the context length of its own; None leaves the section as it is.
    """
    section = recipe.tokenizer
    if tokenizer is not None:
        shape: dict[str, Any] = {field.name: getattr(tokenizer, field.name) for field in dataclasses.fields(TokenizerShape)}
        shape["context_length"] = layout.context_length
        # Clips that tokenizers are trained on must hold more frames than the context.
        shape["segment_length"] = max(section.segment_length, layout.context_length + 1)
        shape["horizon"] = max(section.horizon, shape["segment_length"])
        if layout.precision in get_args(Precision):
            shape["precision"] = layout.precision
        section = dataclasses.replace(section, **shape)
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, resolution=layout.resolution),
        clips=dataclasses.replace(recipe.clips, length=layout.clip_length, context_length=layout.context_length),
        tokenizer=section,
    )
