"""Computes the losses of the world model: next tokens, and rewards and actions if it predicts them.

Only here logits become fp32, so that a model in half precision has an exact softmax. Logits exist for target tokens only, and
for
one chunk of these at a time: the backward pass computes each chunk's logits again. So memory is limited by the chunk, not by
batch and vocabulary. The cost is one more product with the head, 1 % of a step of the small model; a batch of one chunk
avoids it.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Positions whose logits exist at a time: 134 MB in fp32 at the published vocabulary, enough to keep a GPU busy.
CHUNK = 2048
Head = Callable[[torch.Tensor], torch.Tensor]


def next_token_losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """Returns the cross-entropy in nats of each target token. Differentiable in `hidden` and the head's parameters.

    Args:
        head: Maps hidden states (n, width) to logits (n, V) of any precision. A module must be called, not its parameters used,
            because engines gather its parameters around the call.
        hidden: (B, N, width) hidden states before N target tokens.
        targets: (B, N) int64 target tokens.
        chunk: Number of positions whose logits exist at a time.

    Returns:
        (B, N) fp32.
    """
    states, tokens = hidden.flatten(0, 1), targets.flatten()
    losses_of = functools.partial(_losses, head)
    if len(tokens) <= chunk or not torch.is_grad_enabled():
        losses = [losses_of(*pair) for pair in zip(states.split(chunk), tokens.split(chunk), strict=True)]
    else:
        losses = [
            checkpoint(losses_of, *pair, use_reentrant=False)
            for pair in zip(states.split(chunk), tokens.split(chunk), strict=True)
        ]
    return torch.cat(losses).view_as(targets)


def _losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")


def squared_error(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error of rewards or actions, a scalar in fp32.

    Args:
        predicted: (..., A) or (...), any precision.
        wanted: Same shape, or one that broadcasts to it.
    """
    return nn.functional.mse_loss(predicted.float(), wanted.float().expand_as(predicted))
