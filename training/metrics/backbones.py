"""Loads the weights of the networks behind LPIPS and FVD, from a file that the user names or from the cache.

It downloads nothing; `ivideogpt-fetch-weights` fills the cache. Results name the hash of the weights. A file is safetensors or
a plain PyTorch state dict, read with torch's unpickler for tensors only. TorchScript archives are refused: they can run code.
"""

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.manifests import sha256_of
from training.metrics.weights.published import COMMAND, I3D_KINETICS, VGG16_LPIPS, Published

log = logging.getLogger(__name__)

# VGG16 with its classifier has 528 MiB; no other known file is larger.
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Backbone:
    """A published network.

    Attributes:
        name: Name in messages and results.
        option: Option or recipe key that names a weights file.
        source: Text that says where else to get the weights.
        published: The weights in the cache.
        known: Name and first values of a parameter, to recognise the weights in another file.
    """

    name: str
    option: str
    source: str
    published: Published
    known: tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class LoadedWeights:
    """The weights loaded into a network.

    Attributes:
        file: Name of the file, without the folder.
        sha256: SHA-256 of the file.
        source: Text that says where the weights are from.
    """

    file: str
    sha256: str
    source: str

    def describe(self) -> str:
        """Returns a description for results."""
        return f"backbone weights {self.file} ({self.source}), SHA-256 {self.sha256}"


VGG16 = Backbone(
    "VGG16 (ImageNet)",
    "vgg_weights",
    "https://download.pytorch.org/models/vgg16-397923af.pth (torchvision's VGG16_Weights.IMAGENET1K_V1)",
    VGG16_LPIPS,
    ("features.0.bias", (0.403388, 0.37779424, 0.46436158, -0.32276368)),
)
I3D = Backbone(
    "I3D (Kinetics-400, RGB, as on TensorFlow Hub)",
    "i3d_weights",
    "https://github.com/SongweiGe/TATS/blob/main/tats/fvd/i3d_pretrained_400.pt (VideoGPT's conversion of TensorFlow Hub's "
    "i3d-kinetics-400 to a state dict; rgb_imagenet.pt of pytorch-i3d holds other weights, i3d_torchscript.pt would run code)",
    I3D_KINETICS,
    ("logits.conv3d.bias", (0.21120761, 0.4027923, 0.33057767, -0.21681578)),
)


def load_backbone(backbone: Backbone, network: nn.Module, path: str | None, needed_for: str) -> LoadedWeights:
    """Loads weights from a file into a network, freezes it and sets evaluation mode.

    Args:
        backbone: The published network.
        network: Module with the parameter names of the published file; other parameters of the file are ignored.
        path: Weights file; None uses the cache of `ivideogpt-fetch-weights`.
        needed_for: What needs the weights, for messages.

    Raises:
        ConfigError: There is no such file; the message says where to get one.
        SourceError: The file is not weights of this network, or the cached file is damaged.
    """
    file = Path(path) if path is not None else backbone.published.cached()
    if file is None or not file.is_file():
        what = f"{backbone.option} is not set" if path is None else f"{backbone.option} {path} is not a file"
        raise ConfigError(
            f"{needed_for} needs the weights of {backbone.name}, but {what}. Run `{COMMAND}` once, "
            f"or get them from {backbone.source} and name the file with {backbone.option}"
        )
    sha256 = sha256_of(file)
    if path is None and sha256 != backbone.published.sha256:
        raise SourceError(
            f"{file} is damaged: its SHA-256 is {sha256}, not {backbone.published.sha256}. Remove it and run `{COMMAND}`"
        )
    found, expected = _read_weights(file), network.state_dict()
    # Batch counters have no effect, and not every copy of the weights has them.
    names = [name for name in expected if not name.endswith("num_batches_tracked")]
    wrong = [name for name in names if name not in found or found[name].shape != expected[name].shape]
    if wrong:
        raise SourceError(
            f"{file} does not have the weights of {backbone.name}: {len(wrong)} of {len(names)} parameters are missing or have "
            f"another shape, first {wrong[0]}. Run `{COMMAND}`, or get them from {backbone.source}"
        )
    network.load_state_dict({name: found[name].float() for name in names}, strict=False)
    network.eval().requires_grad_(False)
    return LoadedWeights(file.name, sha256, _source(file, sha256, backbone, found))


def _source(file: Path, sha256: str, backbone: Backbone, found: Mapping[str, Tensor]) -> str:
    """Returns where weights are from: the published package, known by its hash, or the file that the user named."""
    if sha256 == backbone.published.sha256:
        return backbone.published.source
    name, values = backbone.known
    same = torch.allclose(found[name].flatten()[: len(values)].float(), torch.tensor(values), rtol=1e-3, atol=1e-4)
    if same:
        return f"given as {backbone.option}; the weights of {backbone.name}"
    log.warning(
        "%s has other weights than those of %s: do not compare scores with published ones",
        file,
        backbone.name,
    )
    return f"given as {backbone.option}; not the weights of {backbone.name}, so not comparable with published scores"


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise SourceError(f"{path} has {size} bytes; the limit for weights of a metric is {_MAX_BYTES}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{path} cannot be read as weights ({reason}); use a .safetensors file or a plain PyTorch state dict, "
            f"not a TorchScript archive or another pickle. `{COMMAND}` downloads such a file; to convert a model whose code "
            "you trust, run safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SourceError(f"{path} has no state dict; use a .safetensors file or a plain PyTorch state dict")
    return state
