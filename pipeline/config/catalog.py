"""The catalog: what is known of every data set, and the published mixtures of them.

The facts themselves are YAML in `configs/`, so that a data set can be added without touching code; this file gives them types,
defaults and errors. The catalog is a help and no gate: a data set that isn't in it can be described on the command line.
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
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class DatasetEntry:
    """What is known of a data set.

    Attributes:
        name: In mixtures, and of its folder of episode shards.
        directory: Its folder under an Open X-Embodiment root.
        image_key: The camera that the published pre-training uses: name of the image feature.
        version: Name of the version folder; empty where the layout has none.
        other_cameras: Further image features worth having.
        control_hz: Steps per second; None where nobody says.
        base_step: Frame step from which the published stride follows: max(round(base_step / 3), 1).
        robot: Who acts.
        bgr: Cameras known to have red and blue swapped.
        future_steps: Steps that an action of the source spans; the first one is taken.
        success_filter: Whether episodes that the source marks as failed are passed over.
        actions: Whether its actions are read.
        test_episodes: File in `configs/` that names the episodes of the split `train` that are a public test set.
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
    with (_CONFIGS / name).open(encoding="utf-8") as file:
        return yaml.safe_load(file)


@functools.cache
def something_classes() -> tuple[str, ...]:
    """The classes of Something-Something-v2 that pre-training uses, in order: templates without brackets."""
    return tuple(sorted(_read_yaml("something_something_v2_classes.yaml")))


@functools.cache
def datasets() -> dict[str, DatasetEntry]:
    """All data sets of the catalog by name.

    Raises:
        ConfigError: An entry of `configs/datasets.yaml` has a key that isn't one.
    """
    return {name: _entry(name, facts) for name, facts in _read_yaml("datasets.yaml").items()}


def _entry(name: str, facts: dict[str, Any]) -> DatasetEntry:
    known = {field.name for field in dataclasses.fields(DatasetEntry)}
    for key in facts:
        if key not in known:
            raise ConfigError(f"configs/datasets.yaml: {name} has the key {key!r}, which is none of {sorted(known)}")
    typed: dict[str, Any] = {"name": name, "directory": name, **facts}
    typed |= {key: tuple(facts[key]) for key in ("other_cameras", "bgr") if key in facts}
    typed |= {key: float(facts[key]) for key in ("control_hz", "base_step") if key in facts}
    return DatasetEntry(**typed)


@functools.cache
def robonet_test_files() -> frozenset[str]:
    """Names of the HDF5 files that are RoboNet's public test set."""
    return frozenset(_read_yaml("robonet_test_files.yaml"))


@functools.cache
def test_episodes(file: str) -> dict[str, int]:
    """Name -> index in the published split `train` of the episodes that a file in `configs/` keeps for testing."""
    return {str(name): int(index) for name, index in _read_yaml(file).items()}


def first_camera_entry(entry: DatasetEntry) -> DatasetEntry:
    """The first entry of the catalog that reads the same data set; `entry` itself where it isn't as the catalog has it."""
    if datasets().get(entry.name) != entry:
        return entry
    place = (entry.directory, entry.version)
    return next(other for other in datasets().values() if (other.directory, other.version) == place)


def dataset(name: str, camera: str | None = None, rate: float | None = None) -> DatasetEntry:
    """What is known of one data set.

    Args:
        name: Of the data set.
        camera: Image feature to use in place of the catalog's, or of `DEFAULT_CAMERA` where the catalog has none.
        rate: Steps per second, in place of the catalog's; the step from which strides follow changes with it.

    Raises:
        ConfigError: The data set isn't in the catalog, and `rate` isn't given; or the rate is none.
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
    """In words, that the catalog has no such data set, and which names are like it."""
    near = difflib.get_close_matches(name, datasets(), n=3, cutoff=0.4)
    return f"data set {name!r} is not in the catalog" + (f" (nearest: {', '.join(near)})" if near else "")


def mixture(name: str) -> dict[str, float]:
    """The weights of a published mixture by data set; they need not sum to 1.

    Raises:
        ConfigError: There is no such mixture.
    """
    mixtures = _mixtures()
    if name not in mixtures:
        near = difflib.get_close_matches(name, mixtures, n=1, cutoff=0.0)
        raise ConfigError(f"no mixture is called {name!r} (did you mean {near[0]!r}?); there are {', '.join(sorted(mixtures))}")
    return dict(mixtures[name])


def dataset_weights(
    mixture_name: str | None, weights: Mapping[str, float], there: Collection[str], skip: bool
) -> dict[str, float]:
    """Data set -> weight as a recipe's `data` section has it; empty where it names none.

    Args:
        mixture_name: `data.mixture`.
        weights: `data.weights`.
        there: The data sets that there are.
        skip: Whether data sets that are not there are passed over (`data.missing: skip`), with a word.

    Raises:
        ConfigError: There is no such mixture, or one of its data sets is not there and must not be passed over.
    """
    named = mixture(mixture_name) if mixture_name else dict(weights)
    absent = sorted(named.keys() - set(there))
    if not absent:
        return named
    left = {name: weight for name, weight in named.items() if name in there}
    share = 1 - sum(left.values()) / sum(named.values())
    what = f"data.mixture {mixture_name}" if mixture_name else "data.weights"
    said = (
        f"{what}: {len(absent)} of {len(named)} data sets have no token shards, {share:.1%} of the weight: {', '.join(absent)}"
    )
    if not skip or not left:
        way_out = ", or set data.missing to skip, which shares the samples out over the others" if left else ""
        raise ConfigError(f"{said}. There are: {', '.join(there) or 'none'}. Tokenize the missing ones{way_out}")
    _log.warning("%s. Skipped; the others share the samples out by their weights", said)
    return left


@functools.cache
def _mixtures() -> dict[str, dict[str, float]]:
    content = _read_yaml("mixtures.yaml")
    return {name: {member: float(weight) for member, weight in weights.items()} for name, weights in content.items()}
