"""Makes the recipe of an exported model describe the clips and tokenizer that it was really trained on.

Training reads token shards and ignores the recipe's sections about how they were made. So these sections may describe another
tokenizer than the model's.
"""

import dataclasses
from typing import Any, get_args

from pipeline.config.model import Precision, TokenizerShape
from pipeline.config.recipe import Recipe
from tokenize_offline.token_layout import TokenLayout
from tokenize_offline.tokenizer import CompressiveVQConfig


def with_shard_settings(recipe: Recipe, layout: TokenLayout, tokenizer: CompressiveVQConfig | None) -> Recipe:
    """Returns a recipe with the clips and the tokenizer of the token shards.

    Args:
        recipe: Recipe of the training.
        layout: Layout of its token shards.
        tokenizer: Configuration of the tokenizer that made them; None leaves the section unchanged.
    """
    section = recipe.tokenizer
    if tokenizer is not None:
        shape: dict[str, Any] = {field.name: getattr(tokenizer, field.name) for field in dataclasses.fields(TokenizerShape)}
        shape["context_length"] = layout.context_length
        # Clips for tokenizer training must have more frames than the context.
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
