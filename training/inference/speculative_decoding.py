"""Exact speculative decoding: one pass checks several proposed ids instead of sampling ids one by one.

The proposal for a frame is the frame before it, because most of a video stands still. Every id is still sampled from the
model's logits with its own noise; the proposal only decides which logits one pass computes. Ids after a wrong proposal are
sampled again, so a bad proposal costs time but changes no result, except for rounding in products of another shape.
"""

import torch

# Few lengths, so that a compiled step sees few shapes. The longest covers a published frame and the id before it.
BLOCK_LENGTHS = (1, 2, 4, 8, 18)
UNKNOWN_AGREEMENT = 0.5  # assumed for the first frame that has a proposal


def pass_cost(positions: int, on_cpu: bool) -> float:
    """Returns the time of a pass over `positions` (rows x ids), relative to a pass over one position.

    Fitted to the published size on one CPU core. On a GPU kernel launches bound a pass; the slope there is a cautious guess.
    """
    if not on_cpu:
        return 1 + 0.01 * positions
    return 0.95 + 0.05 * positions


def block_length(agreement: float, rows: int, remaining: int, on_cpu: bool) -> int:
    """Returns the number of ids per pass that is expected to yield the most ids per unit of time.

    Args:
        agreement: Fraction of ids that equalled their proposal in the last frame.
        rows: Rows of the batch.
        remaining: Ids that the slowest row still needs.
        on_cpu: Whether the model runs on a CPU.
    """

    def ids_per_time(length: int) -> float:
        useful = min(length, remaining)
        return sum(agreement**number for number in range(useful)) / pass_cost(rows * length, on_cpu)

    return max(BLOCK_LENGTHS, key=ids_per_time)


def accepted(sampled: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
    """Returns (R,): the number of final ids, which is one plus the number of right proposals at the beginning of a pass.

    Args:
        sampled: (R, n) the id sampled after each fed id.
        fed: (R, n) ids of a pass: the first is known to be right, the others are proposals.
    """
    return 1 + (sampled[:, :-1] == fed[:, 1:]).cumprod(dim=1).sum(dim=1)
