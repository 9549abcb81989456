"""Weights of the networks that metrics and losses look through: of a file that the user names, else of the cache.

Nothing is downloaded here: `ivideogpt-fetch-weights` fills the cache once, and a result names the hash of what was used. A
`.safetensors` file or a plain PyTorch state dict will do; the latter goes through torch's unpickler for tensors alone.
TorchScript archives run code when they are opened and are refused.
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

# VGG16 with its classifier has 528 MiB; nothing known here is larger.
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Backbone:
    """A published network.

    Attributes:
        name: For messages and results.
        option: What names its weights on the command line or in a recipe.
        source: Where else they can be had from, in words.
        published: What the cache holds of it.
        known: A parameter's name and its first values, by which a file in another form is recognised.
    """

    name: str
    option: str
    source: str
    published: Published
    known: tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class LoadedWeights:
    """What fills a network.

    Attributes:
        file: Its name, without the folder.
        sha256: Of the file.
        source: Where it is from, in words.
    """

    file: str
    sha256: str
    source: str

    def describe(self) -> str:
        """For results."""
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
    """Fill a network with weights from a file; it is left frozen and in evaluation mode.

    Args:
        backbone: Which it is.
        network: With the parameter names of the published file; what the file has beyond them is left unread.
        path: The file; None takes what `ivideogpt-fetch-weights` left in the cache.
        needed_for: What asks for it, for the message.

    Returns:
        What filled it.

    Raises:
        ConfigError: The file is not there, or none is named and the cache holds none; the message says where to get one.
        SourceError: The file can't be read as weights, or lacks parameters of this network, or the cache's is damaged.
    """
    file = Path(path) if path is not None else backbone.published.cached()
    if file is None or not file.is_file():
        what = "names no file" if path is None else f"names {path}, which is no file"
        raise ConfigError(
            f"{needed_for} needs the weights of {backbone.name}, and {backbone.option} {what}. Run `{COMMAND}` once, "
            f"or get them from {backbone.source} and name the file with {backbone.option}"
        )
    sha256 = sha256_of(file)
    if path is None and sha256 != backbone.published.sha256:
        raise SourceError(
            f"{file} is damaged: its SHA-256 is {sha256}, not {backbone.published.sha256}. Remove it and run `{COMMAND}`"
        )
    found, expected = _read_weights(file), network.state_dict()
    # Batch counters decide nothing here, and not every copy has them.
    names = [name for name in expected if not name.endswith("num_batches_tracked")]
    wrong = [name for name in names if name not in found or found[name].shape != expected[name].shape]
    if wrong:
        raise SourceError(
            f"{file} does not hold the weights of {backbone.name}: {len(wrong)} of {len(names)} parameters are missing or of "
            f"another shape, first {wrong[0]}. Run `{COMMAND}`, or get them from {backbone.source}"
        )
    network.load_state_dict({name: found[name].float() for name in names}, strict=False)
    network.eval().requires_grad_(False)
    return LoadedWeights(file.name, sha256, _source(file, sha256, backbone, found))


def _source(file: Path, sha256: str, backbone: Backbone, found: Mapping[str, Tensor]) -> str:
    """Where weights are from: the published package, known by the file's hash, or whatever the user named."""
    if sha256 == backbone.published.sha256:
        return backbone.published.source
    name, values = backbone.known
    same = torch.allclose(found[name].flatten()[: len(values)].float(), torch.tensor(values), rtol=1e-3, atol=1e-4)
    if same:
        return f"given as {backbone.option}; the weights of {backbone.name}"
    log.warning(
        "%s holds other weights than those of %s: what is measured with them can't be compared with published numbers",
        file,
        backbone.name,
    )
    return f"given as {backbone.option}; not the weights of {backbone.name}, so no number to compare with published ones"


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
            f"no TorchScript archive and no other pickle. `{COMMAND}` brings such a file; a model in PyTorch becomes one by "
            "safetensors.torch.save_file(model.state_dict(), FILE), where its code is trusted"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SourceError(f"{path} holds no state dict; give a .safetensors file or a plain PyTorch state dict")
    return state
