"""Estimates the cost of tokenizing and training from the indexes of ingested data sets and a recipe. It decodes nothing.

Rows are counted exactly as the tokenize stage makes them, with the same quality limits and held-out episodes. Byte counts omit
the few hundred bytes of each file's schema.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common import storage
from pipeline.common.errors import ConfigError
from pipeline.config.recipe import Recipe
from pipeline.episodes.index import find_datasets, read_index
from pipeline.episodes.naming import TRAINING_SPLIT
from tokenize_offline.clips.sampling import are_held_out, resolve_clips
from tokenize_offline.filtering import count_reasons, dataset_weights, excluded_episodes
from tokenize_offline.token_layout import id_layout

log = logging.getLogger(__name__)
# Columns episode (dictionary index), start, stride and view.
_OTHER_BYTES_PER_ROW = 4 + 4 + 4 + 2


@dataclass(frozen=True)
class DatasetEstimate:
    """The estimate of one data set.

    Attributes:
        positions: Clip positions for training; an epoch visits each once, in one view.
        rows: Rows to tokenize, including all views and held-out episodes.
        bytes: Approximate size of the token shards in bytes.
        excluded: Reason -> number of episodes that the recipe's quality limits exclude.
    """

    positions: int
    rows: int
    bytes: int
    excluded: dict[str, int] = field(default_factory=dict)


def recipe_tokens_per_clip(recipe: Recipe) -> int:
    """Tokens per clip for the recipe's tokenizer shape and clip settings.

    Raises:
        ConfigError: The clip settings don't match each other.
    """
    clips = resolve_clips(recipe.clips, recipe.tokenizer.context_length)
    assert clips.length is not None and clips.context_length is not None
    return id_layout(recipe.tokenizer, clips.context_length).tokens_per_clip(clips.length)


def estimate_dataset(folder: str, recipe: Recipe, excluded: pa.Table) -> DatasetEstimate:
    """Count the clips of one data set.

    Args:
        folder: Folder of the data set, with its index.
        recipe: Its sections `clips` and `tokenizer`, and `training.splits`, are used.
        excluded: Excluded episodes of the data set; see `filtering.excluded_episodes`.

    Raises:
        ShardError: The index is missing.
        ConfigError: The clip settings don't match each other.
    """
    clips = resolve_clips(recipe.clips, recipe.tokenizer.context_length)
    assert clips.length is not None
    ids = recipe_tokens_per_clip(recipe)
    index = read_index(folder, ["key", "split", "action_dim"])
    training = pc.equal(index["split"], TRAINING_SPLIT).to_numpy(zero_copy_only=False)
    keys = index["key"].filter(pa.array(training)).to_pylist()
    training[training] = ~are_held_out(storage.basename(folder), keys, clips.held_out)
    stays = pc.is_in(index["split"], pa.array(recipe.training.splits)).to_numpy(zero_copy_only=False)
    stays[excluded["place"].to_numpy()] = False
    training = training[stays]
    action_dim = pc.fill_null(index["action_dim"], 0).to_numpy().astype(np.int64)[stays]
    rows = clips.per_episode * np.where(training, clips.views, 1)
    row_bytes = rows * (2 * ids + 4 * clips.length * action_dim + _OTHER_BYTES_PER_ROW)
    positions = clips.per_episode * int(training.sum())
    return DatasetEstimate(positions, int(rows.sum()), int(row_bytes.sum()), count_reasons(excluded))


def sample_shares(recipe: Recipe, positions: Mapping[str, int]) -> dict[str, float]:
    """Data set -> share of the training samples: by the recipe's mixture or weights, or else by clip positions.

    Missing data sets of the mixture have a share too, unless the recipe skips them (`data.missing`).

    Raises:
        ConfigError: No data set of the mixture exists.
    """
    weights = dataset_weights(recipe.data) or positions
    if not any(positions.get(name) for name in weights):
        raise ConfigError(f"the recipe's mixture contains none of the data sets found: {', '.join(sorted(positions))}")
    skips = recipe.data.missing == "skip"
    chosen = {name: weight for name, weight in weights.items() if name in positions or not skips}
    total = sum(chosen.values())
    return {name: chosen.get(name, 0) / total for name in dict.fromkeys((*positions, *chosen))}


def estimate(folder: str, recipe: Recipe, clips_per_second: float | None) -> list[dict[str, Any]]:
    """Estimate every data set in an output folder of ingest; returns a JSON mapping for each.

    Args:
        folder: Path or URL of the folder.
        recipe: The whole recipe.
        clips_per_second: Speed of one GPU, as `scripts/benchmarks/tokenize_stage.py` measures it; None omits GPU-hours.

    Raises:
        ConfigError: There are no data sets; see also `sample_shares`.
        ShardError: A data set has no index because its ingest did not finish.
    """
    folders = find_datasets([folder])
    named = dataset_weights(recipe.data)
    selected = [path for name, path in folders.items() if named is None or name in named]
    excluded = excluded_episodes(selected, recipe.quality, recipe.clips.held_out)
    estimates = {
        name: estimate_dataset(path, recipe, excluded.filter(pc.equal(excluded["dataset"], name)))
        for name, path in folders.items()
    }
    tokens_per_clip = recipe_tokens_per_clip(recipe)
    shares = sample_shares(recipe, {name: dataset.positions for name, dataset in estimates.items()})
    samples = recipe.training.steps * recipe.training.global_batch
    missing = {name: share for name, share in shares.items() if name not in estimates}
    _log_mixture(folder, shares, missing, len(estimates))
    rows: list[dict[str, Any]] = [
        {
            "dataset": name,
            "clips": dataset.positions,
            "rows": dataset.rows,
            "bytes": dataset.bytes,
            "excluded": dataset.excluded,
            "gpu_hours": round(dataset.rows / clips_per_second / 3600, 4) if clips_per_second else None,
            "ids_per_epoch": dataset.positions * tokens_per_clip,
            "share_of_samples": round(shares[name], 6),
            "epochs": round(samples * shares[name] / dataset.positions, 3) if dataset.positions else None,
            "missing": False,
        }
        for name, dataset in estimates.items()
    ]
    empty = dict.fromkeys(rows[0])
    return rows + [
        {**empty, "dataset": name, "share_of_samples": round(share, 6), "missing": True} for name, share in missing.items()
    ]


def _log_mixture(folder: str, shares: Mapping[str, float], missing: Mapping[str, float], found: int) -> None:
    """Warn about data sets of the mixture that are missing in the folder, and about those that are not in the mixture."""
    if missing:
        log.warning(
            "%d data sets of the mixture, with %.1f %% of its samples, are not in %s: %s. The shares and epochs of the %d "
            "others assume a training with all of them",
            *(len(missing), 100 * sum(missing.values()), folder, ", ".join(missing), found),
        )
    if unused := [name for name, share in shares.items() if not share]:
        log.warning("not in the recipe's mixture, so not used in training: %s", ", ".join(unused))


def clips_per_second(text: str) -> float:
    """Parse the value of `--rate`.

    Args:
        text: A number, or a file whose last line was printed by `ivideogpt-tokenize` or
            `scripts/benchmarks/tokenize_stage.py`. The rate of a fleet is divided by its processes.

    Raises:
        ConfigError: It is neither of these, or not above 0.
    """
    try:
        rate = float(text)
    except ValueError:
        rate = _measured(text)
    if not (rate > 0 and math.isfinite(rate)):
        raise ConfigError(f"--rate {text}: clips per second must be above 0, not {rate}")
    return rate


def _measured(path: str) -> float:
    if not storage.exists(path):
        raise ConfigError(f"--rate {path} is neither a number (clips per second) nor a file")
    lines = storage.read_bytes(path).decode(errors="replace").strip().splitlines()
    try:
        printed: Any = json.loads(lines[-1])
        if printed.get("benchmark") == "tokenize":
            return float(printed["measured"])
        return float(printed["rows_per_second"]) / int(printed["processes"])
    except (IndexError, ValueError, AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"--rate {path}: its last line is not a result of ivideogpt-tokenize (with new shards) or of "
            f"scripts/benchmarks/tokenize_stage.py ({error!r}); pass clips per second as a number"
        ) from error
