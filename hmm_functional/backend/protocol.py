"""What the library asks of an array library beyond the array API standard, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Array = Any
Rng = Any
Shape = tuple[int, ...]
Step = Callable[[Any, Any], tuple[Any, Any]]


class Backend(Protocol):
    """One array library: `xp` is its array API namespace; the methods are what the standard lacks."""

    name: str
    xp: Any

    def is_array(self, value: object) -> bool:
        """Whether `value` belongs to this library."""

    def asarray(self, value: Any, like: Array) -> Array:
        """`value` (a list, a NumPy array, or an array of this library) on the device of `like`."""

    def arange(self, count: int, like: Array) -> Array:
        """0..count-1, on the device of `like`."""

    def full(self, shape: Shape, value: float, like: Array, dtype: Any = None) -> Array:
        """`value` everywhere, on the device of `like` and with its dtype unless another is given."""

    def to_numpy(self, x: Array) -> Any:
        """A NumPy copy or view, detached from any gradient."""

    def is_traced(self, *arrays: Array) -> bool:
        """Whether the values cannot be read now: under jit, vmap, compile or export."""

    def is_host(self, x: Array) -> bool:
        """Whether reading the values of `x` costs no device synchronisation."""

    def index_dtype(self) -> Any:
        """The dtype of integer results: int64, or int32 where JAX has x64 off."""

    def wide_dtype(self, x: Array) -> Any | None:
        """float64 where the device of `x` has it, else None."""

    def scan(self, step: Step, carry: Any, xs: Any) -> tuple[Any, Any]:
        """`carry, y = step(carry, x)` over the leading axis of `xs`; the ys stacked on a leading axis.

        `carry`, `xs` and the ys are nested tuples of arrays; None stands for no array. Differentiating a
        scan keeps its carries, not what the step computes.
        """

    def associative_scan(self, combine: Callable[[Any, Any], Any], items: Any) -> Any:
        """All prefixes of `items` (tuples of arrays, leading axis) under an associative `combine`."""

    def remat(self, function: Callable[..., Array], *arrays: Array) -> Array:
        """function(*arrays), computed again where its gradient is wanted rather than kept."""

    def shortcut(self, fast: Callable[..., Array], function: Callable[..., Array], *arrays: Array) -> Array:
        """function(*arrays) and its derivatives, where `fast` gives the same value and cannot be differentiated."""

    def vjp(
        self, function: Callable[..., tuple[Array, ...]], arrays: Sequence[Array], cotangents: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Cotangents of `arrays` from those of what function(*arrays) gives, by the library's own derivation."""

    def solve_triangular(self, lower: Array, right: Array) -> Array:
        """The solution y of lower @ y = right, batched, for lower triangular matrices."""

    def solve_linear(self, function: Callable[[Array], Array], solve: Callable[[Array], Array], right: Array) -> Array:
        """solve(right), the solution x of function(x) = right, for a symmetric linear function.

        A library that derives values itself takes the derivatives from `function`, with `solve` for the systems they
        lead to.
        """

    def stop_gradient(self, x: Array) -> Array:
        """`x` as a constant."""

    def forbid_gradient(self, x: Array, message: str) -> Array:
        """`x`, whose derivatives raise NotImplementedError with `message`."""

    def log(self, x: Array) -> Array:
        """log(x), with log(0) = -inf and a gradient of zero there."""

    def log_gamma(self, x: Array) -> Array:
        """log of the gamma function of positive numbers."""

    def digamma(self, x: Array) -> Array:
        """The derivative of `log_gamma`, as a value."""

    def pivot(self, x: Array, axis: int | tuple[int, ...]) -> Array:
        """The maximum along `axis` (kept) as a constant; the lowest finite number where that is -inf."""

    def take_along(self, x: Array, indices: Array, axis: int) -> Array:
        """`x` at integer `indices` along `axis`, the other axes broadcast against each other."""

    def uniform(self, rng: Rng, shape: Shape, like: Array) -> Array:
        """Uniform numbers in [0, 1) drawn from `rng`, with the dtype and device of `like`."""

    def is_stored(self, x: Any) -> bool:
        """Whether `x` is a plain array in the CPU's memory, whose elements lie at its address and may be read there."""

    def form(self, arrays: Sequence[Any]) -> Any:
        """All that a call on arrays in the CPU's memory depends on but their values, hashable.

        None where any is not an array of this library, lies elsewhere, or is traced, or where a derivative is asked.
        """

    def records(self, arrays: Sequence[Array]) -> bool:
        """Whether `call` may be asked for derivatives by the primitive's own rules."""

    def call(self, primitive: Primitive, spec: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """`primitive`, differentiable."""

    def register_pytree(
        self, cls: type, flatten: Callable[[Any], tuple[Any, Any]], unflatten: Callable[[Any, Any], Any]
    ) -> None:
        """Make `cls` a pytree of this library; a second call for one class does nothing."""


@dataclass(frozen=True)
class Primitive:
    """A function of arrays with rules for its derivatives, for libraries that cannot derive a time loop.

    Every array has a leading batch axis, of the common size or 1. The first `num_primals` arrays are what it
    can be differentiated by. JAX differentiates `value` itself, whose steps keep no T x K x K array.
    """

    name: str
    value: Callable[[Backend, str, Sequence[Array]], tuple[Array, ...]]
    num_primals: Callable[[str], int]
    output_shapes: Callable[[str, Sequence[Shape]], tuple[Shape, ...]]
    """Shapes of the outputs from the shapes of the arrays."""
    differentiable: Callable[[str], tuple[bool, ...]]
    """Which outputs can be differentiated."""
    jvp: Callable[[Backend, str, Sequence[Array], Sequence[Array], Sequence[Array | None]], Sequence[Any]]
    """(arrays, outputs, tangents of the primals) to tangents of the outputs."""
    vjp: Callable[..., Sequence[Any]]
    """(arrays, outputs, cotangents, needed) to cotangents of the primals."""
    integers: tuple[bool, ...] = ()
    """Which outputs are integers; where empty, none is."""
    num_gradients: Callable[[str], int] = lambda spec: 0
    """Outputs shaped as the first arrays, so that a batch axis of 1 there means a sum over the batch."""


def batch_size(sizes: Iterable[int]) -> int:
    """What leading axes of the batch's size or 1 broadcast to; 0 for an empty batch."""
    return next((size for size in sizes if size != 1), 1)


PRIMITIVES: dict[str, Primitive] = {}


def declare(primitive: Primitive) -> Primitive:
    """Register `primitive` by its name, so that an operator of an array library can find it."""
    PRIMITIVES[primitive.name] = primitive
    return primitive
