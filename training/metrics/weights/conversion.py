"""Converts weights of JAX networks to safetensors with this project's names and layouts. The output bytes are reproducible."""

import json
import re
from collections.abc import Callable, Mapping

import numpy as np
import safetensors.numpy

from pipeline.common.errors import SourceError
from training.metrics.weights.pickled_arrays import SEPARATOR
from training.metrics.weights.published import I3D_KINETICS, VGG16_LPIPS, Published

# Branches of an Inception block.
_BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
}
_LOGITS = "Logits/Conv3d_0c_1x1"
_I3D_LEAVES = {
    "params|Conv_0|kernel": "conv3d.weight",
    "params|Conv_0|bias": "conv3d.bias",
    "params|BatchNorm_0|bias": "bn.bias",
    "batch_stats|BatchNorm_0|mean": "bn.running_mean",
    "batch_stats|BatchNorm_0|var": "bn.running_var",
}
# Indices of VGG16's convolutions in torchvision's `features`, which also counts ReLUs and pools.
_VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG_LEAF = re.compile(r"VGG16_0\|Conv_(\d+)\|(kernel|bias)")
_LPIPS_HEAD = re.compile(r"NetLinLayer_(\d+)\|Conv_0\|kernel")


def _channels_first(kernel: np.ndarray) -> np.ndarray:
    """Turns (*window, inputs, outputs) into (outputs, inputs, *window)."""
    last = kernel.ndim - 1
    return kernel.transpose(last, last - 1, *range(last - 1))


def i3d_parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the parameters of `I3DFeatures`. The source has no scale of the batch norms, so it is 1.

    Raises:
        SourceError: An array does not belong to the network.
    """
    found = {}
    for name, array in arrays.items():
        kind, *path, layer, leaf = name.split(SEPARATOR)
        target = _I3D_LEAVES.get(SEPARATOR.join([kind, layer, leaf]))
        block = ["logits"] if path == [_LOGITS] else [_BRANCHES.get(part, part) for part in path]
        if target is None:
            raise SourceError(f"I3D has no parameter for the array {name}")
        # Means and variances have the shape (1, 1, 1, 1, C).
        found[".".join([*block, target])] = _channels_first(array) if leaf == "kernel" else array.reshape(-1)
        if target == "bn.bias":
            found[".".join([*block, "bn.weight"])] = np.ones_like(array)
    return found


def vgg_parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns VGG16's convolutions with torchvision's names, and LPIPS' heads with their own.

    Raises:
        SourceError: An array belongs to neither.
    """
    found = {}
    for name, array in arrays.items():
        if match := _VGG_LEAF.fullmatch(name):
            target = f"features.{_VGG_PLACES[int(match[1])]}.{'weight' if match[2] == 'kernel' else 'bias'}"
        elif match := _LPIPS_HEAD.fullmatch(name):
            target = f"lin{match[1]}.model.1.weight"
        else:
            raise SourceError(f"VGG16 and LPIPS have no parameter for the array {name}")
        found[target] = _channels_first(array) if array.ndim == 4 else array
    return found


_CONVERSIONS: dict[str, Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]] = {
    I3D_KINETICS.file: i3d_parameters,
    VGG16_LPIPS.file: vgg_parameters,
}


def as_safetensors(arrays: Mapping[str, np.ndarray], published: Published) -> bytes:
    """Returns the converted file, with its origin in the metadata.

    Raises:
        SourceError: An array does not belong to the network.
    """
    parameters = {name: np.ascontiguousarray(value) for name, value in _CONVERSIONS[published.file](arrays).items()}
    about = {
        "what": published.what,
        "package": published.requirement,
        "licence": published.licence,
        "member": published.member,
        "member_sha256": published.member_sha256,
    }
    # A single entry, because safetensors writes several in random order.
    return safetensors.numpy.save(parameters, {"about": json.dumps(about, sort_keys=True)})
