"""What tokenizing and training will take, from the indexes of ingested data sets and a recipe alone; nothing is decoded.

Rows are counted as the tokenize stage would make them: episodes beyond the recipe's quality limits are left out, held-out ones
told apart by the same hash. Bytes leave out the few hundred that a file's schema takes.
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
# episode (dictionary index), start, stride, view.
_BYTES_BESIDE_IDS = 4 + 4 + 4 + 2


@dataclass(frozen=True)
class DatasetEstimate:
    """What one data set will give.

    Attributes:
        positions: Clip positions for training: what an epoch visits, each in one view.
        rows: Rows that are tokenized, all views, held-out ones included.
        bytes: Of its token shards, about.
        excluded: Reason -> episodes that the recipe's quality limits leave out.
    """

    positions: int
    rows: int
    bytes: int
    excluded: dict[str, int] = field(default_factory=dict)


def recipe_tokens_per_clip(recipe: Recipe) -> int:
    """Ids that a tokenizer of the recipe's shape makes of one of its clips.

    Raises:
        ConfigError: The recipe's clips don't go together.
    """
    clips = resolve_clips(recipe.clips, recipe.tokenizer.context_length)
    assert clips.length is not None and clips.context_length is not None
    return id_layout(recipe.tokenizer, clips.context_length).tokens_per_clip(clips.length)


def estimate_dataset(folder: str, recipe: Recipe, excluded: pa.Table) -> DatasetEstimate:
    """Count the clips of one data set.

    Args:
        folder: Of the data set, with its index.
        recipe: Its sections `clips` and `tokenizer`, and `training.splits`.
        excluded: Its episodes that give no clips; see `selection.select`.

    Raises:
        ShardError: There is no index.
        ConfigError: The recipe's clips don't go together.
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
    row_bytes = rows * (2 * ids + 4 * clips.length * action_dim + _BYTES_BESIDE_IDS)
    positions = clips.per_episode * int(training.sum())
    return DatasetEstimate(positions, int(rows.sum()), int(row_bytes.sum()), count_reasons(excluded))


def shares(recipe: Recipe, positions: Mapping[str, int]) -> dict[str, float]:
    """Data set -> share of the training samples, by the recipe's mixture or weights, else by clip positions.

    Data sets of the mixture that are not there have their share too, unless the recipe skips them (`data.missing`).

    Raises:
        ConfigError: No data set of the mixture is there.
    """
    weights = dataset_weights(recipe.data) or positions
    if not any(positions.get(name) for name in weights):
        raise ConfigError(f"the recipe's mixture names none of the data sets that are there: {', '.join(sorted(positions))}")
    skips = recipe.data.missing == "skip"
    chosen = {name: weight for name, weight in weights.items() if name in positions or not skips}
    total = sum(chosen.values())
    return {name: chosen.get(name, 0) / total for name in dict.fromkeys((*positions, *chosen))}


def estimate(folder: str, recipe: Recipe, clips_per_second: float | None) -> list[dict[str, Any]]:
    """A mapping per data set in `folder`, an output folder of ingest, ready for JSON.

    Args:
        folder: Path or URL.
        recipe: The whole of it.
        clips_per_second: Of one GPU, such as `scripts/benchmarks/tokenize_stage.py` measures; None leaves GPU-hours out.

    Raises:
        ConfigError: There are no data sets, or see `shares`.
        ShardError: One has no index, because its ingest is not finished.
    """
    folders = find_datasets([folder])
    named = dataset_weights(recipe.data)
    taken = [path for name, path in folders.items() if named is None or name in named]
    excluded = excluded_episodes(taken, recipe.quality, recipe.clips.held_out)
    planned = {
        name: estimate_dataset(path, recipe, excluded.filter(pc.equal(excluded["dataset"], name)))
        for name, path in folders.items()
    }
    ids = recipe_tokens_per_clip(recipe)
    share = shares(recipe, {name: dataset.positions for name, dataset in planned.items()})
    samples = recipe.training.steps * recipe.training.global_batch
    absent = {name: part for name, part in share.items() if name not in planned}
    _tell_mixture(folder, share, absent, len(planned))
    rows: list[dict[str, Any]] = [
        {
            "dataset": name,
            "clips": dataset.positions,
            "rows": dataset.rows,
            "bytes": dataset.bytes,
            "excluded": dataset.excluded,
            "gpu_hours": round(dataset.rows / clips_per_second / 3600, 4) if clips_per_second else None,
            "ids_per_epoch": dataset.positions * ids,
            "share_of_samples": round(share[name], 6),
            "epochs": round(samples * share[name] / dataset.positions, 3) if dataset.positions else None,
            "missing": False,
        }
        for name, dataset in planned.items()
    ]
    nothing = dict.fromkeys(rows[0])
    return rows + [
        {**nothing, "dataset": name, "share_of_samples": round(part, 6), "missing": True} for name, part in absent.items()
    ]


def _tell_mixture(folder: str, share: Mapping[str, float], absent: Mapping[str, float], found: int) -> None:
    """Say which data sets of the mixture are not in the folder, and which in the folder are not in the mixture."""
    if absent:
        log.warning(
            "%d data sets of the mixture, with %.1f %% of its samples, are not in %s: %s. The shares and epochs of the %d "
            "others are those of a training that has all of them",
            *(len(absent), 100 * sum(absent.values()), folder, ", ".join(absent), found),
        )
    if unused := [name for name, part in share.items() if not part]:
        log.warning("not in the recipe's mixture, so training draws no samples of: %s", ", ".join(unused))


def clips_per_second(text: str) -> float:
    """The rate that `--rate` means.

    Args:
        text: A number, or a file whose last line is what `ivideogpt-tokenize` or `scripts/benchmarks/tokenize_stage.py`
            printed. A fleet's rate is divided by its processes.

    Raises:
        ConfigError: It is neither, or no rate above 0.
    """
    try:
        rate = float(text)
    except ValueError:
        rate = _measured(text)
    if not (rate > 0 and math.isfinite(rate)):
        raise ConfigError(f"--rate {text}: clips a second must be above 0, not {rate}")
    return rate


def _measured(path: str) -> float:
    if not storage.exists(path):
        raise ConfigError(f"--rate {path} is neither a number of clips a second nor a file")
    lines = storage.read_bytes(path).decode(errors="replace").strip().splitlines()
    try:
        printed: Any = json.loads(lines[-1])
        if printed.get("benchmark") == "tokenize":
            return float(printed["measured"])
        return float(printed["rows_per_second"]) / int(printed["processes"])
    except (IndexError, ValueError, AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"--rate {path}: its last line is no result of ivideogpt-tokenize that made shards, nor of "
            f"scripts/benchmarks/tokenize_stage.py ({error!r}); give clips a second as a number"
        ) from error
