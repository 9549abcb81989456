"""Computes the adversarial loss of tokenizer training: a discriminator learns to tell frames from reconstructions.

The loss is the hinge loss. The discriminator is a convolutional network under spectral norm that scores overlapping patches of
a frame. The tokenizer's term gets the weight that makes its gradient at the last layer as large as that of the perceptual
term, as published (the rule of VQGAN, Esser et al. 2021). Tokenizer and discriminator both take a step every time.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

# Published: four downsampling layers up to 512 channels.
_CHANNELS = (64, 128, 256, 512)
_SLOPE = 0.2
_GREATEST_RATIO = 1e4
_GRADIENT_NORM = 1.0


class Discriminator(nn.Module):
    """Maps frames (N, 3, H, W) in [0, 1] to scores (N, 1, H / 16, W / 16), above 0 for real frames."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in _CHANNELS:
            layers.append(spectral_norm(nn.Conv2d(before, channels, 3, stride=2, padding=1)))
            if before > 3:
                layers.append(nn.InstanceNorm2d(channels))
            layers.append(nn.LeakyReLU(_SLOPE))
            before = channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """Returns the scores of the patches of frames."""
        scores: Tensor = self.layers(2 * frames - 1)
        return scores


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Returns the hinge loss of scores: real frames should be above 1, reconstructions below -1."""
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def adaptive_ratio(reference: Tensor, adversarial: Tensor, layer: Tensor, accelerator: Accelerator) -> Tensor:
    """Returns the gradient norm of `reference` at `layer` over that of `adversarial`, at most 1e4; means over all processes."""
    gradients = [torch.autograd.grad(term, layer, retain_graph=True)[0] for term in (reference, adversarial)]
    norms = accelerator.reduce(torch.stack([gradient.float().norm() for gradient in gradients]), "mean")
    return (norms[0] / norms[1].clamp(min=1e-8)).clamp(max=_GREATEST_RATIO)


class AdversarialLoss:
    """The discriminator with its optimizer; computes the losses of tokenizer and discriminator.

    Args:
        learning_rate: Learning rate of the discriminator, constant after the tokenizer's warm-up.
        weight: Weight of the tokenizer's term.
        start: First step with an adversarial loss.
        accelerator: Wraps network and optimizer for all processes, and saves them in checkpoints.
    """

    def __init__(self, learning_rate: float, weight: float, start: int, accelerator: Accelerator) -> None:
        network = Discriminator()
        optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.999), weight_decay=0.0)
        self._network, self._optimizer = accelerator.prepare(network, optimizer)
        self._learning_rate, self._weight, self._start = learning_rate, weight, start
        self._accelerator = accelerator

    def active(self, step: int) -> bool:
        """Returns whether there is an adversarial loss at this step."""
        return step >= self._start

    def tokenizer_term(self, reconstructions: Tensor, reference: Tensor, layer: Tensor) -> Tensor:
        """Returns the tokenizer's weighted adversarial term.

        Args:
            reconstructions: (N, 3, H, W) with gradients.
            reference: Loss term whose gradient norm this term gets.
            layer: Weights of the last layer.
        """
        network = self._accelerator.unwrap_model(self._network)
        network.eval()  # scoring for the tokenizer must not update the estimates of spectral norms
        frozen = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        adversarial = -functional_call(network, frozen, (reconstructions.float(),)).mean()
        ratio = adaptive_ratio(reference, adversarial, layer, self._accelerator)
        return self._weight * ratio * adversarial

    def learn(self, frames: Tensor, reconstructions: Tensor, warmup: float) -> Tensor:
        """Takes one step of the discriminator on frames and reconstructions (N, 3, H, W); returns its loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * warmup
        self._network.train()
        scores = self._network(torch.cat([frames, reconstructions.detach().float()]))
        loss = discriminator_loss(*scores.chunk(2))
        self._optimizer.zero_grad()
        self._accelerator.backward(loss)
        self._accelerator.clip_grad_norm_(self._network.parameters(), _GRADIENT_NORM)
        self._optimizer.step()
        return loss.detach()


def reference_term(terms: dict[str, Tensor]) -> Tensor:
    """Returns the term that scales the adversarial one: LPIPS of future frames, else their reconstruction loss."""
    if "future_lpips" in terms:
        return terms["future_lpips"]
    return torch.stack([terms[name] for name in ("future_l1", "future_l2") if name in terms]).sum()
