"""Reads, checks and writes a tokenizer's `config.json` in its published form.

Published keys that this network does not depend on are written back unchanged. Values that need another network are an error,
so that weights never run in a network of another shape or other arithmetic.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config.model import NORM_GROUPS, TokenizerShape
from tokenize_offline.pretrained.config_keys import unsupported_key, warn_unknown_keys
from tokenize_offline.token_layout import IdLayout, id_layout, latent_grid

CLASS_NAME = "CompressiveVQModel"
# Readers of the published code expect these keys, but the network does not depend on them.
_IGNORED_KEYS: dict[str, Any] = {
    "force_upcast": True,
    "lookup_from_codebook": True,
    "sample_size": 32,
    "scaling_factor": 0.18215,
}
_FIXED_VALUES: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "norm_type": "group",
    "mid_block_add_attention": False,
}


@dataclass(frozen=True)
class CompressiveVQConfig(TokenizerShape):
    """The checked shape of an existing tokenizer."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            for value in values if field.name == "block_out_channels" else (values,):
                if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
                    raise ConfigError(f"tokenizer config: {field.name} must be integers from 1 to 2^20, not {values!r}")
        if any(channels % NORM_GROUPS for channels in self.block_out_channels):
            raise ConfigError(
                f"tokenizer config: block_out_channels must be multiples of {NORM_GROUPS} (group normalisation), "
                f"not {self.block_out_channels}"
            )
        downsamplings = len(self.block_out_channels) - 1
        if self.resolution % (self.patch_size << downsamplings):
            raise ConfigError(
                f"tokenizer config: resolution {self.resolution} must be a multiple of {self.patch_size << downsamplings} "
                f"({downsamplings} downsamplings by 2, then patches of {self.patch_size})"
            )

    @property
    def latent_grid(self) -> int:
        """Side of the latent map."""
        return latent_grid(self)

    @property
    def id_layout(self) -> IdLayout:
        """Id layout of this tokenizer."""
        return id_layout(self, self.context_length)

    def to_json(self) -> str:
        """The text of a `config.json` that the published code can read."""
        published = {
            "_class_name": CLASS_NAME,
            **_IGNORED_KEYS,
            **_fixed_values(len(self.block_out_channels)),
            **dataclasses.asdict(self),
            "vq_embed_dim": None,
        }
        return json.dumps(published, indent=2, sort_keys=True) + "\n"


def parse_config(text: bytes | str, where: str) -> CompressiveVQConfig:
    """Parse a published `config.json`. Keys that may change the network are checked; other unknown keys are ignored.

    Args:
        text: Content of the file.
        where: Path of the file, for messages.

    Raises:
        ConfigError: It is not a tokenizer's config, lacks a key, or describes a network that this code can't build.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} is not a JSON object; expected the config.json of a tokenizer")
    if raw.get("_class_name", CLASS_NAME) != CLASS_NAME:
        raise ConfigError(f"{where} describes a {raw['_class_name']}, not a {CLASS_NAME}; pass a tokenizer's folder")
    names = [field.name for field in dataclasses.fields(CompressiveVQConfig)]
    missing = [name for name in names if name not in raw]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; is it the config.json of a {CLASS_NAME}?")
    channels = raw["block_out_channels"]
    if not isinstance(channels, list) or not channels:
        raise ConfigError(f"{where}: block_out_channels must be a list of channels, not {channels!r}")
    _require_fixed(raw, len(channels), where)
    known = {*names, *_IGNORED_KEYS, *_fixed_values(len(channels)), "vq_embed_dim"}
    if (reason := unsupported_key(raw, known)) is not None:
        raise ConfigError(f"{where}: {reason}")
    warn_unknown_keys(raw, known, where)
    try:
        return CompressiveVQConfig(**{name: raw[name] for name in names} | {"block_out_channels": tuple(channels)})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _fixed_values(blocks: int) -> dict[str, Any]:
    return {
        **_FIXED_VALUES,
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "norm_num_groups": NORM_GROUPS,
    }


def _require_fixed(raw: dict[str, Any], blocks: int, where: str) -> None:
    for key, value in _fixed_values(blocks).items():
        if raw.get(key, value) != value:
            raise ConfigError(f"{where}: {key} is {raw[key]!r}; only {value!r} is supported")
    width = raw["latent_channels"]
    if raw.get("vq_embed_dim") not in (None, width):
        raise ConfigError(
            f"{where}: vq_embed_dim is {raw['vq_embed_dim']!r}; only null or latent_channels ({width}) is supported"
        )
