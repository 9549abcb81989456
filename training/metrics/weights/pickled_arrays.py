"""Pickles of numpy arrays, read by an unpickler that can call nothing but what makes arrays."""

import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.common.errors import SourceError

# Between the levels of a name.
SEPARATOR = "|"
# What the pickle of an array names; numpy 2 moved `_reconstruct`, and older pickles have its old address.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArraysAlone(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and arrays need no such thing")
        return _ALLOWED[module, name]


def read_pickled_arrays(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The arrays of nested dictionaries, by their keys joined with `SEPARATOR`.

    Args:
        data: The pickle.
        name: For messages.

    Raises:
        SourceError: It isn't whole, or holds anything but dictionaries of fp32 arrays. Nothing in it was run.
    """
    try:
        return dict(_flat(_ArraysAlone(io.BytesIO(data)).load(), ""))
    # A damaged pickle can fail in any way.
    except Exception as error:
        raise SourceError(f"{name} can't be read as a pickle of arrays ({error}); nothing in it was run") from error


def _flat(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}{SEPARATOR}{key}" if name else str(key))
    elif isinstance(value, np.ndarray) and value.dtype == np.float32:
        yield name, value
    else:
        raise pickle.UnpicklingError(f"{name or 'its top'} is a {type(value).__name__}, not an fp32 array")
