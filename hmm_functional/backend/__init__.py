"""Which array library a call is about; libraries are imported only when one of their arrays is seen."""

from __future__ import annotations

import sys
from typing import Any

from .protocol import Array, Backend, Primitive, Rng

__all__ = ["Array", "Backend", "Primitive", "Rng", "backend_named", "backend_of", "find_backend"]

_NAMES = ("torch", "jax", "numpy", "array_api_strict")


_BACKENDS: dict[str, Backend] = {}


def backend_named(name: str) -> Backend:
    """The backend of an array library, by the library's name."""
    if name not in _BACKENDS:
        _BACKENDS[name] = _make(name)
    return _BACKENDS[name]


def _make(name: str) -> Backend:
    if name == "torch":
        from .torch_backend import BACKEND

        return BACKEND
    if name == "jax":
        from .jax_backend import JaxBackend

        return JaxBackend()
    from .numpy_backend import NumpyBackend

    if name == "numpy":
        import array_api_compat.numpy as xp

        return NumpyBackend("numpy", xp)
    import array_api_strict

    return NumpyBackend("array_api_strict", array_api_strict)


def find_backend(value: object) -> Backend | None:
    """The backend whose array `value` is, or None."""
    for name in _NAMES:
        if name in sys.modules and (backend := backend_named(name)).is_array(value):
            return backend
    return None


def backend_of(**arrays: Any) -> Backend:
    """The one backend of all the named arrays; None values are skipped.

    Raises:
        TypeError: an argument is no array, or two libraries meet; the message names the arguments.
    """
    found: Backend | None = None
    first = ""
    for name, value in arrays.items():
        if value is None:
            continue
        backend = find_backend(value)
        if backend is None:
            raise TypeError(
                f"{name}: expected an array (torch.Tensor, jax.Array or numpy.ndarray), got {type(value).__name__}"
            )
        if found is not None and backend is not found:
            raise TypeError(
                f"{name}: expected an array of {found.name}, as {first} is, got one of {backend.name}; "
                "convert one of them, one call takes arrays of one library"
            )
        if found is None:
            found, first = backend, name
    if found is None:
        raise TypeError(f"expected at least one array among {', '.join(arrays)}, got none")
    return found
