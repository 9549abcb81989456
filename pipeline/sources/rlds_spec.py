"""Which columns of an RLDS data set carry what: read from its `features.json`, before any record is.

tensorflow-datasets turns the spec into feature objects; here each thing an episode needs is looked up under the names that Open
X-Embodiment sets give it. Only these columns are ever taken out of a record: embeddings, depth and other cameras cost nothing.
"""

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from pipeline.catalog import DatasetEntry
from pipeline.errors import ConfigError, SourceError
from pipeline.json_files import parse_json

_INSTRUCTION_NAMES = ("language_instruction", "natural_language_instruction", "instruction")
_EPISODE_ID_NAMES = ("episode_id", "file_path")
_STATE_NAMES = ("state", "robot_state", "proprio")
_FEATURE_MODULES = "tensorflow_datasets."


@dataclass(frozen=True)
class Column:
    """One feature as records hold it.

    Attributes:
        path: Its key in the record, e.g. `steps/observation/image`.
        shape: Of one step's value (or of the episode's, outside `steps`).
        take: How many leading numbers of a step's value are used.
        encoding: Of a tensor: `none` as numbers, `bytes` as one string of its bytes, `zlib` as these compressed.
    """

    path: str
    shape: tuple[int, ...] = ()
    take: int = 1
    encoding: str = "none"

    @property
    def name(self) -> str:
        """The last component of the path that names it within its group."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def width(self) -> int:
        """Numbers in one step's value."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class EpisodeSpec:
    """Where an episode's parts lie in a record.

    Attributes:
        camera: The image feature.
        encoded: Whether it holds encoded images, and not pixels.
        action: Parts of the action, side by side in this order; none where the set has no actions.
        action_meaning: What the columns of the action mean.
        state: Parts of the state.
        reward: Of each step.
        is_terminal: Of each step.
        instruction: Text, or padded integers that spell it.
        episode_id: The set's own name for the episode.
        success: Whether the episode succeeded, where the catalog asks to pass over those that did not.
    """

    camera: Column
    encoded: bool
    action: tuple[Column, ...]
    action_meaning: str
    state: tuple[Column, ...]
    reward: Column | None
    is_terminal: Column | None
    instruction: Column | None
    episode_id: Column | None
    success: Column | None


def read_features(text: bytes, where: str) -> dict[str, Any]:
    """The leaves of a spec: path -> tensorflow-datasets feature.

    Args:
        text: Content of `features.json`.
        where: Its path, for messages.

    Raises:
        SourceError: It is no spec of episodes made of steps.
    """
    try:
        content = parse_json(text)
        foreign = [name for name in _class_names(content) if not name.startswith(_FEATURE_MODULES)]
        if foreign:
            raise SourceError(f"{where} asks for the class {foreign[0]!r}; only tensorflow-datasets' own features are read")
        top = tfds.features.FeatureConnector.from_json(content)
        steps = top["steps"].feature
    except ImportError as error:
        # Where numpy doesn't know a type of numbers, tensorflow-datasets asks TensorFlow.
        raise SourceError(f"{where} names a type of numbers that there isn't. Fetch it again") from error
    except (ValueError, KeyError, TypeError, AttributeError, ParseError) as error:
        raise SourceError(
            f"{where} is not the spec of an RLDS data set, episodes made of steps: {error!r}. "
            "Without it no record can be read: fetch it again"
        ) from error
    episode = {name: feature for name, feature in top.items() if name != "steps"}
    return dict([*_leaves(steps, "steps"), *(leaf for name, part in episode.items() for leaf in _leaves(part, name))])


def _class_names(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            if key in ("pythonClassName", "type") and isinstance(value, str):
                yield value
            yield from _class_names(value)
    elif isinstance(content, list):
        for value in content:
            yield from _class_names(value)


def _leaves(feature: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, part in feature.items():
            yield from _leaves(part, f"{path}/{name}")
    else:
        yield path, feature


def episode_spec(features: dict[str, Any], entry: DatasetEntry) -> EpisodeSpec:
    """Find an episode's parts among the features of a data set.

    Args:
        features: Path -> feature, from `read_features`.
        entry: Says which camera, and how many future steps an action spans.

    Raises:
        ConfigError: The data set has no such camera; the message says which it has.
    """
    camera = _camera(features, entry)
    numeric = {path: column for path, feature in features.items() if (column := _numeric(path, feature)) is not None}
    action = _parts(numeric, ("steps/action",))
    if entry.future_steps > 1:
        action = tuple(Column(c.path, c.shape, c.width // entry.future_steps) for c in action)
    success = numeric.get("success") if entry.success_filter else None
    return EpisodeSpec(
        camera=camera,
        encoded=isinstance(features[camera.path], tfds.features.Image),
        action=action,
        action_meaning=_meaning(action, features),
        state=_parts(numeric, tuple(f"steps/observation/{name}" for name in _STATE_NAMES)),
        reward=_scalar(numeric.get("steps/reward")),
        is_terminal=_scalar(numeric.get("steps/is_terminal")),
        instruction=_named(features, _INSTRUCTION_NAMES),
        episode_id=_named({path: f for path, f in features.items() if not path.startswith("steps/")}, _EPISODE_ID_NAMES),
        success=success,
    )


def _numeric(path: str, feature: Any) -> Column | None:
    """The column of a feature that is a fixed number of numbers, else None."""
    if isinstance(feature, (tfds.features.Image, tfds.features.Sequence)):
        return None
    info = feature.get_serialized_info()
    if isinstance(info, dict) or np.dtype(info.np_dtype).kind not in "biuf" or None in info.shape:
        return None
    return Column(path, tuple(info.shape), math.prod(info.shape))


def _scalar(column: Column | None) -> Column | None:
    return column if column is not None and column.width == 1 else None


def _parts(numeric: dict[str, Column], groups: tuple[str, ...]) -> tuple[Column, ...]:
    """The numeric features that make up the first group there is: itself, or what it consists of in the order of names."""
    for group in groups:
        parts = [numeric[path] for path in sorted(numeric) if path == group or path.startswith(group + "/")]
        if parts:
            return tuple(parts)
    return ()


def _meaning(action: tuple[Column, ...], features: dict[str, Any]) -> str:
    """`name: columns` of each part, with the spec's own description where it has one."""
    words = []
    for column in action:
        name = column.path.removeprefix("steps/action").strip("/") or "action"
        description = " ".join(features[column.path].doc.desc.split())
        words.append(f"{name}: {column.take}" + (f" ({description[:500]})" if description else ""))
    return ", ".join(words)


def _named(features: dict[str, Any], names: tuple[str, ...]) -> Column | None:
    """The first feature of one of these names, in the order of the names: text, or numbers."""
    for name in names:
        for path in sorted(features):
            if path.rsplit("/", 1)[-1] != name:
                continue
            column = _numeric(path, features[path])
            if column is not None or isinstance(features[path], tfds.features.Text) or _is_text(features[path]):
                return column or Column(path)
    return None


def _is_text(feature: Any) -> bool:
    return type(feature) in (tfds.features.Tensor, tfds.features.Scalar) and feature.np_dtype == np.object_


def camera_paths(features: dict[str, Any]) -> dict[str, str]:
    """Name -> path of the features that are colour cameras."""
    paths = [path for path, feature in features.items() if path.startswith("steps/") and _is_camera(feature)]
    return {path.removeprefix("steps/").removeprefix("observation/"): path for path in paths}


def _camera(features: dict[str, Any], entry: DatasetEntry) -> Column:
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
    feature = features[path]
    if isinstance(feature, tfds.features.Image):
        return Column(path)
    shape = tuple(feature.shape)
    return Column(path, shape, math.prod(shape), feature.to_json_content().encoding)


def _is_camera(feature: Any) -> bool:
    """Whether a feature holds colour pictures: encoded, or pixels (H, W, 3)."""
    if isinstance(feature, tfds.features.Image):
        return bool(feature.np_dtype == np.uint8 and feature.shape[-1] in (1, 3, 4))
    if isinstance(feature, tfds.features.Tensor) and feature.np_dtype == np.uint8:
        return len(feature.shape) == 3 and feature.shape[-1] == 3 and None not in feature.shape
    return False
