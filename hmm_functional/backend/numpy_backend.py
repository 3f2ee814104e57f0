"""NumPy, and any other namespace that keeps to the array API standard (array_api_strict)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .loops import loop_associative_scan, loop_scan
from .protocol import Array, Primitive, Rng, Shape, Step


class NumpyBackend:
    """Eager arrays without gradients."""

    def __init__(self, name: str, xp: Any) -> None:
        self.name = name
        self.xp = xp

    def is_array(self, value: object) -> bool:
        array_type = np.ndarray | np.generic if self.name == "numpy" else type(self.xp.asarray(0.0))
        return isinstance(value, array_type)

    def asarray(self, value: Any, like: Array) -> Array:
        return self.xp.asarray(value)

    def arange(self, count: int, like: Array) -> Array:
        return self.xp.arange(count)

    def full(self, shape: Shape, value: float, like: Array, dtype: Any = None) -> Array:
        return self.xp.full(shape, value, dtype=dtype or like.dtype)

    def to_numpy(self, x: Array) -> Any:
        return np.asarray(x)

    def is_traced(self, *arrays: Array) -> bool:
        return False

    def is_host(self, x: Array) -> bool:
        return True

    def index_dtype(self) -> Any:
        return self.xp.int64

    def wide_dtype(self, x: Array) -> Any | None:
        return self.xp.float64

    def scan(self, step: Step, carry: Any, xs: Any) -> tuple[Any, Any]:
        xp = self.xp

        def unstack(x: Array) -> list[Array]:
            return [x[t, ...] for t in range(x.shape[0])]

        def empty(length: int, y: Array) -> Array:
            return xp.empty((length, *y.shape), dtype=y.dtype)

        return loop_scan(unstack, xp.stack, empty, step, carry, xs)

    def associative_scan(self, combine: Callable[[Any, Any], Any], items: Any) -> Any:
        return loop_associative_scan(self.xp.concat, combine, items)

    def remat(self, function: Callable[..., Array], *arrays: Array) -> Array:
        return function(*arrays)

    def shortcut(self, fast: Callable[..., Array], function: Callable[..., Array], *arrays: Array) -> Array:
        return fast(*arrays)

    def vjp(
        self, function: Callable[..., tuple[Array, ...]], arrays: Sequence[Array], cotangents: Sequence[Array]
    ) -> tuple[Array, ...]:
        raise NotImplementedError("NumPy derives nothing")

    def solve_triangular(self, lower: Array, right: Array) -> Array:
        # NumPy has no triangular solve; elimination with pivots on a triangle meets its rows in order
        return self.xp.linalg.solve(lower, right)

    def solve_linear(self, function: Callable[[Array], Array], solve: Callable[[Array], Array], right: Array) -> Array:
        return solve(right)

    def stop_gradient(self, x: Array) -> Array:
        return x

    def forbid_gradient(self, x: Array, message: str) -> Array:
        return x

    def log(self, x: Array) -> Array:
        with np.errstate(divide="ignore"):
            return self.xp.log(x)

    def log_gamma(self, x: Array) -> Array:
        from scipy.special import gammaln

        return self.xp.asarray(gammaln(np.asarray(x)))

    def digamma(self, x: Array) -> Array:
        from scipy.special import digamma

        return self.xp.asarray(digamma(np.asarray(x)))

    def pivot(self, x: Array, axis: int | tuple[int, ...]) -> Array:
        return self.xp.clip(self.xp.max(x, axis=axis, keepdims=True), min=self.xp.finfo(x.dtype).min)

    def take_along(self, x: Array, indices: Array, axis: int) -> Array:
        batch = np.broadcast_shapes(_without(x.shape, axis), _without(indices.shape, axis))
        x = self.xp.broadcast_to(x, _with(batch, axis, x.shape[axis]))
        indices = self.xp.broadcast_to(indices, _with(batch, axis, indices.shape[axis]))
        return self.xp.take_along_axis(x, indices, axis=axis)

    def uniform(self, rng: Rng, shape: Shape, like: Array) -> Array:
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
        return self.xp.astype(self.xp.asarray(rng.random(shape)), like.dtype)

    def is_stored(self, x: Any) -> bool:
        return isinstance(x, np.ndarray) and x.dtype.isnative and not any(s % x.itemsize for s in x.strides)

    def form(self, arrays: Sequence[Any]) -> Any:
        if self.name != "numpy" or not all(type(x) is np.ndarray and self.is_stored(x) for x in arrays):
            return None
        return tuple((x.shape, x.strides, x.dtype) for x in arrays)

    def records(self, arrays: Sequence[Array]) -> bool:
        return False

    def call(self, primitive: Primitive, spec: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and -inf are values here, not accidents
            return primitive.value(self, spec, arrays)

    def register_pytree(
        self, cls: type, flatten: Callable[[Any], tuple[Any, Any]], unflatten: Callable[[Any, Any], Any]
    ) -> None:
        return None


def _without(shape: Shape, axis: int) -> Shape:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def _with(shape: Shape, axis: int, size: int) -> Shape:
    axis %= len(shape) + 1
    return (*shape[:axis], size, *shape[axis:])
