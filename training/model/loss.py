"""What the world model is trained on: the next id at labelled positions, rewards and actions where there are any.

Logits are taken to fp32 here and nowhere else, so that a model in half precision computes its softmax exactly. They exist
for labelled positions only, and for one chunk of these at a time: the backward pass makes each chunk's logits again. Memory
is so bounded by the chunk, however large the batch and the vocabulary; the price is one more product with the head, 1 % of a
step of the small model. A batch of one chunk is spared it.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Labelled positions whose logits exist at a time: 134 MB in fp32 at the published vocabulary, enough to keep a GPU busy.
CHUNK = 2048
Head = Callable[[torch.Tensor], torch.Tensor]


def next_token_losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """Cross-entropy in nats of the next id at each labelled position. Differentiable in `hidden` and the head's parameters.

    Args:
        head: Hidden states (n, width) to logits (n, V) of any precision. A module is called as one, so that engines that
            gather its parameters around a call find the call.
        hidden: (B, N, width) at N labelled positions.
        targets: (B, N) int64, the ids that follow.
        chunk: Positions whose logits exist at a time.

    Returns:
        (B, N) fp32.
    """
    states, ids = hidden.flatten(0, 1), targets.flatten()
    part = functools.partial(_losses, head)
    if len(ids) <= chunk or not torch.is_grad_enabled():
        losses = [part(*pair) for pair in zip(states.split(chunk), ids.split(chunk), strict=True)]
    else:
        losses = [
            checkpoint(part, *pair, use_reentrant=False) for pair in zip(states.split(chunk), ids.split(chunk), strict=True)
        ]
    return torch.cat(losses).view_as(targets)


def _losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")


def squared_error(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error of rewards or actions, a scalar in fp32.

    Args:
        predicted: (..., A) or (...), any precision.
        wanted: Of a shape that broadcasts to it.
    """
    return nn.functional.mse_loss(predicted.float(), wanted.float().expand_as(predicted))
