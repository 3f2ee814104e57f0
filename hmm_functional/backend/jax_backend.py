"""JAX: its own scan, random keys and derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .protocol import Array, Primitive, Rng, Shape, Step


class JaxBackend:
    """Arrays and tracers of JAX, x64 on or off."""

    name = "jax"
    xp: Any = jnp

    def __init__(self) -> None:
        self._pytrees: set[type] = set()

    def is_array(self, value: object) -> bool:
        return isinstance(value, jax.Array)

    def asarray(self, value: Any, like: Array) -> Array:
        return jnp.asarray(value)

    def arange(self, count: int, like: Array) -> Array:
        return jnp.arange(count)

    def full(self, shape: Shape, value: float, like: Array, dtype: Any = None) -> Array:
        return jnp.full(shape, value, dtype=dtype or like.dtype)

    def to_numpy(self, x: Array) -> Any:
        return np.asarray(x)

    def is_traced(self, *arrays: Array) -> bool:
        return any(isinstance(x, jax.core.Tracer) for x in arrays)

    def is_host(self, x: Array) -> bool:
        return all(device.platform == "cpu" for device in x.devices())

    def index_dtype(self) -> Any:
        return jnp.asarray(0).dtype

    def wide_dtype(self, x: Array) -> Any | None:
        return jnp.float64 if jnp.asarray(0.0).dtype == jnp.float64 else None

    def scan(self, step: Step, carry: Any, xs: Any) -> tuple[Any, Any]:
        return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, xs)

    def associative_scan(self, combine: Callable[[Any, Any], Any], items: Any) -> Any:
        return jax.lax.associative_scan(combine, items)

    def remat(self, function: Callable[..., Array], *arrays: Array) -> Array:
        return jax.checkpoint(function)(*arrays)

    def shortcut(self, fast: Callable[..., Array], function: Callable[..., Array], *arrays: Array) -> Array:
        return function(*arrays)

    def vjp(
        self, function: Callable[..., tuple[Array, ...]], arrays: Sequence[Array], cotangents: Sequence[Array]
    ) -> tuple[Array, ...]:
        return jax.vjp(function, *arrays)[1](tuple(cotangents))  # type: ignore[no-any-return]

    def solve_triangular(self, lower: Array, right: Array) -> Array:
        batch = jnp.broadcast_shapes(lower.shape[:-2], right.shape[:-2])
        lower = jnp.broadcast_to(lower, (*batch, *lower.shape[-2:]))
        right = jnp.broadcast_to(right, (*batch, *right.shape[-2:]))
        return jax.scipy.linalg.solve_triangular(lower, right, lower=True)

    def solve_linear(self, function: Callable[[Array], Array], solve: Callable[[Array], Array], right: Array) -> Array:
        return jax.lax.custom_linear_solve(function, right, lambda _, x: solve(x), symmetric=True)

    def stop_gradient(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)

    def forbid_gradient(self, x: Array, message: str) -> Array:
        @jax.custom_jvp
        def same(x: Array) -> Array:
            return x

        @same.defjvp
        def rule(primals: Any, tangents: Any) -> Any:
            raise NotImplementedError(message)

        return same(x)

    def log(self, x: Array) -> Array:
        return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1.0, x)))

    def log_gamma(self, x: Array) -> Array:
        return jax.scipy.special.gammaln(x)

    def digamma(self, x: Array) -> Array:
        return jax.scipy.special.digamma(x)

    def pivot(self, x: Array, axis: int | tuple[int, ...]) -> Array:
        top = jnp.max(jax.lax.stop_gradient(x), axis=axis, keepdims=True)
        return jnp.maximum(top, np.finfo(x.dtype).min)

    def take_along(self, x: Array, indices: Array, axis: int) -> Array:
        return jnp.take_along_axis(x, indices, axis=axis)

    def uniform(self, rng: Rng, shape: Shape, like: Array) -> Array:
        if not isinstance(rng, jax.Array):
            raise TypeError(f"rng: expected a JAX key (jax.random.key), got {type(rng).__name__}")
        return jax.random.uniform(rng, shape, like.dtype)

    def is_stored(self, x: Any) -> bool:
        return False

    def form(self, arrays: Sequence[Any]) -> Any:
        return None

    def records(self, arrays: Sequence[Array]) -> bool:
        return False

    def call(self, primitive: Primitive, spec: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
        # a scan alone would be compiled in every call, since its step is another function each time
        return _compiled(self, primitive, spec)(*arrays)

    def register_pytree(
        self, cls: type, flatten: Callable[[Any], tuple[Any, Any]], unflatten: Callable[[Any, Any], Any]
    ) -> None:
        if cls not in self._pytrees:
            self._pytrees.add(cls)
            jax.tree_util.register_pytree_node(cls, flatten, unflatten)


@lru_cache(256)
def _compiled(backend: JaxBackend, primitive: Primitive, spec: str) -> Callable[..., tuple[Array, ...]]:
    def value(*arrays: Array) -> tuple[Array, ...]:
        return primitive.value(backend, spec, arrays)

    return jax.jit(value)
