"""JSON of measured numbers: null replaces a number that is not finite, and `not_finite` keeps its true value.

JSON has no NaN and no infinity. Readers of a number need no special case, and a failed measurement is not taken for a missing
one.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

NOT_FINITE = "not_finite"


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values ready for JSON: None for each number that is not finite, and then also `not_finite`.

    Args:
        values: Values by name; nested mappings and sequences are included.

    Returns:
        The values. `not_finite` maps the path of a number, such as `held_out_loss_by_dataset/fractal`, to `nan`, `inf` or
            `-inf`;
            `/` and `~` within a name are written `~1` and `~0` (RFC 6901).
    """
    not_finite: dict[str, str] = {}
    plain = {name: _json_value(value, _escaped(name), not_finite) for name, value in values.items()}
    return {**plain, NOT_FINITE: not_finite} if not_finite else plain


def restored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that `json_values` got, from its result after a round trip through JSON; tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps({name: value for name, value in values.items() if name != NOT_FINITE}))
    for path, number in values.get(NOT_FINITE, {}).items():
        *parents, last = (name.replace("~1", "/").replace("~0", "~") for name in path.split("/"))
        within: Any = plain
        for name in parents:
            within = within[_key(within, name)]
        within[_key(within, last)] = float(number)
    return plain


def measured_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    """Returns `json_values` as text."""
    return json.dumps(json_values(values), indent=indent, ensure_ascii=False, allow_nan=False)


def describe_not_finite(values: Mapping[str, Any]) -> str:
    """Lists the numbers that are not finite, as `held_out_loss nan, ...`; empty if all are finite."""
    return ", ".join(f"{path} {number}" for path, number in json_values(values).get(NOT_FINITE, {}).items())


def _json_value(value: Any, path: str, found: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _json_value(part, f"{path}/{_escaped(name)}", found) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(part, f"{path}/{number}", found) for number, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        found[path] = str(float(value))
        return None
    return value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _key(container: Any, name: str) -> Any:
    """Returns the key in a mapping, or the index in a list, of one part of a path."""
    return int(name) if isinstance(container, list) else name
