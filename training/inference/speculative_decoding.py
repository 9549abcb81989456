"""Exact speculative decoding: a draft of the next ids is checked in one pass instead of drawn id by id.

The draft of a frame is the frame before it: most of a video stands still. Every id is still drawn from the model's own scores
with its own noise; the draft only decides which scores one pass computes. Ids after a wrong draft are drawn again, so a bad
draft costs time and never changes an outcome, beyond the rounding of products of another shape.
"""

import torch

# Few lengths, so that a compiled step meets few shapes. The longest covers a published frame with the id before it.
BLOCK_LENGTHS = (1, 2, 4, 8, 18)
UNKNOWN_AGREEMENT = 0.5  # of the first frame that has a draft


def pass_cost(positions: int, on_cpu: bool) -> float:
    """Time of a pass over so many positions (rows x ids), in passes of one; fitted to the published size.

    Measured on a CPU core; on a GPU a pass is bound by launches, and its arithmetic a guess on the careful side.
    """
    if not on_cpu:
        return 1 + 0.01 * positions
    return 0.95 + 0.05 * positions


def block_length(agreement: float, rows: int, remaining: int, on_cpu: bool) -> int:
    """How many ids a pass should take: what yields most ids in its time.

    Args:
        agreement: Share of ids that are as drafted, as far as known.
        rows: Of the batch.
        remaining: Ids that the row furthest behind still needs.
        on_cpu: Where it runs.
    """

    def yielded(length: int) -> float:
        useful = min(length, remaining)
        return sum(agreement**number for number in range(useful)) / pass_cost(rows * length, on_cpu)

    return max(BLOCK_LENGTHS, key=yielded)


def accepted(drawn: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
    """(R,) how many of the drawn ids follow from right ids: one, and one more for every draft that was right before it.

    Args:
        drawn: (R, n) the id drawn after each fed one.
        fed: (R, n) ids of a pass, the first known to be right, the others drafted.
    """
    return 1 + (drawn[:, :-1] == fed[:, 1:]).cumprod(dim=1).sum(dim=1)
