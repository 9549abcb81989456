"""Describes what an evaluation covers: which episodes, whether the model was trained on them, and what is left out and why."""

from typing import TypedDict

from pipeline.episodes.naming import TRAINING_SPLIT
from training.evaluation.data import TestData, TestSet, Wanted
from training.model.files.trained_on import TrainedOn


class Coverage(TypedDict):
    """The card's entry on all data sets together."""

    in_words: str
    split: str | None
    held_out_only: bool
    clips: int
    trained_on: int | None
    held_out_share_of_the_model: float | None
    left_out_data_sets: dict[str, str]


def in_words(data: TestData, trained: TrainedOn, wanted: Wanted) -> str:
    """Returns one sentence that says what is evaluated; every report starts with it."""
    clips = f"{len(data.clips)} clip{'s' if len(data.clips) != 1 else ''}"
    if trained.held_out is None:
        if not wanted.held_out:
            return f"{clips}; the model does not record what it was trained on; these episodes may be part of it"
        return (
            f"{clips}; the model does not record what it was trained on; assumed new to it: splits other than "
            f"{TRAINING_SPLIT}, and the {100 * wanted.clips.held_out:g} % of {TRAINING_SPLIT} that clips.held_out selects"
        )
    if data.trained_on:
        return f"TRAINED ON: {data.trained_on} of {clips} are from episodes that the model was trained on"
    return f"{clips} from episodes that the model was not trained on"


def counts_in_words(test_set: TestSet) -> str:
    """Returns how many episodes of a data set are evaluated, by split, and why the others are left out."""
    reasons = {"not_held_out": "not held out from training", "too_short": "too short", "beyond_episodes": "beyond --episodes"}
    episodes = sum(count.episodes for count in test_set.splits.values())
    parts = ", ".join(f"{name} {count.evaluated}" for name, count in sorted(test_set.splits.items()))
    left = ", ".join(f"{number} {reasons[name]}" for name, number in test_set.left_out.items() if number)
    return f"{len(test_set.clips)} of {episodes} episodes ({parts})" + (f"; left out: {left}" if left else "")


def describe_coverage(data: TestData, trained: TrainedOn, wanted: Wanted) -> Coverage:
    """Returns the card's entry on all data sets together."""
    return {
        "in_words": in_words(data, trained, wanted),
        "split": wanted.split,
        "held_out_only": wanted.held_out,
        "clips": len(data.clips),
        "trained_on": None if trained.held_out is None else data.trained_on,
        "held_out_share_of_the_model": trained.held_out,
        "left_out_data_sets": data.left_out,
    }
