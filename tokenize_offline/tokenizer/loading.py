"""Tokenizer files: where they lie, reading them with every mismatch named, and writing them in the published layout.

Only safetensors is read: nothing in a checkpoint can run code. Weights are checked against the network's shapes before
any memory is taken for them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from fsspec.core import url_to_fs
from safetensors import SafetensorError
from torch import Tensor

from pipeline import storage
from pipeline.errors import SourceError
from pipeline.records import sha256_of
from tokenize_offline import hub
from tokenize_offline.cache import cache_folder
from tokenize_offline.tokenizer.config import CompressiveVQConfig, parse_config

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SUBFOLDER = "tokenizer"


@dataclass(frozen=True)
class TokenizerFiles:
    """The two files of a tokenizer.

    Attributes:
        config: Path or URL of `config.json`.
        weights: Local path of the weights.
    """

    config: str
    weights: Path


def locate(path: str, subfolder: str | None = None) -> TokenizerFiles:
    """Find a tokenizer's files in a folder, at a URL or on the Hugging Face hub (which is then cached locally).

    Raises:
        SourceError: There are none; the message says where they were looked for.
    """
    if not storage.exists(path):
        prefixes = [f"{subfolder}/"] if subfolder else ["", f"{SUBFOLDER}/"]
        path = hub.fetch(path, [prefix + file for prefix in prefixes for file in (CONFIG_NAME, WEIGHTS_NAME)])
    folders = [storage.join(path, subfolder)] if subfolder else [path, storage.join(path, SUBFOLDER)]
    for folder in folders:
        weights = storage.join(folder, WEIGHTS_NAME)
        if storage.exists(weights) and storage.exists(storage.join(folder, CONFIG_NAME)):
            return TokenizerFiles(storage.join(folder, CONFIG_NAME), _local(weights))
    raise SourceError(f"no {CONFIG_NAME} with {WEIGHTS_NAME} in {' or '.join(folders)}; name the folder of a tokenizer")


def _local(weights: str) -> Path:
    """Weights at a URL are kept in a cache, by what the store says of the file, so that a changed one is fetched again."""
    if storage.is_local(weights):
        return storage.local_path(weights)
    fs, inner = url_to_fs(weights)
    version = hashlib.sha256(f"{weights} {fs.ukey(inner)}".encode()).hexdigest()
    return storage.local_copy(weights, cache_folder("tokenizers") / version)


def read_config(files: TokenizerFiles) -> CompressiveVQConfig:
    """The config of a tokenizer.

    Raises:
        ConfigError: It is none that this code builds.
    """
    return parse_config(storage.read_bytes(files.config), files.config)


def read_weights(files: TokenizerFiles, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in fp32, after checking names and shapes against `expected` (a state dict, on any device).

    Raises:
        SourceError: The file is damaged, or parameters are missing, unknown or of another shape; all kinds are named.
    """
    try:
        with safetensors.safe_open(files.weights, framework="pt") as archive:
            names = archive.keys()
            found = {name: tuple(archive.get_slice(name).get_shape()) for name in names}
            _require_same(found, {name: tuple(tensor.shape) for name, tensor in expected.items()}, files.weights)
            return {name: archive.get_tensor(name).float() for name in expected}
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{files.weights} can't be read as safetensors ({error}); fetch or write it again") from error


def _require_same(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], where: Path) -> None:
    shared = found.keys() & expected.keys()
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {found[name]} (expected {expected[name]})" for name in sorted(shared) if found[name] != expected[name]
        ],
    }
    texts = [f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
    if texts:
        raise SourceError(f"{where} does not fit its config.json; parameters " + "; ".join(texts))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", .." if len(names) > 5 else "")


def weights_sha256(files: TokenizerFiles) -> str:
    """SHA-256 of the weights file: what token shards name their tokenizer by."""
    return sha256_of(files.weights)


def save(path: str, config: CompressiveVQConfig, state: Mapping[str, Tensor], precision: torch.dtype) -> None:
    """Publish a tokenizer's two files in the folder (or URL) `path`, the config last."""
    weights = {name: tensor.detach().to(precision).cpu().contiguous() for name, tensor in state.items()}
    with storage.staged(storage.join(path, WEIGHTS_NAME)) as staging:
        safetensors.torch.save_file(weights, staging, metadata={"format": "pt"})
    storage.write_bytes(storage.join(path, CONFIG_NAME), config.to_json().encode())
