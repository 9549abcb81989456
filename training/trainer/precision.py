"""Settles the precision of a training run: one that its machines are fast at, and the same on all of them."""

import logging
from typing import Literal, TypeVar

from tokenize_offline.precision import choose_precision, slow_precisions
from training.distributed import Processes, local_device

log = logging.getLogger(__name__)
Name = TypeVar("Name", bound=str)
Precision = Literal["fp32", "bf16"]


def suitable_precision(key: str, asked: Name, known: str | None, tell: bool) -> Name:
    """Returns the precision that suits this machine, or that the run already has; see `choose_precision`.

    Args:
        key: Key of the recipe.
        asked: Its value.
        known: Precision of the run that resumes; None for a new run.
        tell: Whether to log a choice that differs from the recipe.
    """
    choice = choose_precision(key, asked, slow_precisions(local_device()), known)
    if choice.reason and tell:
        log.warning("%s", choice.reason)
    return choice.precision


def agree_on_precision(key: str, precision: Precision, processes: Processes) -> Precision:
    """Returns fp32 if it is the precision of any process, where machines of several kinds train together. Call it on all ranks.

    Args:
        key: Key of the recipe.
        precision: Precision of this process.
        processes: Of the run.
    """
    in_fp32 = processes.gather(float(precision == "fp32"))
    if len(set(in_fp32)) == 1:
        return precision
    if processes.is_first:
        ranks = ", ".join(str(rank) for rank, slow in enumerate(in_fp32) if slow)
        log.warning("%s: fp32 on all ranks, because the CPU of ranks %s is slow at bf16", key, ranks)
    return "fp32"
