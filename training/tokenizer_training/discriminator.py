"""The adversarial loss of tokenizer training: a discriminator that learns to tell frames from reconstructions.

Hinge loss; a convolutional discriminator under spectral norm that judges overlapping parts of a frame; the tokenizer's term
weighs as much, in gradients at the last layer, as the perceptual one, as published (the rule is that of VQGAN,
Esser et al. 2021). Tokenizer and discriminator both take a step every time.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

# Published: four halvings up to 512 channels.
_CHANNELS = (64, 128, 256, 512)
_SLOPE = 0.2
_GREATEST_RATIO = 1e4
_GRADIENT_NORM = 1.0


class Discriminator(nn.Module):
    """Frames (N, 3, H, W) in [0, 1] to scores (N, 1, H / 16, W / 16): above 0 for true ones."""

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
        """Scores of the parts of frames."""
        scores: Tensor = self.layers(2 * frames - 1)
        return scores


def discriminator_loss(true: Tensor, made: Tensor) -> Tensor:
    """Hinge loss of scores: true frames above 1, reconstructions below -1."""
    return torch.relu(1 - true).mean() + torch.relu(1 + made).mean()


def adaptive_ratio(wanted: Tensor, adversarial: Tensor, layer: Tensor, accelerator: Accelerator) -> Tensor:
    """Norm of `wanted`'s gradient at `layer` over that of `adversarial`'s, at most 1e4; mean norms of all processes."""
    gradients = [torch.autograd.grad(term, layer, retain_graph=True)[0] for term in (wanted, adversarial)]
    norms = accelerator.reduce(torch.stack([gradient.float().norm() for gradient in gradients]), "mean")
    return (norms[0] / norms[1].clamp(min=1e-8)).clamp(max=_GREATEST_RATIO)


class AdversarialLoss:
    """The discriminator, its optimizer, and what both losses are made of.

    Args:
        learning_rate: Of the discriminator, constant after the tokenizer's warm-up.
        weight: Of the tokenizer's term.
        start: First step with an adversarial loss.
        accelerator: Prepares both for its processes and checkpoints.
    """

    def __init__(self, learning_rate: float, weight: float, start: int, accelerator: Accelerator) -> None:
        network = Discriminator()
        optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.999), weight_decay=0.0)
        self._network, self._optimizer = accelerator.prepare(network, optimizer)
        self._learning_rate, self._weight, self._start = learning_rate, weight, start
        self._accelerator = accelerator

    def active(self, step: int) -> bool:
        """Whether there is an adversarial loss at this step."""
        return step >= self._start

    def tokenizer_term(self, reconstructions: Tensor, wanted: Tensor, layer: Tensor) -> Tensor:
        """The tokenizer's adversarial term, weighted.

        Args:
            reconstructions: (N, 3, H, W) with gradients.
            wanted: The loss whose gradient sets the measure.
            layer: Weight of the last layer.
        """
        network = self._accelerator.unwrap_model(self._network)
        network.eval()  # the tokenizer's look at it moves no estimate of spectral norms
        frozen = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        adversarial = -functional_call(network, frozen, (reconstructions.float(),)).mean()
        ratio = adaptive_ratio(wanted, adversarial, layer, self._accelerator)
        return self._weight * ratio * adversarial

    def learn(self, frames: Tensor, reconstructions: Tensor, warmup: float) -> Tensor:
        """One step of the discriminator on frames and reconstructions (N, 3, H, W); returns its loss."""
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


def measure_of(terms: dict[str, Tensor]) -> Tensor:
    """The loss that the adversarial one is measured by: the future frames' perceptual one, else their reconstruction's."""
    if "future_lpips" in terms:
        return terms["future_lpips"]
    return torch.stack([terms[name] for name in ("future_l1", "future_l2") if name in terms]).sum()
