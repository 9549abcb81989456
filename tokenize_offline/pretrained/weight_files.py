"""Weights in safetensors files: one file, or several with an index, as `transformers` and `diffusers` write them.

All that files can have wrong is found from their headers, before memory is taken for the weights: names that are missing, or
that two files have; files that the index doesn't know; numbers of another kind than weights are kept in. Weights are read into
fp32 one by one, and such as are no numbers are refused: a network computes with them without complaint. Pickles, which can
run code when they are read, are never opened; the error says how they are converted.
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
_KINDS = ("F64", "F32", "F16", "BF16")
_NAMED = 4


@dataclass(frozen=True)
class WeightFiles:
    """The weights of one model, by their files' headers.

    Attributes:
        files: In order.
        index: That names them; None where there is one file.
        shapes: Of all parameters by name.
        homes: The file of every parameter.
    """

    files: tuple[Path, ...]
    index: Path | None
    shapes: Shapes
    homes: Mapping[str, Path]

    @property
    def path(self) -> Path:
        """What stands for all files in messages: the only one, or the index."""
        return self.index or self.files[0]

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Parameters in fp32 on the CPU.

        Raises:
            SourceError: A file is damaged, or a parameter isn't kept as floating-point numbers or holds what is none.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.homes[name], []).append(name)
        tensors = {}
        for path, held in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    for name in held:
                        if (kind := file.get_slice(name).get_dtype()) not in _KINDS:
                            raise SourceError(
                                f"{path}: {name} is kept as {kind}; only {', '.join(_KINDS)} are read: a quantized model "
                                "can't be used, convert it to one of these"
                            )
                        tensors[name] = file.get_tensor(name).float()
            except (SafetensorError, OSError) as error:
                raise _unreadable(path, error) from error
            if (bad := first_nonfinite({name: tensors[name] for name in held})) is not None:
                raise SourceError(
                    f"{path}: {bad} holds NaN or infinite numbers: this model can't be used; take an earlier checkpoint of "
                    "its training, or fetch the file again"
                )
        return tensors

    def sha256(self) -> str:
        """SHA-256 of the file; of several, of the list of their names and SHA-256s."""
        if self.index is None:
            return sha256_of(self.files[0])
        lines = "".join(f"{sha256_of(path)}  {path.name}\n" for path in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()


def first_nonfinite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or an infinite number; None where there is none."""
    # A sum in double precision can't overflow for fp32, and needs no memory.
    return next((name for name, value in tensors.items() if not torch.isfinite(value.sum(dtype=torch.float64))), None)


def is_weight_file(name: str, file: str) -> bool:
    """Whether the file `file` belongs to weights called `name`: the file itself, one of several, or their index."""
    stem = name.removesuffix(".safetensors")
    return file in (name, name + _INDEX) or bool(re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.safetensors", file))


def weights_patterns(name: str) -> list[str]:
    """What `is_weight_file` knows, as patterns of file names for a download."""
    return [name, name + _INDEX, f"{name.removesuffix('.safetensors')}-*-of-*.safetensors"]


def find_weights(folder: Path, name: str) -> WeightFiles:
    """The weights in a local folder: the file `name`, or those that `{name}.index.json` lists.

    Raises:
        SourceError: There are none, they are pickles, or files and index disagree; the message names what and what to do.
    """
    single, index = folder / name, folder / (name + _INDEX)
    if single.is_file() and index.is_file():
        raise SourceError(f"{folder} holds both {name} and {index.name}: remove the one that isn't the model's")
    if single.is_file():
        shapes = _header(single)
        return WeightFiles((single,), None, shapes, dict.fromkeys(shapes, single))
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if index.is_file():
        return _indexed(index, [file for file in present if is_weight_file(name, file) and file != index.name])
    if parts := [file for file in present if is_weight_file(name, file)]:
        raise SourceError(f"{folder} holds {_some(parts)} but no {index.name}, which says what is in which: fetch it too")
    refuse_pickles(str(folder), present, name)
    raise SourceError(f"{single} isn't there, nor {index.name}: weights are read from there")


def refuse_pickles(folder: str, names: Collection[str], wanted: str) -> None:
    """Refuse a folder whose weights are pickles, and say how they are converted; no error where it holds none.

    Args:
        folder: For the message; a pickle's own name may be among `names` with "" for its folder.
        names: Of its files.
        wanted: Name of the safetensors file in place of them.

    Raises:
        SourceError: It holds any.
    """
    pickles = sorted(name for name in names if name.lower().endswith(_PICKLES))
    chosen = [name for name in pickles if _PICKLED_WEIGHTS.fullmatch(PurePath(name).name)] or pickles[:1]
    if not chosen:
        return
    paths = [str(PurePath(folder, name)) if "://" not in folder else f"{folder}/{name}" for name in chosen]
    target = str(PurePath(paths[0]).with_name(wanted))
    raise SourceError(
        f"{_some(paths)} {'is a pickle' if len(paths) == 1 else 'are pickles'}, which can run code when read: only safetensors "
        f"is read. Convert where it can do no harm, and lay the result beside config.json: {conversion(paths, target)}"
    )


def conversion(pickles: Collection[str], target: str) -> str:
    """A shell command that writes the weights in pickles (a state dict each, or one under `state_dict`) as safetensors."""
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
    """The files that an index lists, which must hold exactly what it says."""
    listed = _read_index(index)
    names = sorted(set(listed.values()))
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise SourceError(f"{index} lists {_some(missing)}, which {index.parent} doesn't hold: fetch what is missing")
    if extra := sorted(set(present) - set(names)):
        raise SourceError(
            f"{index.parent} holds {_some(extra)}, which {index.name} doesn't list: remove it, or fetch all again"
        )
    shapes: Shapes = {}
    homes: dict[str, Path] = {}
    for name in names:
        path = index.parent / name
        header = _header(path)
        if twice := sorted(header.keys() & shapes.keys()):
            raise SourceError(f"{_some(twice)} is in {homes[twice[0]].name} and in {name} of {index.parent}: fetch all again")
        shapes |= header
        homes |= dict.fromkeys(header, path)
    wrong = sorted(name for name in shapes.keys() | listed.keys() if name not in homes or homes[name].name != listed.get(name))
    if wrong:
        first = wrong[0]
        there = f"in {homes[first].name}" if first in homes else "in no file"
        said = f"in {listed[first]}" if first in listed else "nowhere"
        raise SourceError(f"{index} and its files disagree: {_some(wrong)} ({first} is listed {said}, but is {there})")
    return WeightFiles(tuple(index.parent / name for name in names), index, shapes, homes)


def _read_index(index: Path) -> dict[str, str]:
    """Parameter -> file name, each a plain name of a safetensors file."""
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f"it is larger than {_MAX_INDEX_BYTES} bytes")
        raw: Any = json.loads(index.read_bytes())
        listed = raw["weight_map"]
        if not isinstance(listed, dict) or not listed:
            raise ValueError("weight_map is empty, or no mapping")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(f"{index} is no index of weights ({error}): fetch it again") from error
    for name, file in listed.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise SourceError(
                f"{index} says that {name} is in {file!r}: only safetensors files of the same folder are read, by plain names"
            )
    return dict(listed)


def _some(names: Collection[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_NAMED]) + (f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else "")
