"""Where arrays of torch and NumPy lie in the CPU's memory, for kernels that take addresses."""

from __future__ import annotations

import sys
from functools import cache
from math import prod
from typing import Any

import numpy as np

from ..backend import Array, find_backend

LARGE = 2**19
"""Elements from which the first touch of fresh memory costs more than what is written there."""

_NAMES = {"f32": "float32", "f64": "float64", "i64": "int64"}


def is_readable(x: Array) -> bool:
    """Whether compiled kernels can read `x` where it lies: float32 or float64 in the memory of the CPU."""
    backend = find_backend(x)
    return backend is not None and backend.is_stored(x) and _is_float(x.dtype)


@cache
def _is_float(dtype: Any) -> bool:
    """Whether the dtype of either library is float32 or float64."""
    return str(dtype).rpartition(".")[2] in ("float32", "float64")


def address(x: Array) -> int:
    """Of the first element."""
    if isinstance(x, np.ndarray):
        return x.__array_interface__["data"][0]  # type: ignore[no-any-return]
    return x.data_ptr()  # type: ignore[no-any-return]


def strides(x: Array) -> tuple[int, ...]:
    """In elements."""
    if isinstance(x, np.ndarray):
        size = x.itemsize
        return tuple(s // size for s in x.strides)
    return x.stride()  # type: ignore[no-any-return]


def kind_of(x: Array) -> str:
    """ "f32" or "f64"."""
    return "f32" if x.itemsize == 4 else "f64"


def empty_like(x: Array, shape: tuple[int, ...], kind: str) -> Array:
    """An array of the library of `x`, not filled; `kind` is "f32", "f64" or "i64"."""
    if isinstance(x, np.ndarray):
        return np.empty(shape, _NAMES[kind])
    torch = sys.modules["torch"]
    if prod(shape) >= LARGE:  # NumPy asks for huge pages, of which fewer have to be mapped
        return torch.from_numpy(np.empty(shape, _NAMES[kind]))
    return torch.empty(shape, dtype=getattr(torch, _NAMES[kind]), device="cpu")


def contiguous(x: Array) -> Array:
    """`x`, copied unless its elements follow each other."""
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()


def host(x: Array) -> Any:
    """As a NumPy array of the same memory."""
    return x if isinstance(x, np.ndarray) else x.detach().numpy()
