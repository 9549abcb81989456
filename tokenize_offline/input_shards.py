"""Selects the episode shards that a run tokenizes, and logs those that it skips.

Only training reads token shards, so a run tokenizes the splits that the recipe trains on (`training.splits`) of the data sets
in its mixture, unless the command line names other splits.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import ConfigError, ShardError
from pipeline.config.recipe import Recipe
from pipeline.episodes.naming import TRAINING_SPLIT
from tokenize_offline.filtering import dataset_weights
from tokenize_offline.shards.writer import INGEST_SEPARATELY
from tokenize_offline.tasks import ShardTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputShards:
    """The episode shards that a run tokenizes, and what it skips.

    Attributes:
        tasks: Selected shards, in the order in which they were found.
        splits: Splits of the selected shards.
        other_splits: Splits that exist but are skipped.
        other_datasets: Data sets that exist but are skipped.
        none_held_out: Data sets that hold out no episode -> lowest `clips.held_out` at which they would.
    """

    tasks: list[ShardTask]
    splits: list[str]
    other_splits: list[str]
    other_datasets: list[str]
    none_held_out: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """The part of the command's summary about its input, ready for JSON."""
        return {
            "datasets": len({task.dataset for task in self.tasks}),
            "splits": self.splits,
            "datasets_not_taken": self.other_datasets,
            "splits_not_taken": self.other_splits,
            "datasets_without_held_out": sorted(self.none_held_out),
        }

    def log_selection(self, held_out: float) -> None:
        """Log what is tokenized, what is skipped and why, and data sets without held-out episodes at share `held_out`."""
        datasets = sorted({task.dataset for task in self.tasks})
        log.info("%d shards of %d data sets, split %s", len(self.tasks), len(datasets), ", ".join(self.splits))
        if self.other_splits:
            log.warning(
                "not tokenized: split %s, which training doesn't read (training.splits); select other splits with --splits",
                ", ".join(self.other_splits),
            )
        if self.other_datasets:
            log.warning(
                "not tokenized: data set %s, not in the recipe's mixture; `--data.mixture null --data.weights {}` takes all",
                ", ".join(self.other_datasets),
            )
        for name, threshold in self.none_held_out.items():
            log.warning(
                "data set %s holds out no episode at clips.held_out %g, so its held-out loss will be null: raise it to %.3f "
                "to hold one out",
                *(name, held_out, math.floor(1000 * threshold + 1) / 1000),
            )


def select_input_shards(found: Sequence[ShardTask], recipe: Recipe, splits: Sequence[str] | None) -> InputShards:
    """Select the shards that a recipe trains on.

    Args:
        found: All shards in the folders.
        recipe: Its mixture, `training.splits` and `clips.held_out` are used.
        splits: Splits that the command line names, all of which exist; None takes those of the recipe.

    Raises:
        ConfigError: No shard is selected.
        ShardError: Shards of one data set differ in the width of their actions.
    """
    named = dataset_weights(recipe.data)
    datasets = {task.dataset for task in found}
    of_datasets = [task for task in found if named is None or task.dataset in named]
    if not of_datasets:
        raise ConfigError(
            f"the recipe's mixture contains none of the data sets found ({', '.join(sorted(datasets))}): pass "
            "`--data.mixture null --data.weights {}` to take all of them, or use another recipe"
        )
    requested = recipe.training.splits if splits is None else splits
    tasks = [task for task in of_datasets if task.split in requested]
    existing = sorted({task.split for task in of_datasets})
    if not tasks:
        raise ConfigError(
            f"no shard belongs to split {', '.join(requested)}; the splits found are {', '.join(existing)}: "
            "select some with --splits"
        )
    _require_one_width(tasks)
    thresholds: dict[str, float] = {}
    for task in tasks:
        if task.split == TRAINING_SPLIT and recipe.clips.held_out:
            thresholds[task.dataset] = min(thresholds.get(task.dataset, 1.0), task.held_out_threshold)
    return InputShards(
        tasks=tasks,
        splits=[split for split in existing if split in requested],
        other_splits=[split for split in existing if split not in requested],
        other_datasets=sorted(datasets - {task.dataset for task in of_datasets}),
        none_held_out={name: least for name, least in sorted(thresholds.items()) if least >= recipe.clips.held_out},
    )


def _require_one_width(tasks: Sequence[ShardTask]) -> None:
    first: dict[str, tuple[int, str]] = {}
    for task in sorted(tasks, key=lambda task: (task.dataset, task.split, task.index)):
        for width in task.action_dims:
            first_width, first_source = first.setdefault(task.dataset, (width, task.source))
            if width != first_width:
                raise ShardError(
                    f"data set {task.dataset} has {first_width} action columns in {first_source} and {width} in {task.source}, "
                    f"but training needs one width per data set: {INGEST_SEPARATELY}"
                )
