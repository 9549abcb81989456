"""Records the episodes that tokenizer training can't read: logs each once, counts them, keeps them in checkpoints."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from training.tokenizer_training.data import Unread

log = logging.getLogger(__name__)
_LISTED = 20


class SkippedEpisodes:
    """Skipped episodes of this process, and of all processes up to the last checkpoint.

    Attributes:
        episodes: Reason why an episode can't be used, by data set and key.
        replaced: Samples that took another episode.
    """

    def __init__(self) -> None:
        self.episodes: dict[tuple[str, str], str] = {}
        self.replaced = 0

    def add(self, unread: Iterable[Unread], replaced: int) -> None:
        """Adds the skipped episodes of a batch."""
        self.replaced += replaced
        for one in unread:
            if (one.dataset, one.key) not in self.episodes:
                self.episodes[one.dataset, one.key] = one.reason
                log.warning("episode %s of %s is left out and replaced by others: %s", one.key, one.dataset, one.reason)

    def restore(self, state: Mapping[str, Any], is_first: bool) -> None:
        """Restores the state of a checkpoint."""
        self.episodes = {(one["dataset"], one["key"]): one["reason"] for one in state.get("left_out", [])}
        self.replaced = state.get("samples_replaced", 0) if is_first else 0

    def gathered(self, gather: Callable[[Any], list[Any]]) -> dict[str, Any]:
        """Returns the skipped episodes of all processes, for a checkpoint. Call it on all ranks.

        Args:
            gather: Gathers an object from all processes.
        """
        parts = gather((self.replaced, self.episodes))
        episodes = {name: reason for _, found in parts for name, reason in found.items()}
        listed = [{"dataset": name, "key": key, "reason": why} for (name, key), why in sorted(episodes.items())]
        return {"samples_replaced": sum(count for count, _ in parts), "left_out": listed}


def summarize(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part for a summary: the counts, and the first 20 episodes."""
    return {
        "samples_replaced": state["samples_replaced"],
        "episodes_left_out": len(state["left_out"]),
        "left_out": state["left_out"][:_LISTED],
    }
