"""Pickles of arrays are read back; nothing else is built or run."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from pipeline.common.errors import SourceError
from training.metrics.weights.pickled_arrays import read_pickled_arrays

_NAMES = st.text(st.characters(categories=("L", "N"), include_characters="_/"), min_size=1, max_size=8)
_ARRAYS = arrays_of.arrays(np.float32, arrays_of.array_shapes(max_dims=4, max_side=3))


@given(st.dictionaries(_NAMES, st.dictionaries(_NAMES, _ARRAYS, max_size=3), max_size=3), st.integers(3, 4))
def test_arrays_are_returned_by_their_joined_keys(nested: dict[str, dict[str, np.ndarray]], protocol: int):
    found = read_pickled_arrays(pickle.dumps(nested, protocol), "some.ckpt")
    assert found.keys() == {f"{outer}|{inner}" for outer, part in nested.items() for inner in part}
    for name, array in found.items():
        outer, inner = name.split("|")
        np.testing.assert_array_equal(array, nested[outer][inner])


def test_the_old_address_in_numpy_is_accepted():
    data = pickle.dumps({"a": np.ones(2, np.float32)}, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core" in data
    np.testing.assert_array_equal(read_pickled_arrays(data, "some.ckpt")["a"], [1, 1])


class _Calls:
    """Its pickle calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _evil(marker: Path) -> dict[str, bytes]:
    return {
        "a command": pickle.dumps({"a": _Calls(os.system, f"touch {marker}")}),
        "evaluated code": pickle.dumps(_Calls(eval, f"open({str(marker)!r}, 'w')")),
        "an opened file": pickle.dumps({"a": np.ones(2, np.float32), "b": _Calls(open, str(marker), "w")}),
        "a numpy function that writes": pickle.dumps(_Calls(np.save, str(marker.with_suffix("")), np.ones(2))),
        # A dotted name that leads to something forbidden.
        "a method": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "an import": b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.",
    }


@pytest.mark.parametrize("kind", [*_evil(Path("x"))])
def test_a_pickle_that_calls_anything_else_is_refused_before_it_runs(kind: str, tmp_path: Path):
    marker = tmp_path / "ran.npy"
    data = _evil(marker)[kind]
    with pytest.raises(SourceError, match=r"some\.ckpt cannot be read as a pickle of arrays \(it needs "):
        read_pickled_arrays(data, "some.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [
        [np.ones(2, np.float32)],
        {"a": 1},
        {"a": np.ones(2)},
        {"a": np.array([{}], dtype=object)},
        "text",
        None,
    ],
)
def test_anything_but_fp32_arrays_is_refused(value: Any):
    with pytest.raises(SourceError, match="not an fp32 array"):
        read_pickled_arrays(pickle.dumps(value), "some.ckpt")


@given(st.data())
def test_a_damaged_pickle_is_refused_or_read_but_never_anything_else(data: st.DataObject):
    whole = pickle.dumps({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(SourceError, match=r"some\.ckpt cannot be read"):
        read_pickled_arrays(cut, "some.ckpt")
