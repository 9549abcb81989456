"""Decides what happens to unknown keys of a model's `config.json`: ignored, ignored with a warning, or an error.

A key that is off (null, false, empty, a factor of one) is ignored. A key whose name suggests that it changes what the network
computes is an error, because predictions would be silently wrong. All other keys are ignored with a warning.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

log = logging.getLogger(__name__)

# Substrings of key names that change the arithmetic in published model families.
_ARITHMETIC = (
    "act_",
    "activation",
    "adapter",
    "alibi",
    "attention",
    "attn",
    "auto_map",
    "bias",
    "block",
    "channel",
    "clip",
    "codebook",
    "conv",
    "embed",
    "expert",
    "factor",
    "head",
    "kernel",
    "latent",
    "layer",
    "logit",
    "mlp",
    "moe",
    "multiplier",
    "norm",
    "patch",
    "pool",
    "position",
    "quant",
    "resid",
    "rope",
    "rotary",
    "scal",
    "softcap",
    "sparse",
    "sliding",
    "window",
)
_RATIOS = ("factor", "multiplier", "scale", "scaling")


def is_off(name: str, value: Any) -> bool:
    """Whether the value of an unknown key turns its feature off."""
    if name.endswith(_RATIOS):
        return value is None or (isinstance(value, int | float) and value == 1 and not isinstance(value, bool))
    return value is None or value is False or value == 0 or value in ("", [], {})


def unsupported_key(config: Mapping[str, Any], known: Collection[str]) -> str | None:
    """An error message for the first unknown key that may change the arithmetic; None if there is no such key.

    Args:
        config: Content of the file.
        known: Keys that this code supports or knows to be irrelevant.
    """
    for name, value in _unknown(config, known).items():
        if any(part in name.lower() for part in _ARITHMETIC):
            return (
                f"{name} is {shortened(value)}, which this code does not support and which may change the predictions: "
                "use another model, or remove the key if it changes nothing"
            )
    return None


def warn_unknown_keys(config: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Warn about the unknown keys of the file `where`. Call it after `unsupported_key`."""
    if unknown := sorted(_unknown(config, known)):
        log.warning("%s has unknown keys, which are ignored: %s", where, ", ".join(unknown))


def shortened(value: Any, most: int = 60) -> str:
    """The `repr` of a value, cut for a message."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + ".."


def _unknown(config: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    # Libraries keep notes, such as versions, under names that start with an underscore.
    return {
        name: value
        for name, value in config.items()
        if name not in known and not name.startswith("_") and not is_off(name, value)
    }
