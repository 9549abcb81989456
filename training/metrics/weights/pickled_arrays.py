"""Reads pickles of numpy arrays with an unpickler that can only make arrays."""

import io
import pickle
from collections.abc import Iterator

import numpy as np

from pipeline.common.errors import SourceError

# Separates the levels of a name.
SEPARATOR = "|"
# The names in a pickled array. numpy 2 moved `_reconstruct`; older pickles have its old address.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it needs {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def read_pickled_arrays(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of nested dictionaries, by their keys joined with `SEPARATOR`.

    Args:
        data: The pickle.
        name: Name of the pickle in messages.

    Raises:
        SourceError: The pickle is damaged, or has anything except dictionaries of fp32 arrays. Nothing in it was run.
    """
    try:
        return dict(_flat(_ArrayUnpickler(io.BytesIO(data)).load(), ""))
    # A damaged pickle can fail in any way.
    except Exception as error:
        raise SourceError(f"{name} cannot be read as a pickle of arrays ({error}); nothing in it was run") from error


def _flat(value: object, name: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}{SEPARATOR}{key}" if name else str(key))
    elif isinstance(value, np.ndarray) and value.dtype == np.float32:
        yield name, value
    else:
        raise pickle.UnpicklingError(f"{name or 'its top'} is a {type(value).__name__}, not an fp32 array")
