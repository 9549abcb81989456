"""Tokenizer files: where they lie, reading them with every mismatch named, and writing them in the published layout.

Only safetensors is read: nothing in a checkpoint can run code. Weights are checked against the network's shapes before
any memory is taken for them.
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
from tokenize_offline.pretrained.weight_files import WeightFiles, find_weights, is_weight_file, refuse_pickles, weights_patterns
from tokenize_offline.tokenizer.config import CompressiveVQConfig, parse_config

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SUBFOLDER = "tokenizer"
RUN_MODEL = "model"  # the folder of a training run that holds the exported model


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer.

    Attributes:
        config: Path or URL of `config.json`.
        weights: Local.
    """

    config: str
    weights: WeightFiles


def locate(path: str, subfolder: str | None = None) -> TokenizerFiles:
    """Find a tokenizer's files in a folder, at a URL or on the Hugging Face hub (which is then cached locally).

    Raises:
        SourceError: There are none, they are pickles, or disagree; the message says where they were looked for.
    """
    if not storage.exists(path):
        prefixes = [f"{subfolder}/"] if subfolder else ["", f"{SUBFOLDER}/"]
        path = hub.fetch(
            path, [prefix + file for prefix in prefixes for file in (CONFIG_NAME, *weights_patterns(WEIGHTS_NAME))]
        )
    if storage.is_local(path) and storage.local_path(path).is_file():
        refuse_pickles("", [path], WEIGHTS_NAME)
        raise SourceError(f"{path} is a file: name the folder that holds a tokenizer's {CONFIG_NAME} and {WEIGHTS_NAME}")
    places = [subfolder] if subfolder else ["", SUBFOLDER, f"{RUN_MODEL}/{SUBFOLDER}"]
    folders = [storage.join(path, place) if place else path for place in places]
    held = {folder: storage.list_files(folder) for folder in folders if storage.exists(folder)}
    for folder, names in held.items():
        if CONFIG_NAME in names and any(is_weight_file(WEIGHTS_NAME, name) for name in names):
            return TokenizerFiles(storage.join(folder, CONFIG_NAME), find_weights(_local(folder, names), WEIGHTS_NAME))
    for folder, names in held.items():
        refuse_pickles(folder, names, WEIGHTS_NAME)
    raise SourceError(f"no {CONFIG_NAME} with {WEIGHTS_NAME} in {' or '.join(folders)}; name the folder of a tokenizer")


def _local(folder: str, names: Sequence[str]) -> Path:
    """Weights at a URL are kept in a cache, by what the store says of the files, so that changed ones are fetched again."""
    if storage.is_local(folder):
        return storage.local_path(folder)
    files = [storage.join(folder, name) for name in names if is_weight_file(WEIGHTS_NAME, name)]
    marks = []
    for file in files:
        fs, inner = url_to_fs(file)
        marks.append(f"{file} {fs.ukey(inner)}")
    cache = cache_folder("tokenizers") / hashlib.sha256("\n".join(marks).encode()).hexdigest()
    for file in files:
        storage.local_copy(file, cache)
    return cache


def read_config(files: TokenizerFiles) -> CompressiveVQConfig:
    """The config of a tokenizer.

    Raises:
        ConfigError: It is none that this code builds.
    """
    return parse_config(storage.read_bytes(files.config), files.config)


def read_weights(files: TokenizerFiles, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in fp32, after checking names and shapes against `expected` (a state dict, on any device).

    Raises:
        SourceError: A file is damaged or holds what is no number, or parameters are missing, unknown or of another shape; all
            kinds are named.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    _require_same(files.weights.shapes, wanted, files.weights.path)
    return files.weights.read(wanted)


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
    """SHA-256 of the weights: what token shards name their tokenizer by."""
    return files.weights.sha256()


def copy(files: TokenizerFiles, folder: Path) -> None:
    """Copy a tokenizer's files, byte for byte, into a new local folder."""
    folder.mkdir()
    for path in (*files.weights.files, *([files.weights.index] if files.weights.index else [])):
        shutil.copyfile(path, folder / path.name)
    (folder / CONFIG_NAME).write_bytes(storage.read_bytes(files.config))


def save(path: str, config: CompressiveVQConfig, state: Mapping[str, Tensor], precision: torch.dtype) -> None:
    """Publish a tokenizer's two files in the folder (or URL) `path`, the config last."""
    weights = {name: tensor.detach().to(precision).cpu().contiguous() for name, tensor in state.items()}
    with storage.staged(storage.join(path, WEIGHTS_NAME)) as staging:
        safetensors.torch.save_file(weights, staging, metadata={"format": "pt"})
    storage.write_bytes(storage.join(path, CONFIG_NAME), config.to_json().encode())
