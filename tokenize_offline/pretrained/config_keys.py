"""What to do with keys of a model's `config.json` that our code doesn't know: off, said, or refused.

A key that is off (null, false, empty, a factor of one) changes nothing. Of the others, one that by its name may change what the
network computes is refused: predictions would be silently wrong. The rest, such as notes of whoever wrote the file, is passed
over with a warning.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

log = logging.getLogger(__name__)

# Parts of names under which configurations of published families keep what changes arithmetic.
_TELLING = (
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
    """Whether a key that our code doesn't know changes nothing, whatever it is about."""
    if name.endswith(_RATIOS):
        return value is None or (isinstance(value, int | float) and value == 1 and not isinstance(value, bool))
    return value is None or value is False or value == 0 or value in ("", [], {})


def unsupported_key(config: Mapping[str, Any], known: Collection[str]) -> str | None:
    """Why a configuration can't be built, where it has a key that our code doesn't know and that may change arithmetic.

    Args:
        config: As read from the file.
        known: Keys that are heeded, checked or known to change nothing.

    Returns:
        A message that names the first such key and its value; None where there is none.
    """
    for name, value in _unknown(config, known).items():
        if any(part in name.lower() for part in _TELLING):
            return (
                f"{name} is {shortened(value)}, which this code doesn't compute and which may change what the model predicts: "
                "take another model, or take the key out if it changes nothing"
            )
    return None


def warn_unknown_keys(config: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Warn of the keys of the file `where` that are neither known nor refused by `unsupported_key`."""
    if unknown := sorted(_unknown(config, known)):
        log.warning("%s has keys that nothing is known of, passed over: %s", where, ", ".join(unknown))


def shortened(value: Any, most: int = 60) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + ".."


def _unknown(config: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    # Libraries keep notes of their own, about versions and ways to compute, under names with an underscore in front.
    return {
        name: value
        for name, value in config.items()
        if name not in known and not name.startswith("_") and not is_off(name, value)
    }
