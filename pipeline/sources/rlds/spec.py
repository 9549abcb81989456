"""Maps the features of an RLDS data set to the parts of an episode, from its spec, before any record is read.

Each part is looked up by the names that Open X-Embodiment data sets use. Only these columns are read from records, so
embeddings, depth and other cameras cost nothing.
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
    """One feature, as stored in records.

    Attributes:
        path: Path of the feature, e.g. `steps/observation/image`.
        shape: Shape of one step's value (of the episode's value outside `steps`); None for sides known only from the record.
        dtype: Name of the number type.
        encoding: Encoding of a tensor: `none` (numbers), `bytes` (one string of its bytes) or `zlib` (compressed bytes).
        sequences: Number of nested sequences around a step's value.
        spans: Number of steps that a value covers; only the first step is used.
        description: Description in the spec.
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
        """The last component of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def width(self) -> int | None:
        """Number of numbers in one step's value; None if known only from the record."""
        return None if self.sequences or None in self.shape else math.prod(side or 0 for side in self.shape)

    @property
    def values(self) -> str:
        """Key of the values in a record."""
        if self.sequences:
            return f"{self.path}/ragged_flat_values"
        # For a tensor with several unknown sides, the record also stores the shape.
        return f"{self.path}/value" if self.shape.count(None) > 1 else self.path


@dataclass(frozen=True)
class EpisodeSpec:
    """The columns that hold the parts of an episode.

    Attributes:
        camera: Column of the frames.
        encoded: Whether the camera holds encoded images instead of pixels.
        action: Parts of the action, concatenated in this order; empty without actions.
        state: Parts of the state, concatenated in this order; empty without states.
        reward: Reward of each step.
        is_terminal: Whether each step ends the episode.
        instruction: Instruction as text, or as padded integers that spell it.
        episode_id: Name of the episode in the data set.
        success: Whether the episode succeeded, if the catalog filters failed episodes.
        ignored: Features with the name of an episode's part that can't be used, each with the reason.
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
    """Find the parts of an episode among the features of a data set.

    Args:
        features: Path -> feature, from `read_features`.
        entry: Catalog entry: the camera, whether to read actions, and the number of future steps per action.

    Raises:
        ConfigError: The data set has no such camera (the message lists its cameras), or its actions can't be read.
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
    """Return the parts of the action, and the reasons why other parts are ignored, such as a note in words.

    Raises:
        ConfigError: No part can be read, or a part may hold numbers in an unknown form.
    """
    found = {path: features[path] for path in _below(features, "steps/action")}
    parts = tuple(_column(path, feature, entry.future_steps) for path, feature in found.items() if feature.has_numbers)
    other = {path: feature.form for path, feature in found.items() if feature.kind != "opaque" and not feature.has_numbers}
    unknown = {path: feature.form for path, feature in found.items() if feature.kind == "opaque"}
    if unknown or (other and not parts):
        forms = "; ".join(f"{path} is {form}" for path, form in (unknown or other).items())
        raise ConfigError(
            f"{entry.name}: the action can't be read: {forms}. Actions must be numbers: tensors of any shape, also encoded as "
            "bytes or zlib, or sequences of one length. Pass --no_actions to ingest without actions"
        )
    return parts, [f"feature {path} of the action: {form}, no numbers" for path, form in other.items()]


def _below(features: Mapping[str, Feature], group: str) -> list[str]:
    """Return the sorted paths of a feature or of its parts."""
    return sorted(path for path in features if path == group or path.startswith(group + "/"))


def _scalar(column: Column | None) -> Column | None:
    return column if column is not None and column.width == 1 else None


def _parts(numeric: Mapping[str, Column], groups: tuple[str, ...]) -> tuple[Column, ...]:
    """Return the numeric features of the first existing group, or its parts sorted by name."""
    for group in groups:
        parts = [numeric[path] for path in sorted(numeric) if path == group or path.startswith(group + "/")]
        if parts:
            return tuple(parts)
    return ()


def action_meaning(parts: Sequence[Column], widths: Sequence[int | None]) -> str:
    """Describe the columns of an action: `name: columns` for each part, with its description if the spec has one.

    Args:
        parts: Parts of the action.
        widths: Number of columns of each part; None if known only from the record.
    """
    words = []
    for column, width in zip(parts, widths, strict=True):
        name = column.path.removeprefix("steps/action").strip("/") or "action"
        shown = "?" if width is None else width
        words.append(f"{name}: {shown}" + (f" ({column.description[:500]})" if column.description else ""))
    return ", ".join(words)


def _named(features: Mapping[str, Feature], names: tuple[str, ...]) -> Column | None:
    """Return the first feature with one of these names, in the order of `names`, that holds text or numbers."""
    for name in names:
        for path in sorted(features):
            feature = features[path]
            matches = path.rsplit("/", 1)[-1] == name and not feature.sequences
            if matches and (feature.kind == "text" or (feature.has_numbers and None not in feature.shape)):
                return _column(path, feature)
    return None


def camera_paths(features: Mapping[str, Feature]) -> dict[str, str]:
    """Return name -> path of the colour cameras."""
    paths = [path for path, feature in features.items() if path.startswith("steps/") and _is_camera(feature)]
    return {path.removeprefix("steps/").removeprefix("observation/"): path for path in paths}


def _camera(features: Mapping[str, Feature], entry: DatasetEntry) -> Column:
    names = camera_paths(features)
    path = names.get(entry.image_key)
    if path is None:
        near = difflib.get_close_matches(entry.image_key, names, n=2)
        # No hint if several names are equally close, like image_0 to image_3 to `image`.
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
