"""Weights of the networks that metrics and losses look through, read from a path that the user names.

Nothing is downloaded: which weights were used is part of a result, so the user fetches them once and the result names their
hash. A `.safetensors` file or a plain PyTorch state dict will do; the latter goes through torch's unpickler for tensors
alone. TorchScript archives run code when they are opened and are refused.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.errors import ConfigError, SourceError
from pipeline.records import sha256_of

# VGG16 with its classifier has 528 MiB; nothing known here is larger.
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Backbone:
    """A published network.

    Attributes:
        name: For messages and results.
        option: What names its weights on the command line or in a recipe.
        source: Where they can be had from, in words.
    """

    name: str
    option: str
    source: str


VGG16 = Backbone(
    "VGG16 (ImageNet)",
    "vgg_weights",
    "https://download.pytorch.org/models/vgg16-397923af.pth (torchvision's VGG16_Weights.IMAGENET1K_V1)",
)
I3D = Backbone(
    "I3D (Kinetics-400, RGB, as on TensorFlow Hub)",
    "i3d_weights",
    "https://github.com/SongweiGe/TATS/blob/main/tats/fvd/i3d_pretrained_400.pt (VideoGPT's conversion of TensorFlow Hub's "
    "i3d-kinetics-400 to a state dict; rgb_imagenet.pt of pytorch-i3d holds other weights, i3d_torchscript.pt would run code)",
)


def load_backbone(backbone: Backbone, network: nn.Module, path: str | None, needed_for: str) -> str:
    """Fill a network with weights from a file; it is left frozen and in evaluation mode.

    Args:
        backbone: Which it is.
        network: With the parameter names of the published file; what the file has beyond them is left unread.
        path: The file; None where the user named none.
        needed_for: What asks for it, for the message.

    Returns:
        SHA-256 of the file.

    Raises:
        ConfigError: No file is named, or it is not there; the message says where to get one.
        SourceError: The file can't be read as weights, or lacks parameters of this network.
    """
    if path is None or not Path(path).is_file():
        what = "names no file" if path is None else f"names {path}, which is no file"
        raise ConfigError(
            f"{needed_for} needs the weights of {backbone.name}, and {backbone.option} {what}. Fetch them from "
            f"{backbone.source}, and name the file with {backbone.option}"
        )
    found, expected = _read_weights(Path(path)), network.state_dict()
    # Batch counters decide nothing here, and not every copy has them.
    names = [name for name in expected if not name.endswith("num_batches_tracked")]
    wrong = [name for name in names if name not in found or found[name].shape != expected[name].shape]
    if wrong:
        raise SourceError(
            f"{path} does not hold the weights of {backbone.name}: {len(wrong)} of {len(names)} parameters are missing or of "
            f"another shape, first {wrong[0]}. Fetch {backbone.source}"
        )
    network.load_state_dict({name: found[name].float() for name in names}, strict=False)
    network.eval().requires_grad_(False)
    return sha256_of(Path(path))


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise SourceError(f"{path} has {size} bytes; weights of a metric have at most {_MAX_BYTES}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{path} can't be read as weights ({reason}); give a .safetensors file or a plain PyTorch state dict, "
            "no TorchScript archive and no pickled model"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SourceError(f"{path} holds no state dict; give a .safetensors file or a plain PyTorch state dict")
    return state
