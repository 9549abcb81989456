"""Which of the episode shards that are there a run takes, and what it says of the others.

Training reads the splits that the recipe names (`training.splits`, and what is held out of them) of the data sets in its
mixture; evaluation and prediction read episodes. So that is what is tokenized, unless the command line names other splits.
Nothing is left out without a word.
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
from tokenize_offline.shards.writer import APART
from tokenize_offline.tasks import ShardTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What a run takes of what is there.

    Attributes:
        tasks: The shards that it takes, in the order in which they were found.
        splits: Their splits.
        other_splits: Splits that are there and are not taken.
        other_datasets: Data sets that are there and are not taken.
        none_held_out: Data set -> least `clips.held_out` that would hold out an episode, of those that hold out none.
    """

    tasks: list[ShardTask]
    splits: list[str]
    other_splits: list[str]
    other_datasets: list[str]
    none_held_out: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """What the command prints of it, ready for JSON."""
        return {
            "datasets": len({task.dataset for task in self.tasks}),
            "splits": self.splits,
            "datasets_not_taken": self.other_datasets,
            "splits_not_taken": self.other_splits,
            "datasets_without_held_out": sorted(self.none_held_out),
        }

    def tell(self, held_out: float) -> None:
        """Say on the log what is taken, what is not and why, and what will be missed later; `held_out` is the recipe's."""
        datasets = sorted({task.dataset for task in self.tasks})
        log.info("%d shards of %d data sets, split %s", len(self.tasks), len(datasets), ", ".join(self.splits))
        if self.other_splits:
            log.warning(
                "not tokenized: split %s, which training doesn't read (training.splits); --splits takes others",
                ", ".join(self.other_splits),
            )
        if self.other_datasets:
            log.warning(
                "not tokenized: data set %s, not in the recipe's mixture; `--data.mixture null --data.weights {}` takes all",
                ", ".join(self.other_datasets),
            )
        for name, least in self.none_held_out.items():
            log.warning(
                "data set %s holds out no episode at clips.held_out %g, so its held-out loss will be null: raise it; %.3f "
                "would hold one out",
                *(name, held_out, math.floor(1000 * least + 1) / 1000),
            )


def choose(found: Sequence[ShardTask], recipe: Recipe, splits: Sequence[str] | None) -> Choice:
    """Choose among all shards that are there.

    Args:
        found: All of them.
        recipe: Its mixture, `training.splits` and `clips.held_out`.
        splits: Splits that the command line names, all of which are there; None takes those of the recipe.

    Raises:
        ConfigError: No shard is left.
        ShardError: Shards of one data set differ in the width of their actions.
    """
    named = dataset_weights(recipe.data)
    datasets = {task.dataset for task in found}
    of_datasets = [task for task in found if named is None or task.dataset in named]
    if not of_datasets:
        raise ConfigError(
            f"the recipe's mixture names none of the data sets that are there ({', '.join(sorted(datasets))}): give "
            "`--data.mixture null --data.weights {}` to take them all, or another recipe"
        )
    wanted = recipe.training.splits if splits is None else splits
    tasks = [task for task in of_datasets if task.split in wanted]
    there = sorted({task.split for task in of_datasets})
    if not tasks:
        raise ConfigError(
            f"no shard has a split that is asked for ({', '.join(wanted)}); there are {', '.join(there)}: name some by --splits"
        )
    _require_one_width(tasks)
    least: dict[str, float] = {}
    for task in tasks:
        if task.split == TRAINING_SPLIT and recipe.clips.held_out:
            least[task.dataset] = min(least.get(task.dataset, 1.0), task.held_out_threshold)
    return Choice(
        tasks=tasks,
        splits=[split for split in there if split in wanted],
        other_splits=[split for split in there if split not in wanted],
        other_datasets=sorted(datasets - {task.dataset for task in of_datasets}),
        none_held_out={name: share for name, share in sorted(least.items()) if share >= recipe.clips.held_out},
    )


def _require_one_width(tasks: Sequence[ShardTask]) -> None:
    first: dict[str, tuple[int, str]] = {}
    for task in sorted(tasks, key=lambda task: (task.dataset, task.split, task.index)):
        for width in task.action_dims:
            known, where = first.setdefault(task.dataset, (width, task.source))
            if width != known:
                raise ShardError(
                    f"data set {task.dataset} has actions of {known} columns in {where} and of {width} in {task.source}, and "
                    f"training takes one width a data set: {APART}"
                )
