"""JSON of measured numbers, which may not be finite: JSON knows no NaN and no infinity, so null stands for such a number and
`not_finite` beside it says what it was.

Readers of a number then need no case of their own, and nobody takes what went wrong for what was not measured.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

NOT_FINITE = "not_finite"


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON holds them: None for every number that isn't finite, and, where there is one, `not_finite`.

    Args:
        values: By name; mappings and sequences within them are gone through.

    Returns:
        The values; `not_finite` maps the place of a number, such as `held_out_loss_by_dataset/fractal`, to `nan`, `inf` or
        `-inf`. `/` and `~` within a name are written `~1` and `~0` (RFC 6901).
    """
    found: dict[str, str] = {}
    plain = {name: _json_value(value, _escaped(name), found) for name, value in values.items()}
    return {**plain, NOT_FINITE: found} if found else plain


def restored(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `json_values` was given, of those that JSON gave back; a tuple comes back as a list."""
    plain: dict[str, Any] = json.loads(json.dumps({name: value for name, value in values.items() if name != NOT_FINITE}))
    for place, number in values.get(NOT_FINITE, {}).items():
        *path, last = (name.replace("~1", "/").replace("~0", "~") for name in place.split("/"))
        within: Any = plain
        for name in path:
            within = within[_key(within, name)]
        within[_key(within, last)] = float(number)
    return plain


def measured_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    """`json_values` as text."""
    return json.dumps(json_values(values), indent=indent, ensure_ascii=False, allow_nan=False)


def describe_not_finite(values: Mapping[str, Any]) -> str:
    """The numbers that aren't finite in words, `held_out_loss nan, ...`; empty where all are."""
    return ", ".join(f"{place} {number}" for place, number in json_values(values).get(NOT_FINITE, {}).items())


def _json_value(value: Any, place: str, found: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _json_value(part, f"{place}/{_escaped(name)}", found) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(part, f"{place}/{number}", found) for number, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        found[place] = str(float(value))
        return None
    return value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _key(container: Any, name: str) -> Any:
    """What a name of a place is in a mapping or a list."""
    return int(name) if isinstance(container, list) else name
