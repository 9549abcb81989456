"""Finds, reads and writes tokenizer files in the published layout.

Only safetensors is read, so nothing in a checkpoint can run code. Weights are compared with the network's shapes before memory
is allocated.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from fsspec.core import url_to_fs
from torch import Tensor

from pipeline.common import storage
from pipeline.common.errors import SourceError
from tokenize_offline.pretrained import hub
from tokenize_offline.pretrained.hub import cache_folder
from tokenize_offline.pretrained.weight_files import (
    WeightFiles,
    find_weights,
    is_weight_file,
    refuse_pickles,
    require_shapes,
    weights_patterns,
)
from tokenize_offline.tokenizer.config import CompressiveVQConfig, parse_config

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SUBFOLDER = "tokenizer"
RUN_MODEL = "model"  # folder of the exported model in a training run


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer.

    Attributes:
        config: Path or URL of `config.json`.
        weights: Weight files in a local folder.
    """

    config: str
    weights: WeightFiles


def locate(path: str, subfolder: str | None = None) -> TokenizerFiles:
    """Find a tokenizer's files in a folder, at a URL or on the Hugging Face hub. Remote weights are cached locally.

    Raises:
        SourceError: There are no files, they are pickles, or they disagree; the message names the folders searched.
    """
    if not storage.exists(path):
        prefixes = [f"{subfolder}/"] if subfolder else ["", f"{SUBFOLDER}/"]
        path = hub.fetch(
            path, [prefix + file for prefix in prefixes for file in (CONFIG_NAME, *weights_patterns(WEIGHTS_NAME))]
        )
    if storage.is_local(path) and storage.local_path(path).is_file():
        refuse_pickles("", [path], WEIGHTS_NAME)
        raise SourceError(f"{path} is a file: pass the folder with a tokenizer's {CONFIG_NAME} and {WEIGHTS_NAME}")
    subfolders = [subfolder] if subfolder else ["", SUBFOLDER, f"{RUN_MODEL}/{SUBFOLDER}"]
    folders = [storage.join(path, name) if name else path for name in subfolders]
    existing = {folder: storage.list_files(folder) for folder in folders if storage.exists(folder)}
    for folder, names in existing.items():
        if CONFIG_NAME in names and any(is_weight_file(WEIGHTS_NAME, name) for name in names):
            return TokenizerFiles(storage.join(folder, CONFIG_NAME), find_weights(_local(folder, names), WEIGHTS_NAME))
    for folder, names in existing.items():
        refuse_pickles(folder, names, WEIGHTS_NAME)
    raise SourceError(f"no {CONFIG_NAME} with {WEIGHTS_NAME} in {' or '.join(folders)}; pass the folder of a tokenizer")


def _local(folder: str, names: Sequence[str]) -> Path:
    """Local folder of the weights. Copies from a URL are cached by version, so changed files are fetched again."""
    if storage.is_local(folder):
        return storage.local_path(folder)
    files = [storage.join(folder, name) for name in names if is_weight_file(WEIGHTS_NAME, name)]
    versions = []
    for file in files:
        fs, inner = url_to_fs(file)
        versions.append(f"{file} {fs.ukey(inner)}")
    cache = cache_folder("tokenizers") / hashlib.sha256("\n".join(versions).encode()).hexdigest()
    for file in files:
        storage.local_copy(file, cache)
    return cache


def read_config(files: TokenizerFiles) -> CompressiveVQConfig:
    """Read the config of a tokenizer.

    Raises:
        ConfigError: This code can't build that network.
    """
    return parse_config(storage.read_bytes(files.config), files.config)


def read_weights(files: TokenizerFiles, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the weights in fp32, after comparing names and shapes with `expected` (a state dict, on any device).

    Raises:
        SourceError: A file is damaged, values are not finite, or parameters are missing, unknown or of another shape.
    """
    require_shapes(files.weights.shapes, expected, files.weights.path)
    return files.weights.read(expected)


def weights_sha256(files: TokenizerFiles) -> str:
    """SHA-256 of the weights, by which token shards identify their tokenizer."""
    return files.weights.sha256()


def copy(files: TokenizerFiles, folder: Path) -> None:
    """Copy a tokenizer's files, byte for byte, into a new local folder."""
    folder.mkdir()
    for path in (*files.weights.files, *([files.weights.index] if files.weights.index else [])):
        shutil.copyfile(path, folder / path.name)
    (folder / CONFIG_NAME).write_bytes(storage.read_bytes(files.config))


def save(path: str, config: CompressiveVQConfig, state: Mapping[str, Tensor], precision: torch.dtype) -> None:
    """Write a tokenizer's weights, then its config, into the folder (or URL) `path`."""
    weights = {name: tensor.detach().to(precision).cpu().contiguous() for name, tensor in state.items()}
    with storage.staged(storage.join(path, WEIGHTS_NAME)) as staging:
        safetensors.torch.save_file(weights, staging, metadata={"format": "pt"})
    storage.write_bytes(storage.join(path, CONFIG_NAME), config.to_json().encode())
