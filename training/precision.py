"""Chooses the precision of a training run: one that is fast on its machines, and the same on all of them."""

import logging
from typing import Literal, TypeVar

from tokenize_offline.precision import choose_precision, slow_precisions
from training.distributed import Processes, local_device

log = logging.getLogger(__name__)
Name = TypeVar("Name", bound=str)
Precision = Literal["fp32", "bf16"]


def suitable_precision(key: str, asked: Name, known: str | None, verbose: bool) -> Name:
    """Returns the precision that suits this machine, or that the resumed run already has; see `choose_precision`.

    Args:
        key: Recipe key, for the log.
        asked: Value of the key.
        known: Precision of the run to resume; None for a new run.
        verbose: Whether to log a choice that differs from the recipe.
    """
    choice = choose_precision(key, asked, slow_precisions(local_device()), known)
    if choice.reason and verbose:
        log.warning("%s", choice.reason)
    return choice.precision


def agree_on_precision(key: str, precision: Precision, processes: Processes) -> Precision:
    """Returns fp32 if any process uses it, because all machines must train in one precision. Call it on all ranks.

    Args:
        key: Recipe key, for the log.
        precision: Precision of this process.
        processes: Processes of the run.
    """
    in_fp32 = processes.gather(float(precision == "fp32"))
    if len(set(in_fp32)) == 1:
        return precision
    if processes.is_first:
        ranks = ", ".join(str(rank) for rank, slow in enumerate(in_fp32) if slow)
        log.warning("%s: fp32 on all ranks, because the CPU of ranks %s is slow at bf16", key, ranks)
    return "fp32"
