"""What the world model is trained on: the next id at labelled positions, and rewards where there are any.

Logits are taken to fp32 here and nowhere else, so that a model in half precision computes its softmax exactly; they exist
for labelled positions only, a third of the sequence in the published layout.
"""

import torch
from torch import nn


def next_id_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of the next id.

    Args:
        logits: (B, N, V) of N labelled positions, any precision.
        targets: (B, N) int64, the ids that follow.

    Returns:
        A scalar, fp32.
    """
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def reward_loss(predicted: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the rewards.

    Args:
        predicted: (B, f) one reward per future frame.
        reward: (B, f) the rewards of the actions that lead to these frames.

    Returns:
        A scalar, fp32.
    """
    return nn.functional.mse_loss(predicted.float(), reward.float())
