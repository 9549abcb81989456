"""Which columns of an RLDS data set carry what: decided by its spec, before any record is read.

Each thing that an episode needs is looked up under the names that Open X-Embodiment sets give it. Only these columns are ever
taken out of a record: embeddings, depth and other cameras cost nothing.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.common.errors import ConfigError
from pipeline.config.catalog import DatasetEntry
from pipeline.sources.rlds.features import Feature, Shape

_INSTRUCTION_NAMES = ("language_instruction", "natural_language_instruction", "instruction")
_EPISODE_ID_NAMES = ("episode_id", "file_path")
_STATE_NAMES = ("state", "robot_state", "proprio")


@dataclass(frozen=True)
class Column:
    """One feature as records hold it.

    Attributes:
        path: Of the feature, e.g. `steps/observation/image`.
        shape: Of one step's value (or of the episode's, outside `steps`); None for what only the record tells.
        dtype: Of its numbers, by name.
        encoding: Of a tensor: `none` as numbers, `bytes` as one string of its bytes, `zlib` as these compressed.
        sequences: In how many sequences a step's value is.
        spans: How many steps a value is for, of which the first one is taken.
        description: What the spec says of it.
    """

    path: str
    shape: Shape = ()
    dtype: str = ""
    encoding: str = "none"
    sequences: int = 0
    spans: int = 1
    description: str = ""

    @property
    def name(self) -> str:
        """The last component of the path that names it within its group."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def width(self) -> int | None:
        """Numbers in one step's value; None where only the record tells."""
        return None if self.sequences or None in self.shape else math.prod(side or 0 for side in self.shape)

    @property
    def values(self) -> str:
        """Key of its values in a record."""
        if self.sequences:
            return f"{self.path}/ragged_flat_values"
        # Of a tensor with several unknown sides the record keeps the shape too.
        return f"{self.path}/value" if self.shape.count(None) > 1 else self.path


@dataclass(frozen=True)
class EpisodeSpec:
    """Where an episode's parts lie in a record.

    Attributes:
        camera: The image feature.
        encoded: Whether it holds encoded images, and not pixels.
        action: Parts of the action, side by side in this order; none where the set has no actions.
        state: Parts of the state.
        reward: Of each step.
        is_terminal: Of each step.
        instruction: Text, or padded integers that spell it.
        episode_id: The set's own name for the episode.
        success: Whether the episode succeeded, where the catalog asks to pass over those that did not.
        ignored: Features under the names of an episode's parts that are not taken, each with the reason.
    """

    camera: Column
    encoded: bool
    action: tuple[Column, ...]
    state: tuple[Column, ...]
    reward: Column | None
    is_terminal: Column | None
    instruction: Column | None
    episode_id: Column | None
    success: Column | None
    ignored: tuple[str, ...]


def episode_spec(features: Mapping[str, Feature], entry: DatasetEntry) -> EpisodeSpec:
    """Find an episode's parts among the features of a data set.

    Args:
        features: Path -> feature, from `read_features`.
        entry: Says which camera, whether actions are wanted, and how many future steps one spans.

    Raises:
        ConfigError: The data set has no such camera, and the message says which it has; or its actions can't be read.
    """
    camera = _camera(features, entry)
    numeric = {path: _column(path, feature) for path, feature in features.items() if feature.has_numbers}
    action, ignored = _action(features, entry) if entry.actions else ((), [])
    state = _parts(numeric, tuple(f"steps/observation/{name}" for name in _STATE_NAMES))
    reward, is_terminal = (_scalar(numeric.get(f"steps/{name}")) for name in ("reward", "is_terminal"))
    of_episode = {path: feature for path, feature in features.items() if not path.startswith("steps/")}
    instruction = _named(features, _INSTRUCTION_NAMES)
    for what, found, names in (
        ("states", state, [f"steps/observation/{name}" for name in _STATE_NAMES]),
        ("a reward", reward, ["steps/reward"]),
        ("the end of an episode", is_terminal, ["steps/is_terminal"]),
        ("an instruction", instruction, [path for path in features if path.rsplit("/", 1)[-1] in _INSTRUCTION_NAMES]),
    ):
        for path in [path for name in names for path in _below(features, name)] if not found else ():
            ignored.append(f"feature {path}: {features[path].form}, which can't be read as {what}")
    success = numeric.get("success") if entry.success_filter else None
    return EpisodeSpec(
        camera=camera,
        encoded=features[camera.path].kind == "image",
        action=action,
        state=state,
        reward=reward,
        is_terminal=is_terminal,
        instruction=instruction,
        episode_id=_named(of_episode, _EPISODE_ID_NAMES),
        success=success,
        ignored=tuple(dict.fromkeys(ignored)),
    )


def _column(path: str, feature: Feature, spans: int = 1) -> Column:
    return Column(path, feature.shape, feature.dtype, feature.encoding, feature.sequences, spans, feature.description)


def _action(features: Mapping[str, Feature], entry: DatasetEntry) -> tuple[tuple[Column, ...], list[str]]:
    """The parts of the action, and what beside them is not taken: what is no numbers at all, such as a note in words.

    Raises:
        ConfigError: There is nothing that can be read, or something that may be numbers but not in a form that can be.
    """
    there = {path: features[path] for path in _below(features, "steps/action")}
    parts = tuple(_column(path, one, entry.future_steps) for path, one in there.items() if one.has_numbers)
    other = {path: one.form for path, one in there.items() if one.kind != "opaque" and not one.has_numbers}
    unknown = {path: one.form for path, one in there.items() if one.kind == "opaque"}
    if unknown or (other and not parts):
        named = "; ".join(f"{path} is {form}" for path, form in (unknown or other).items())
        raise ConfigError(
            f"{entry.name}: the action can't be read: {named}. Actions are read as numbers: tensors of any shape, also encoded "
            "as bytes or zlib, and sequences of one length. Pass --no_actions to ingest without actions"
        )
    return parts, [f"feature {path} of the action: {form}, no numbers" for path, form in other.items()]


def _below(features: Mapping[str, Feature], group: str) -> list[str]:
    """The paths of a feature, or of what it consists of, in the order of names."""
    return sorted(path for path in features if path == group or path.startswith(group + "/"))


def _scalar(column: Column | None) -> Column | None:
    return column if column is not None and column.width == 1 else None


def _parts(numeric: Mapping[str, Column], groups: tuple[str, ...]) -> tuple[Column, ...]:
    """The numeric features that make up the first group there is: itself, or what it consists of in the order of names."""
    for group in groups:
        parts = [numeric[path] for path in sorted(numeric) if path == group or path.startswith(group + "/")]
        if parts:
            return tuple(parts)
    return ()


def action_meaning(parts: Sequence[Column], widths: Sequence[int | None]) -> str:
    """What the columns of an action mean: `name: columns` of each part, with the spec's own description where it has one.

    Args:
        parts: Of the action.
        widths: How many columns each of them has; None where only the record tells.
    """
    words = []
    for column, width in zip(parts, widths, strict=True):
        name = column.path.removeprefix("steps/action").strip("/") or "action"
        shown = "?" if width is None else width
        words.append(f"{name}: {shown}" + (f" ({column.description[:500]})" if column.description else ""))
    return ", ".join(words)


def _named(features: Mapping[str, Feature], names: tuple[str, ...]) -> Column | None:
    """The first feature of one of these names, in the order of the names: text, or numbers."""
    for name in names:
        for path in sorted(features):
            feature = features[path]
            is_one = path.rsplit("/", 1)[-1] == name and not feature.sequences
            if is_one and (feature.kind == "text" or (feature.has_numbers and None not in feature.shape)):
                return _column(path, feature)
    return None


def camera_paths(features: Mapping[str, Feature]) -> dict[str, str]:
    """Name -> path of the features that are colour cameras."""
    paths = [path for path, feature in features.items() if path.startswith("steps/") and _is_camera(feature)]
    return {path.removeprefix("steps/").removeprefix("observation/"): path for path in paths}


def _camera(features: Mapping[str, Feature], entry: DatasetEntry) -> Column:
    names = camera_paths(features)
    path = names.get(entry.image_key)
    if path is None:
        near = difflib.get_close_matches(entry.image_key, names, n=2)
        # Of image_0 to image_3, none is nearer to `image` than the others.
        alike = {difflib.SequenceMatcher(None, name, entry.image_key).ratio() for name in near}
        hint = f" (did you mean {near[0]!r}?)" if near and len(alike) == len(near) else ""
        raise ConfigError(
            f"{entry.name} has no camera {entry.image_key!r}{hint}; it has {', '.join(sorted(names)) or 'none'}. Pass --camera"
        )
    return _column(path, features[path])


def _is_camera(feature: Feature) -> bool:
    """Whether a feature holds colour pictures: encoded, or pixels (H, W, 3)."""
    if feature.sequences or feature.dtype != "uint8":
        return False
    if feature.kind == "image":
        return feature.shape[-1] in (1, 3, 4)
    return feature.kind == "numbers" and len(feature.shape) == 3 and feature.shape[-1] == 3 and None not in feature.shape
