"""Checks the rotary embedding of a Llama's configuration and converts it to one form.

transformers 5 keeps all of it under `rope_parameters`. Before, `rope_theta` was a separate key, and scaling was under
`rope_scaling`, with `type` for `rope_type`. transformers computes the tables. Refused here is what transformers would ignore
with a warning, or compute differently for other lengths of the same sequence.
"""

import math
from collections.abc import Mapping
from typing import Any

_DEFAULT_THETA = 10000.0
_LENGTH = "original_max_position_embeddings"
# Required and optional keys of each type, besides `rope_type` and `rope_theta`.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {_LENGTH}),
    "yarn": (
        {"factor"},
        {_LENGTH, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
    "longrope": ({"short_factor", "long_factor"}, {_LENGTH, "factor", "attention_factor"}),
}
_SCALED_BY_LENGTH = ("llama3", "yarn", "longrope")
# Types whose tables depend on the number of positions that the model is built for.
BY_POSITIONS = ("dynamic", "longrope")


def rope_parameters(raw: Mapping[str, Any], positions: int, head_width: int) -> dict[str, Any]:
    """Returns the `rope_parameters` of a configuration.

    Args:
        raw: The configuration as in its file, in either form.
        positions: Number of positions that the model is built for.
        head_width: Width of an attention head.

    Raises:
        ValueError: It needs something that isn't computed, or contradicts itself. The message names the keys.
    """
    stated = _only_one(raw)
    kinds = {stated[key] for key in ("type", "rope_type") if stated.get(key) is not None}
    if len(kinds) > 1:
        raise ValueError(f"rotary embedding: type is {stated['type']!r} but rope_type is {stated['rope_type']!r}: remove one")
    kind = kinds.pop() if kinds else "default"
    if kind not in _KEYS:
        raise ValueError(f"rope_type is {kind!r}; supported: {', '.join(_KEYS)}")
    needed, allowed = _KEYS[kind]
    found = {key: value for key, value in stated.items() if key not in ("type", "rope_type") and value is not None}
    for key in ("rope_theta", "partial_rotary_factor", _LENGTH):
        _take_in(found, key, raw.get(key), needed | allowed)
    if (part := found.pop("partial_rotary_factor", 1)) != 1:
        raise ValueError(f"partial_rotary_factor is {part!r}; only whole heads are rotated")
    if unknown := sorted(found.keys() - needed - allowed - {"rope_theta"}):
        raise ValueError(f"rotary embedding of rope_type {kind}: unsupported {', '.join(unknown)}")
    if missing := sorted(needed - found.keys()):
        raise ValueError(f"rotary embedding of rope_type {kind} lacks {', '.join(missing)}")
    found.setdefault("rope_theta", _DEFAULT_THETA)
    if kind in _SCALED_BY_LENGTH:
        found.setdefault(_LENGTH, positions)
    for key, value in found.items():
        _require_numbers(key, value, head_width)
    if kind == "longrope" and found[_LENGTH] < positions:
        raise ValueError(
            f"longrope with {_LENGTH} {found[_LENGTH]} below max_position_embeddings {positions} treats short and long "
            "sequences differently, which a model that predicts token by token can't"
        )
    return {"rope_type": kind, **found}


def _only_one(raw: Mapping[str, Any]) -> dict[str, Any]:
    stated = {key: raw[key] for key in ("rope_scaling", "rope_parameters") if raw.get(key)}
    for key, value in stated.items():
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is {value!r}, not a mapping")
    if len(stated) == 2 and stated["rope_scaling"] != stated["rope_parameters"]:
        raise ValueError(
            f"rope_scaling is {stated['rope_scaling']} but rope_parameters is {stated['rope_parameters']}: remove one"
        )
    return dict(next(iter(stated.values()), {}))


def _take_in(found: dict[str, Any], key: str, separate: Any, used: set[str]) -> None:
    """Takes over a key that older files have next to the mapping instead of in it."""
    if separate is None or (key == _LENGTH and key not in used):
        return
    if found.setdefault(key, separate) != separate:
        raise ValueError(f"{key} is {separate!r} but {found[key]!r} in the parameters of the rotary embedding: remove one")


def _require_numbers(key: str, value: Any, head_width: int) -> None:
    if key == "truncate":
        if not isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}, neither true nor false")
        return
    listed = key in ("short_factor", "long_factor")
    if listed and not (isinstance(value, list) and len(value) == head_width // 2):
        raise ValueError(f"{key} must have {head_width // 2} numbers, one per two columns of a head")
    for number in value if listed else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ValueError(f"{key} is {number!r}, not a number above 0")
