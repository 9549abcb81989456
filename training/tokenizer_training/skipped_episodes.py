"""The episodes that tokenizer training could not read: logged once each, counted, and kept with its checkpoints."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from training.tokenizer_training.data import Unread

log = logging.getLogger(__name__)
_LISTED = 20


class SkippedEpisodes:
    """Of one process, with those of all processes at the last checkpoint.

    Attributes:
        episodes: (data set, key) -> why the episode can't be used.
        replaced: Samples that took another episode; of this process alone since the last checkpoint was read.
    """

    def __init__(self) -> None:
        self.episodes: dict[tuple[str, str], str] = {}
        self.replaced = 0

    def add(self, unread: Iterable[Unread], replaced: int) -> None:
        """Take note of what a batch met."""
        self.replaced += replaced
        for one in unread:
            if (one.dataset, one.key) not in self.episodes:
                self.episodes[one.dataset, one.key] = one.reason
                log.warning("episode %s of %s is left out, others take its place: %s", one.key, one.dataset, one.reason)

    def restore(self, state: Mapping[str, Any], is_first: bool) -> None:
        """Go on from what a checkpoint holds; one of before there were any holds none."""
        self.episodes = {(one["dataset"], one["key"]): one["reason"] for one in state.get("left_out", [])}
        self.replaced = state.get("samples_replaced", 0) if is_first else 0

    def gathered(self, gather: Callable[[Any], list[Any]]) -> dict[str, Any]:
        """What all processes left out, for a checkpoint. Call it on all of them.

        Args:
            gather: Gives the objects of all processes.
        """
        parts = gather((self.replaced, self.episodes))
        episodes = {name: reason for _, found in parts for name, reason in found.items()}
        listed = [{"dataset": name, "key": key, "reason": why} for (name, key), why in sorted(episodes.items())]
        return {"samples_replaced": sum(count for count, _ in parts), "left_out": listed}


def summarized(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of it: the counts, and the first of the episodes."""
    return {
        "samples_replaced": state["samples_replaced"],
        "episodes_left_out": len(state["left_out"]),
        "left_out": state["left_out"][:_LISTED],
    }
