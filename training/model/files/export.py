"""Exports the `model/` folder of a run: tokenizer, transformer in the published layout, recipe, provenance and model card.

Everything is written into a temporary folder that is renamed at the end, so an existing `model/` is always complete.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.common import storage
from pipeline.common.errors import ConflictError
from pipeline.common.manifests import sha256_of
from pipeline.config.recipe import Recipe
from tokenize_offline.pretrained.weight_files import first_nonfinite
from tokenize_offline.token_layout import IdLayout
from tokenize_offline.tokenizer import CompressiveVQModel, loading
from tokenize_offline.tokenizer.config import parse_config
from training.model.files.locate import CLIPS, RECIPE, TOKENIZER, TRANSFORMER
from training.model.files.model_card import model_card
from training.model.files.trained_on import clips_file

MODEL_NAME = loading.RUN_MODEL
PROVENANCE_NAME = "provenance.json"
CARD_NAME = "README.md"
log = logging.getLogger(__name__)


class TransformerWriter(Protocol):
    """A network that writes its transformer folder."""

    layout: IdLayout

    def save_transformer(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes a transformer folder with these weights."""


def find_tokenizer(path: str, wanted_sha256: str) -> loading.TokenizerFiles:
    """Finds the tokenizer for an exported model.

    Args:
        path: A folder, URL or hub id.
        wanted_sha256: SHA-256 of the weights that made the token shards.

    Raises:
        SourceError: There is no tokenizer.
        ConflictError: Another tokenizer made the token shards.
    """
    files = loading.locate(path)
    found = loading.weights_sha256(files)
    if found != wanted_sha256:
        raise ConflictError(
            f"{path} is not the tokenizer that made the token shards: its weights have SHA-256 {found}, the shards need "
            f"{wanted_sha256}. Give that tokenizer, or tokenize again."
        )
    return files


def export_model(
    folder: Path,
    network: TransformerWriter,
    weights: dict[str, torch.Tensor],
    tokenizer: loading.TokenizerFiles | None,
    recipe: Recipe,
    provenance: dict[str, Any],
) -> None:
    """Writes a model folder, replacing an existing one.

    Args:
        folder: Folder of the model, local.
        network: Writes the transformer folder; its own weights are not used.
        weights: All parameters by name, in fp32.
        tokenizer: Files for `tokenizer/`; None leaves it out.
        recipe: Resolved recipe.
        provenance: Origin and results of the model, as JSON; `model_card` lists what it must contain.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    if (bad := first_nonfinite(weights)) is not None:
        log.error("%s: %s holds NaN or infinite numbers, so this model can't be opened: use an earlier checkpoint", folder, bad)
    network.save_transformer(staging / TRANSFORMER, weights)
    if tokenizer is not None:
        _write_tokenizer(tokenizer, network.layout.context_length, staging / TOKENIZER)
    (staging / RECIPE).write_text(recipe.as_yaml(), encoding="utf-8")
    seconds = {name: dataset["seconds_per_frame"] for name, dataset in provenance["datasets"].items()}
    (staging / CLIPS).write_bytes(clips_file(seconds))
    (staging / CARD_NAME).write_text(model_card(provenance, recipe), encoding="utf-8")
    digests = {path.relative_to(staging).as_posix(): sha256_of(path) for path in sorted(staging.rglob("*")) if path.is_file()}
    text = json.dumps({**provenance, "sha256": digests}, indent=1, sort_keys=True, allow_nan=False)
    (staging / PROVENANCE_NAME).write_text(text + "\n", encoding="utf-8")
    _put_in_place(staging, folder)


def _write_tokenizer(files: loading.TokenizerFiles, context_length: int, folder: Path) -> None:
    """Writes a tokenizer with the context length of the clips, which may be shorter than its own."""
    config = storage.read_bytes(files.config)
    if parse_config(config, files.config).context_length != context_length:
        tokenizer = CompressiveVQModel.from_files(files)
        tokenizer.set_context_length(context_length)
        tokenizer.save_pretrained(str(folder))
        return
    loading.copy(files, folder)


def _put_in_place(made: Path, folder: Path) -> None:
    """Renames a folder, replacing an existing one, which is removed last."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
