"""Transformer folders: `config.json`, `generation_config.json` and `model.safetensors`, as `transformers` lays them out.

Files and parameter names only; what the parameters mean is the network's business. Weights can be compared with a
configuration from their files' headers, before any memory is taken for them. Names differ between folders with and without
heads, and some folders tie the last layer to the embeddings; whoever reads them here sees one form: our network's names, and a
last layer of its own, which computes the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaConfig

from pipeline.common import storage
from pipeline.common.errors import SourceError
from tokenize_offline.pretrained.weight_files import Shapes, WeightFiles, find_weights
from training.model.files.llama_config import parse_llama_config

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LLAMA = "llm."  # in front of the Llama's parameters, which a folder without heads leaves out
_EMBEDDINGS, _LAST = f"{LLAMA}model.embed_tokens.weight", f"{LLAMA}lm_head.weight"
_TABLES = ".rotary_emb.inv_freq"  # follow from the configuration; old releases of transformers kept them too


@dataclass(frozen=True)
class TransformerFolder:
    """A transformer folder that was found sound as far as its configuration and its weights' headers tell.

    Attributes:
        folder: Where it lies.
        config: The Llama's, with a last layer of its own.
        tied: Whether the file states that the last layer is the embeddings once more.
        names: Of all parameters in the files, by our network's names.
        files: Of the weights.
    """

    folder: Path
    config: LlamaConfig
    tied: bool
    names: Mapping[str, str]
    files: WeightFiles

    @property
    def shapes(self) -> Shapes:
        """Of all parameters, under our network's names."""
        shapes = {own: self.files.shapes[name] for own, name in self.names.items()}
        if self.tied and _EMBEDDINGS in shapes:
            shapes.setdefault(_LAST, shapes[_EMBEDDINGS])
        return shapes

    def read(self) -> dict[str, torch.Tensor]:
        """All parameters in fp32 on the CPU, under our network's names.

        Raises:
            SourceError: The weights are damaged, or hold what is no number, or a last layer that should be tied and isn't.
        """
        read = self.files.read(self.names.values())
        tensors = {own: read[name] for own, name in self.names.items()}
        if self.tied and not torch.equal(tensors.setdefault(_LAST, tensors[_EMBEDDINGS].clone()), tensors[_EMBEDDINGS]):
            raise SourceError(
                f"{self.folder / CONFIG}: tie_word_embeddings is true, but {self.files.path.name} holds another last layer "
                "than the embeddings: set it to false, or take the last layer out"
            )
        return tensors


def write(folder: str | Path, config: LlamaConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a transformer folder, made if it isn't there, weights last."""
    stated = LlamaConfig.from_dict(config.to_dict())
    stated.dtype = next(iter(tensors.values())).dtype
    Path(folder).mkdir(parents=True, exist_ok=True)
    stated.save_pretrained(folder)
    GenerationConfig.from_model_config(stated).save_pretrained(folder)
    with storage.staged(str(Path(folder) / WEIGHTS)) as staging:
        on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, staging, metadata={"format": "pt"})


def open_folder(folder: str | Path) -> TransformerFolder:
    """The configuration and the weights' headers of a local transformer folder.

    Raises:
        SourceError: A file is missing or damaged, or the configuration states what this code doesn't compute.
    """
    config = read_config(folder)
    files = find_weights(Path(folder), WEIGHTS)
    kept = [name for name in files.shapes if not name.endswith(_TABLES)]
    prefix = "" if any(name.startswith(LLAMA) for name in kept) else LLAMA
    tied, config.tie_word_embeddings = bool(config.tie_word_embeddings), False
    return TransformerFolder(Path(folder), config, tied, {prefix + name: name for name in kept}, files)


def read_config(folder: str | Path) -> LlamaConfig:
    """The Llama's configuration.

    Raises:
        SourceError: The file is missing, states no Llama, or one that this code doesn't compute.
    """
    path = Path(folder) / CONFIG
    try:
        return parse_llama_config(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise SourceError(f"{path} isn't there: a transformer folder holds {CONFIG} and {WEIGHTS}") from error
    except OSError as error:
        raise SourceError(f"{path} can't be read ({error.strerror})") from error


def require_layers(config: LlamaConfig, shapes: Shapes, folder: str | Path) -> None:
    """Refuse a configuration that states more layers than the weights file has parameters, before they are built.

    Raises:
        SourceError: It does.
    """
    if config.num_hidden_layers > len(shapes):
        raise SourceError(
            f"{folder}: {CONFIG} states {config.num_hidden_layers} layers, {WEIGHTS} holds {len(shapes)} parameters in all"
        )
