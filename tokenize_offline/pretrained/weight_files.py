"""Reads and checks weights in safetensors files: one file, or several with an index, as in `transformers` and `diffusers`.

Files are checked by their headers, before memory is allocated: missing parameters, parameters in two files, files that the
index does not list, wrong shapes, unsupported number types. Weights are read in fp32, and NaN or infinite values are an error.
Pickles can run code when opened, so they are never opened; the error says how to convert them.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.common.errors import SourceError
from pipeline.common.manifests import sha256_of

Shapes = dict[str, tuple[int, ...]]

_INDEX = ".index.json"
_MAX_INDEX_BYTES = 64 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLED_WEIGHTS = re.compile(r"(diffusion_)?pytorch_model(-\d+-of-\d+)?\.bin")
_NUMBER_TYPES = ("F64", "F32", "F16", "BF16")
_MAX_LISTED = 4


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one model, with the content of their headers.

    Attributes:
        files: Paths of the files, in order.
        index: Path of the index file; None if there is only one file.
        shapes: Parameter name -> shape.
        file_of: Parameter name -> file.
    """

    files: tuple[Path, ...]
    index: Path | None
    shapes: Shapes
    file_of: Mapping[str, Path]

    @property
    def path(self) -> Path:
        """The path to name in messages: the index, or the only file."""
        return self.index or self.files[0]

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Read parameters in fp32 on the CPU.

        Raises:
            SourceError: A file is damaged, or a parameter is not stored as floating-point numbers or is not finite.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.file_of[name], []).append(name)
        tensors = {}
        for path, parameters in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    for name in parameters:
                        if (dtype := file.get_slice(name).get_dtype()) not in _NUMBER_TYPES:
                            raise SourceError(
                                f"{path}: {name} has type {dtype}, but only {', '.join(_NUMBER_TYPES)} are supported: "
                                "convert a quantized model to one of these"
                            )
                        tensors[name] = file.get_tensor(name).float()
            except (SafetensorError, OSError) as error:
                raise _unreadable(path, error) from error
            if (bad := first_nonfinite({name: tensors[name] for name in parameters})) is not None:
                raise SourceError(
                    f"{path}: {bad} holds NaN or infinite numbers, so the model can't be used: take an earlier checkpoint of "
                    "its training, or fetch the file again"
                )
        return tensors

    def sha256(self) -> str:
        """SHA-256 of the file. For several files, SHA-256 of the list of their names and SHA-256s."""
        if self.index is None:
            return sha256_of(self.files[0])
        lines = "".join(f"{sha256_of(path)}  {path.name}\n" for path in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()


def first_nonfinite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or an infinite number; None if all are finite."""
    # A sum of fp32 values in double precision can't overflow, and needs no memory.
    return next((name for name, value in tensors.items() if not torch.isfinite(value.sum(dtype=torch.float64))), None)


def require_shapes(found: Shapes, expected: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Check that weights have exactly a model's parameters.

    Args:
        found: Shapes of the weights.
        expected: State dict of the model, on any device.
        where: Path of the weights, for the message.

    Raises:
        SourceError: Parameters are missing, unknown or of another shape; the message counts and names them.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    problems = {
        "missing": shapes.keys() - found.keys(),
        "unknown": found.keys() - shapes.keys(),
        "of another shape": {
            f"{name} {found[name]} (expected {shapes[name]})"
            for name in shapes.keys() & found.keys()
            if found[name] != shapes[name]
        },
    }
    texts = [f"{len(names)} {kind}: {_some(sorted(names))}" for kind, names in problems.items() if names]
    if texts:
        raise SourceError(f"{where} does not match its config.json; parameters {'; '.join(texts)}")


def is_weight_file(name: str, file: str) -> bool:
    """Whether `file` is part of the weights `name`: the file itself, one of several, or their index."""
    stem = name.removesuffix(".safetensors")
    return file in (name, name + _INDEX) or bool(re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.safetensors", file))


def weights_patterns(name: str) -> list[str]:
    """File name patterns for downloading the files that `is_weight_file` accepts."""
    return [name, name + _INDEX, f"{name.removesuffix('.safetensors')}-*-of-*.safetensors"]


def find_weights(folder: Path, name: str) -> WeightFiles:
    """Find the weights in a local folder: the file `name`, or the files that `{name}.index.json` lists.

    Raises:
        SourceError: There are no weights, they are pickles, or files and index disagree.
    """
    single, index = folder / name, folder / (name + _INDEX)
    if single.is_file() and index.is_file():
        raise SourceError(f"{folder} holds both {name} and {index.name}: remove the one that does not belong to the model")
    if single.is_file():
        shapes = _header(single)
        return WeightFiles((single,), None, shapes, dict.fromkeys(shapes, single))
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if index.is_file():
        return _indexed(index, [file for file in present if is_weight_file(name, file) and file != index.name])
    if parts := [file for file in present if is_weight_file(name, file)]:
        raise SourceError(f"{folder} holds {_some(parts)} but not {index.name}, which lists their content: fetch it too")
    refuse_pickles(str(folder), present, name)
    raise SourceError(f"{folder} holds no weights: neither {name} nor {index.name} exists")


def refuse_pickles(folder: str, names: Collection[str], wanted: str) -> None:
    """Raise an error that says how to convert weights, if they are pickles.

    Args:
        folder: Folder of the files, for the message; "" if `names` holds full paths.
        names: Names of the files.
        wanted: Name of the safetensors file to convert to.

    Raises:
        SourceError: At least one file is a pickle.
    """
    pickles = sorted(name for name in names if name.lower().endswith(_PICKLES))
    chosen = [name for name in pickles if _PICKLED_WEIGHTS.fullmatch(PurePath(name).name)] or pickles[:1]
    if not chosen:
        return
    paths = [str(PurePath(folder, name)) if "://" not in folder else f"{folder}/{name}" for name in chosen]
    target = str(PurePath(paths[0]).with_name(wanted))
    raise SourceError(
        f"{_some(paths)} {'is a pickle' if len(paths) == 1 else 'are pickles'}, which can run code when opened, so only "
        f"safetensors is read. Convert in a safe place and put the result next to config.json: {conversion(paths, target)}"
    )


def conversion(pickles: Collection[str], target: str) -> str:
    """A shell command that converts pickled state dicts (or dicts with a key `state_dict`) to one safetensors file."""
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"files = {json.dumps(list(pickles))}; "
        'read = [torch.load(file, map_location="cpu", weights_only=True) for file in files]; '
        "state = {name: value.clone().contiguous() for part in read "
        'for name, value in part.get("state_dict", part).items() if torch.is_tensor(value)}; '
        f'save_file(state, {json.dumps(target)}, {{"format": "pt"}})'
    )
    return f"python -c {shlex.quote(code)}"


def _header(path: Path) -> Shapes:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> SourceError:
    return SourceError(f"{path} can't be read as safetensors ({error}); fetch or write it again")


def _indexed(index: Path, present: Collection[str]) -> WeightFiles:
    """The files that an index lists. Their parameters must be exactly those in the index."""
    listed = _read_index(index)
    names = sorted(set(listed.values()))
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise SourceError(f"{index} lists {_some(missing)}, missing in {index.parent}: fetch what is missing")
    if extra := sorted(set(present) - set(names)):
        raise SourceError(
            f"{index.parent} holds {_some(extra)}, which {index.name} doesn't list: remove it, or fetch all again"
        )
    shapes: Shapes = {}
    file_of: dict[str, Path] = {}
    for name in names:
        path = index.parent / name
        header = _header(path)
        if twice := sorted(header.keys() & shapes.keys()):
            first_file = file_of[twice[0]].name
            raise SourceError(f"{_some(twice)} is in both {first_file} and {name} of {index.parent}: fetch all files again")
        shapes |= header
        file_of |= dict.fromkeys(header, path)
    found = {name: path.name for name, path in file_of.items()}
    if wrong := sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name)):
        first = wrong[0]
        raise SourceError(
            f"{index} and its files disagree about {_some(wrong)}: the index has {first} in {listed.get(first, 'no file')}, "
            f"but it is in {found.get(first, 'no file')}; fetch all files again"
        )
    return WeightFiles(tuple(index.parent / name for name in names), index, shapes, file_of)


def _read_index(index: Path) -> dict[str, str]:
    """Parameter name -> file name; each is the plain name of a safetensors file."""
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f"it is larger than {_MAX_INDEX_BYTES} bytes")
        raw: Any = json.loads(index.read_bytes())
        listed = raw["weight_map"]
        if not isinstance(listed, dict) or not listed:
            raise ValueError("weight_map is empty or not a mapping")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(f"{index} is not a valid index of weights ({error}): fetch it again") from error
    for name, file in listed.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise SourceError(
                f"{index} lists {name} in {file!r}: it must be the plain name of a safetensors file in the same folder"
            )
    return dict(listed)


def _some(names: Collection[str]) -> str:
    listed = ", ".join(list(names)[:_MAX_LISTED])
    return listed + (f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")
