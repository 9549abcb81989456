"""The catalog: known facts about each data set, and the published mixtures.

The facts are YAML in `configs/`, so a new data set needs no code; this module gives them types, defaults and errors. The
command line can describe data sets that are not in the catalog.
"""

import dataclasses
import difflib
import functools
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import ConfigError

DEFAULT_CAMERA = "image"
_log = logging.getLogger(__name__)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class DatasetEntry:
    """Known facts about a data set.

    Attributes:
        name: Name in mixtures and of the folder of episode shards.
        directory: Folder under an Open X-Embodiment root.
        image_key: Image feature (camera) that the published pre-training uses.
        version: Name of the version folder; empty if there is none.
        other_cameras: Other useful image features.
        control_hz: Steps per second; None if unknown.
        base_step: Sets the published stride in frames: max(round(base_step / 3), 1).
        robot: Name of the robot.
        bgr: Cameras with swapped red and blue channels.
        future_steps: Steps per action of the source; ingest takes the first one.
        success_filter: Ingest skips episodes that the source marks as failed.
        actions: Ingest reads actions.
        test_episodes: File in `configs/` that lists the public test episodes within the split `train`.
    """

    name: str
    directory: str
    image_key: str
    version: str = ""
    other_cameras: tuple[str, ...] = ()
    control_hz: float | None = None
    base_step: float = 1.0
    robot: str = ""
    bgr: tuple[str, ...] = ()
    future_steps: int = 1
    success_filter: bool = False
    actions: bool = True
    test_episodes: str = ""


def _read_yaml(name: str) -> Any:
    with (CONFIGS / name).open(encoding="utf-8") as file:
        return yaml.safe_load(file)


@functools.cache
def something_classes() -> tuple[str, ...]:
    """Returns the Something-Something-v2 classes that pre-training uses, sorted: templates without brackets."""
    return tuple(sorted(_read_yaml("something_something_v2_classes.yaml")))


@functools.cache
def datasets() -> dict[str, DatasetEntry]:
    """Returns all data sets of the catalog by name.

    Raises:
        ConfigError: An entry of `configs/datasets.yaml` has an unknown key.
    """
    return {name: _entry(name, facts) for name, facts in _read_yaml("datasets.yaml").items()}


def _entry(name: str, facts: dict[str, Any]) -> DatasetEntry:
    known = {field.name for field in dataclasses.fields(DatasetEntry)}
    for key in facts:
        if key not in known:
            raise ConfigError(
                f"configs/datasets.yaml: {name} has the unknown key {key!r}; valid keys are {', '.join(sorted(known))}"
            )
    typed: dict[str, Any] = {"name": name, "directory": name, **facts}
    typed |= {key: tuple(facts[key]) for key in ("other_cameras", "bgr") if key in facts}
    typed |= {key: float(facts[key]) for key in ("control_hz", "base_step") if key in facts}
    return DatasetEntry(**typed)


@functools.cache
def robonet_test_files() -> frozenset[str]:
    """Returns the names of the HDF5 files in RoboNet's public test set."""
    return frozenset(_read_yaml("robonet_test_files.yaml"))


@functools.cache
def test_episodes(file: str) -> dict[str, int]:
    """Returns the public test episodes in a file of `configs/`: name -> index in the published split `train`."""
    return {str(name): int(index) for name, index in _read_yaml(file).items()}


def first_camera_entry(entry: DatasetEntry) -> DatasetEntry:
    """Returns the first catalog entry that reads the same data set with any camera.

    An entry that differs from the catalog's is returned unchanged.
    """
    if datasets().get(entry.name) != entry:
        return entry
    location = (entry.directory, entry.version)
    return next(other for other in datasets().values() if (other.directory, other.version) == location)


def dataset(name: str, camera: str | None = None, rate: float | None = None) -> DatasetEntry:
    """Returns the facts about one data set.

    Args:
        name: Name of the data set.
        camera: Image feature to use instead of the catalog's, or of `DEFAULT_CAMERA` for an unknown data set.
        rate: Steps per second to use instead of the catalog's; also becomes the base step of strides.

    Raises:
        ConfigError: The data set is not in the catalog and `rate` is None; or the rate is invalid.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"--rate must be a number of steps per second above 0, not {rate}")
    entry = datasets().get(name)
    if entry is None:
        if rate is None:
            raise ConfigError(
                f"{describe_unknown_dataset(name)}; correct the name, or describe it with --rate, and --camera if it isn't "
                f"{DEFAULT_CAMERA}"
            )
        return DatasetEntry(name, directory=name, image_key=camera or DEFAULT_CAMERA, control_hz=rate, base_step=rate)
    if camera is not None:
        entry = dataclasses.replace(entry, image_key=camera)
    if rate is not None:
        entry = dataclasses.replace(entry, control_hz=rate, base_step=rate)
    return entry


def describe_unknown_dataset(name: str) -> str:
    """Says that a data set is not in the catalog, and which names are similar."""
    similar = difflib.get_close_matches(name, datasets(), n=3, cutoff=0.4)
    return f"data set {name!r} is not in the catalog" + (f" (nearest: {', '.join(similar)})" if similar else "")


def mixture(name: str) -> dict[str, float]:
    """Returns the weights of a published mixture by data set; they need not sum to 1.

    Raises:
        ConfigError: The mixture does not exist.
    """
    mixtures = _mixtures()
    if name not in mixtures:
        near = difflib.get_close_matches(name, mixtures, n=1, cutoff=0.0)
        raise ConfigError(
            f"no mixture is called {name!r} (did you mean {near[0]!r}?); mixtures are {', '.join(sorted(mixtures))}"
        )
    return dict(mixtures[name])


def dataset_weights(
    mixture_name: str | None, weights: Mapping[str, float], available: Collection[str], skip: bool
) -> dict[str, float]:
    """Returns data set -> weight for a recipe's `data` section; empty if the section names no data sets.

    Args:
        mixture_name: `data.mixture`.
        weights: `data.weights`.
        available: Data sets that have token shards.
        skip: Skip data sets that are not available, with a warning (`data.missing: skip`).

    Raises:
        ConfigError: The mixture does not exist, or a data set is not available and `skip` is False.
    """
    requested = mixture(mixture_name) if mixture_name else dict(weights)
    missing = sorted(requested.keys() - set(available))
    if not missing:
        return requested
    remaining = {name: weight for name, weight in requested.items() if name in available}
    share = 1 - sum(remaining.values()) / sum(requested.values())
    key = f"data.mixture {mixture_name}" if mixture_name else "data.weights"
    counts = f"{len(missing)} of {len(requested)} data sets have no token shards ({share:.1%} of the weight)"
    problem = f"{key}: {counts}: {', '.join(missing)}"
    if not skip or not remaining:
        way_out = ", or set data.missing to skip, which samples the others by their weights" if remaining else ""
        raise ConfigError(f"{problem}. Available: {', '.join(available) or 'none'}. Tokenize the missing ones{way_out}")
    _log.warning("%s. Skipped; the others are sampled by their weights", problem)
    return remaining


@functools.cache
def _mixtures() -> dict[str, dict[str, float]]:
    content = _read_yaml("mixtures.yaml")
    return {name: {member: float(weight) for member, weight in weights.items()} for name, weights in content.items()}
