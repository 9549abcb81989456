"""Reads and writes transformer folders: `config.json`, `generation_config.json` and `model.safetensors`, as in `transformers`.

It handles files and parameter names; the network knows what the parameters mean. Weights can be compared with a configuration
by the files' headers, before they take memory. Folders with and without heads use different names, and some tie the last layer
to the embeddings. Readers here always get one form: this project's names and a separate last layer, with equal results.
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
LLAMA = "llm."  # prefix of the Llama's parameters; a folder without heads leaves it out
_EMBEDDINGS, _LAST = f"{LLAMA}model.embed_tokens.weight", f"{LLAMA}lm_head.weight"
_TABLES = ".rotary_emb.inv_freq"  # computed from the configuration; old releases of transformers stored them too


@dataclass(frozen=True)
class TransformerFolder:
    """A transformer folder with a valid configuration and valid headers of its weight files.

    Attributes:
        folder: The folder.
        config: Configuration of the Llama, with a separate last layer.
        tied: Whether the file says that the last layer equals the embeddings.
        names: Names of all parameters in the files, by this project's names.
        files: The weight files.
    """

    folder: Path
    config: LlamaConfig
    tied: bool
    names: Mapping[str, str]
    files: WeightFiles

    @property
    def shapes(self) -> Shapes:
        """Shapes of all parameters, by this project's names."""
        shapes = {own: self.files.shapes[name] for own, name in self.names.items()}
        if self.tied and _EMBEDDINGS in shapes:
            shapes.setdefault(_LAST, shapes[_EMBEDDINGS])
        return shapes

    def read(self) -> dict[str, torch.Tensor]:
        """Reads all parameters in fp32 on the CPU, by this project's names.

        Raises:
            SourceError: The weights are damaged or contain NaN or infinite values, or a last layer that should be tied differs.
        """
        read = self.files.read(self.names.values())
        tensors = {own: read[name] for own, name in self.names.items()}
        if self.tied and not torch.equal(tensors.setdefault(_LAST, tensors[_EMBEDDINGS].clone()), tensors[_EMBEDDINGS]):
            raise SourceError(
                f"{self.folder / CONFIG}: tie_word_embeddings is true, but {self.files.path.name} has another last layer "
                "than the embeddings: set it to false, or remove the last layer"
            )
        return tensors


def write(folder: str | Path, config: LlamaConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a transformer folder, created if missing; the weights come last."""
    stated = LlamaConfig.from_dict(config.to_dict())
    stated.dtype = next(iter(tensors.values())).dtype
    Path(folder).mkdir(parents=True, exist_ok=True)
    stated.save_pretrained(folder)
    GenerationConfig.from_model_config(stated).save_pretrained(folder)
    with storage.staged(str(Path(folder) / WEIGHTS)) as staging:
        on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, staging, metadata={"format": "pt"})


def open_folder(folder: str | Path) -> TransformerFolder:
    """Opens a local transformer folder: its configuration and the headers of its weights.

    Raises:
        SourceError: A file is missing or damaged, or the configuration needs something that this code doesn't compute.
    """
    config = read_config(folder)
    files = find_weights(Path(folder), WEIGHTS)
    kept = [name for name in files.shapes if not name.endswith(_TABLES)]
    prefix = "" if any(name.startswith(LLAMA) for name in kept) else LLAMA
    tied, config.tie_word_embeddings = bool(config.tie_word_embeddings), False
    return TransformerFolder(Path(folder), config, tied, {prefix + name: name for name in kept}, files)


def read_config(folder: str | Path) -> LlamaConfig:
    """Reads the Llama's configuration.

    Raises:
        SourceError: The file is missing, not a Llama, or one that this code can't compute.
    """
    path = Path(folder) / CONFIG
    try:
        return parse_llama_config(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise SourceError(f"{path} doesn't exist: a transformer folder has {CONFIG} and {WEIGHTS}") from error
    except OSError as error:
        raise SourceError(f"{path} can't be read ({error.strerror})") from error


def require_layers(config: LlamaConfig, shapes: Shapes, folder: str | Path) -> None:
    """Refuses a configuration with more layers than the weights file has parameters, before the layers are built.

    Raises:
        SourceError: It has more.
    """
    if config.num_hidden_layers > len(shapes):
        raise SourceError(
            f"{folder}: {CONFIG} says {config.num_hidden_layers} layers, but {WEIGHTS} has only {len(shapes)} parameters"
        )
