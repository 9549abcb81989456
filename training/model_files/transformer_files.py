"""Transformer folders: `config.json`, `generation_config.json` and `model.safetensors`, as `transformers` lays them out.

Files and parameter names only; what the parameters mean is the network's business. Weights can be compared with a
configuration from the file's header, before any memory is taken for them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaConfig

from pipeline import storage
from pipeline.errors import SourceError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

Shapes = dict[str, tuple[int, ...]]


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


def read_config(folder: str | Path) -> LlamaConfig:
    """The Llama's configuration.

    Raises:
        SourceError: The file is missing or states no Llama.
    """
    path = Path(folder) / CONFIG
    try:
        raw = json.loads(path.read_bytes())
        if raw.get("model_type") != "llama":
            raise SourceError(f"{path} is of model type {raw.get('model_type')!r}, not llama")
        return LlamaConfig.from_dict(raw)
    except FileNotFoundError as error:
        raise SourceError(f"{path} isn't there: a transformer folder holds {CONFIG} and {WEIGHTS}") from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise SourceError(f"{path} is no Llama configuration ({error})") from error


def read_shapes(folder: str | Path) -> Shapes:
    """Parameter names and shapes, from the header of the weights file alone.

    Raises:
        SourceError: The file is missing or damaged.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except FileNotFoundError as error:
        raise SourceError(f"{path} isn't there: a transformer folder holds {CONFIG} and {WEIGHTS}") from error
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} can't be read as safetensors ({error}); fetch or write it again") from error


def read_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """All parameters, on the CPU.

    Raises:
        SourceError: The file is missing or damaged.
    """
    path = Path(folder) / WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise SourceError(f"{path} isn't there: a transformer folder holds {CONFIG} and {WEIGHTS}") from error
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} can't be read as safetensors ({error}); fetch or write it again") from error


def require_layers(config: LlamaConfig, shapes: Shapes, folder: str | Path) -> None:
    """Refuse a configuration that states more layers than the weights file has parameters, before they are built.

    Raises:
        SourceError: It does.
    """
    if config.num_hidden_layers > len(shapes):
        raise SourceError(
            f"{folder}: {CONFIG} states {config.num_hidden_layers} layers, {WEIGHTS} holds {len(shapes)} parameters in all"
        )


def require_same_shapes(wanted: Mapping[str, torch.Tensor], found: Shapes, folder: str | Path) -> None:
    """Refuse weights that aren't those of a model, by name and shape.

    Args:
        wanted: The model's own state.
        found: What the folder holds, under the same names.
        folder: For the message.

    Raises:
        SourceError: Parameters are missing, unexpected or of another shape; the message names up to four of each.
    """
    faults = []
    if missing := wanted.keys() - found.keys():
        faults.append(f"missing {_some(missing)}")
    if extra := found.keys() - wanted.keys():
        faults.append(f"unexpected {_some(extra)}")
    unequal = {name for name in wanted.keys() & found.keys() if tuple(wanted[name].shape) != found[name]}
    if unequal:
        first = min(unequal)
        faults.append(f"of another shape {_some(unequal)} ({first} is {found[first]}, not {tuple(wanted[first].shape)})")
    if faults:
        raise SourceError(f"{folder}/{WEIGHTS} doesn't hold this model's parameters: {'; '.join(faults)}")


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
