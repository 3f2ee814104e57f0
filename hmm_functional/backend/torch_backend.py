"""PyTorch: derivatives of the time loop as autograd Functions over one opaque operator.

The operator carries no autograd rule; it is called only inside `Function.forward`, and the Function is marked
`allow_in_graph`. Every torch transform accepts this arrangement (docs/architecture.md says what was tried).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import array_api_compat.torch as xp_torch
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch._C import _functorch

from .loops import loop_associative_scan, loop_scan
from .protocol import PRIMITIVES, Array, Primitive, Rng, Shape, Step, batch_size


class TorchBackend:
    """Tensors on any device."""

    name = "torch"
    xp: Any = xp_torch

    def __init__(self) -> None:
        self._pytrees: set[type] = set()

    def is_array(self, value: object) -> bool:
        return isinstance(value, Tensor)

    def asarray(self, value: Any, like: Array) -> Array:
        return torch.as_tensor(value, device=like.device)

    def arange(self, count: int, like: Array) -> Array:
        return torch.arange(count, device=like.device)

    def full(self, shape: Shape, value: float, like: Array, dtype: Any = None) -> Array:
        return torch.full(shape, value, dtype=dtype or like.dtype, device=like.device)

    def to_numpy(self, x: Array) -> Any:
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # NumPy has no bfloat16

    def is_traced(self, *arrays: Array) -> bool:
        if torch.compiler.is_compiling():
            return True
        return any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in arrays)

    def is_host(self, x: Array) -> bool:
        return bool(x.device.type == "cpu")

    def index_dtype(self) -> Any:
        return torch.int64

    def wide_dtype(self, x: Array) -> Any | None:
        return None if x.device.type == "mps" else torch.float64

    def scan(self, step: Step, carry: Any, xs: Any) -> tuple[Any, Any]:
        can_write = not (torch.is_grad_enabled() or _forward_mode_is_on() or torch.compiler.is_compiling())
        return loop_scan(_unbind, _stack, _empty if can_write else None, step, carry, xs)

    def associative_scan(self, combine: Callable[[Any, Any], Any], items: Any) -> Any:
        return loop_associative_scan(_concat, combine, items)

    def remat(self, function: Callable[..., Array], *arrays: Array) -> Array:
        if self.is_traced(*arrays) or _forward_mode_is_on() or not _needs_derivative(arrays):
            return function(*arrays)
        return torch.utils.checkpoint.checkpoint(function, *arrays, use_reentrant=False)

    def shortcut(self, fast: Callable[..., Array], function: Callable[..., Array], *arrays: Array) -> Array:
        if self.is_traced(*arrays) or _forward_mode_is_on() or _is_transforming():
            return function(*arrays)
        if not _needs_derivative(arrays):
            return fast(*arrays)
        return _Shortcut.apply(fast, function, *arrays)  # type: ignore[no-untyped-call]

    def vjp(
        self, function: Callable[..., tuple[Array, ...]], arrays: Sequence[Array], cotangents: Sequence[Array]
    ) -> tuple[Array, ...]:
        with _autograd_is_seen(), torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in arrays]
            found = torch.autograd.grad(function(*leaves), leaves, list(cotangents), allow_unused=True)
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(arrays, found, strict=True))

    def solve_triangular(self, lower: Array, right: Array) -> Array:
        return torch.linalg.solve_triangular(lower, right, upper=False)

    def solve_linear(self, function: Callable[[Array], Array], solve: Callable[[Array], Array], right: Array) -> Array:
        return solve(right)  # within a primitive, which has rules of its own

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def forbid_gradient(self, x: Array, message: str) -> Array:
        return _Forbidden.apply(x, message)  # type: ignore[no-untyped-call]

    def log(self, x: Array) -> Array:
        if not (torch.is_grad_enabled() or _forward_mode_is_on()):
            return torch.log(x)
        return torch.where(x == 0, -torch.inf, torch.log(torch.where(x == 0, 1.0, x)))

    def log_gamma(self, x: Array) -> Array:
        return torch.lgamma(x)

    def digamma(self, x: Array) -> Array:
        return torch.digamma(x)

    def pivot(self, x: Array, axis: int | tuple[int, ...]) -> Array:
        return x.detach().amax(axis, keepdim=True).clamp_min(torch.finfo(x.dtype).min)

    def take_along(self, x: Array, indices: Array, axis: int) -> Array:
        # take_along_dim writes broadcast indices out, which takes ten times as long as what it is for
        axis %= x.ndim
        others = [
            n if i == axis else (m if n == 1 else n)
            for i, (n, m) in enumerate(zip(x.shape, indices.shape, strict=True))
        ]
        wanted = [m if i == axis else n for i, (n, m) in enumerate(zip(others, indices.shape, strict=True))]
        return torch.gather(x.expand(others), axis, indices.expand(wanted))

    def uniform(self, rng: Rng, shape: Shape, like: Array) -> Array:
        if not isinstance(rng, torch.Generator):
            raise TypeError(f"rng: expected a torch.Generator, got {type(rng).__name__}")
        drawn = torch.rand(shape, generator=rng, dtype=like.dtype, device=rng.device)
        return drawn.to(like.device)

    def is_stored(self, x: Any) -> bool:
        if not (type(x) is Tensor or type(x) is torch.nn.Parameter) or not x.is_cpu or x.is_neg():
            return False  # other classes may have no storage, or keep it elsewhere
        # torch.jit.trace and make_fx write operations down, and would see none
        if torch._C._get_tracing_state() is not None or _is_proxied():
            return False
        return not torch._C._functorch.is_legacy_batchedtensor(x)

    def form(self, arrays: Sequence[Any]) -> Any:
        if self.is_traced() or _forward_mode_is_on():
            return None
        is_grad, found = torch.is_grad_enabled(), []
        for x in arrays:
            if not self.is_stored(x) or torch._C._functorch.is_functorch_wrapped_tensor(x):
                return None
            if is_grad and x.requires_grad:
                return None
            found.append((x.shape, x.stride(), x.dtype))
        return tuple(found)

    def records(self, arrays: Sequence[Array]) -> bool:
        return self.is_traced(*arrays) or _needs_derivative(arrays)

    def call(self, primitive: Primitive, spec: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
        if not self.records(arrays):
            with torch.no_grad():
                return primitive.value(self, spec, arrays)
        apply = _Eager.apply if self._is_plain(arrays) else _apply
        return apply(primitive.name, spec, *arrays)  # type: ignore[no-any-return]

    def _is_plain(self, arrays: Sequence[Tensor]) -> bool:
        """Whether nothing but reverse mode looks on."""
        if self.is_traced(*arrays) or _forward_mode_is_on() or _is_transforming():
            return False
        if torch._C._len_torch_dispatch_stack():
            return False
        return all(type(x) is Tensor or type(x) is torch.nn.Parameter for x in arrays)

    def register_pytree(
        self, cls: type, flatten: Callable[[Any], tuple[Any, Any]], unflatten: Callable[[Any, Any], Any]
    ) -> None:
        if cls not in self._pytrees:
            self._pytrees.add(cls)
            torch.utils._pytree.register_pytree_node(
                cls,
                lambda value: (list((parts := flatten(value))[0]), parts[1]),
                lambda children, context: unflatten(context, tuple(children)),
                serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            )


BACKEND = TorchBackend()


def _unbind(x: Tensor) -> Sequence[Tensor]:
    return x.unbind(0)


def _empty(length: int, y: Tensor) -> Tensor:
    return y.new_empty((length, *y.shape))


def _stack(tensors: list[Tensor], axis: int) -> Tensor:
    return torch.stack(tensors, axis)


def _concat(tensors: list[Tensor], axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def _needs_derivative(arrays: Sequence[Tensor]) -> bool:
    if torch.is_grad_enabled() and any(x.requires_grad for x in arrays):
        return True
    return _forward_mode_is_on()


def _is_proxied() -> bool:
    """Whether make_fx is writing operations down."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def _is_transforming() -> bool:
    """Whether a transform of torch.func is active, whatever it maps over."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def _autograd_is_seen() -> Iterator[None]:
    """Autograd writes operations down, within an operator too, which is called below it."""
    keys = [torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView]
    hidden = [key for key in keys if torch._C._dispatch_tls_is_dispatch_key_excluded(key)]
    for key in hidden:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        yield
    finally:
        for key in hidden:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, True)


def _interpreters() -> Sequence[Any]:
    return _functorch.get_interpreter_stack() or ()


def _without_tangent(x: Tensor, level: int) -> Tensor:
    """A tensor as it is outside of forward mode at a level of torch.func, whatever is mapped over inside."""
    if _functorch.is_batchedtensor(x):
        inner = _without_tangent(_functorch.get_unwrapped(x), level)
        return _functorch._add_batch_dim(inner, _functorch.maybe_get_bdim(x), _functorch.maybe_get_level(x))
    return _functorch._unwrap_for_grad(x, level)


def _forward_mode_is_on() -> bool:
    return bool(torch.autograd.forward_ad._current_level >= 0)


class _Shortcut(torch.autograd.Function):
    """The value of one function with the derivatives of another, which is run again when they are asked for."""

    @staticmethod
    def forward(ctx: Any, fast: Callable[..., Tensor], function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*arrays)
        return fast(*arrays)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        again = torch.is_grad_enabled()  # the gradient is to be differentiated, through the saved arrays themselves
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            arrays = [
                x if again else x.detach().requires_grad_(need)
                for x, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            wanted = [x for x, need in zip(arrays, needed, strict=True) if need]
            found = iter(torch.autograd.grad(ctx.function(*arrays), wanted, cotangent, create_graph=again))
        return None, None, *(next(found) if need else None for need in needed)


class _Forbidden(torch.autograd.Function):
    """The identity, without derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, message: str) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        raise NotImplementedError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(ctx.message)


@torch.library.custom_op("hmm_functional::call", mutates_args=())
def _call(name: str, spec: str, arrays: Sequence[Tensor]) -> list[Tensor]:
    return _outputs(name, spec, arrays)


def _outputs(name: str, spec: str, arrays: Sequence[Tensor]) -> list[Tensor]:
    outputs = PRIMITIVES[name].value(BACKEND, spec, arrays)
    taken = {x.untyped_storage().data_ptr() for x in arrays}
    owned = list(outputs)
    # an operator's outputs may alias neither its inputs nor each other; of those that do the largest is not copied
    for i in sorted(range(len(owned)), key=lambda i: -owned[i].numel()):
        y = owned[i]
        y = y.clone() if y.untyped_storage().data_ptr() in taken else y
        taken.add(y.untyped_storage().data_ptr())
        owned[i] = y.contiguous()
    return owned


@_call.register_fake
def _call_fake(name: str, spec: str, arrays: Sequence[Tensor]) -> list[Tensor]:
    primitive = PRIMITIVES[name]
    shapes = primitive.output_shapes(spec, [x.shape for x in arrays])
    integers = primitive.integers or (False,) * len(shapes)
    dtypes = [torch.int64 if integer else arrays[0].dtype for integer in integers]
    return [arrays[0].new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]


def _call_vmap(info: Any, in_dims: Any, name: str, spec: str, arrays: Sequence[Tensor]) -> Any:
    """Fold the mapped axis into the batch axis that every array already has."""
    primitive, dims, count = PRIMITIVES[name], in_dims[2], info.batch_size
    moved = [x if d is None else x.movedim(d, 0) for x, d in zip(arrays, dims, strict=True)]
    batch = batch_size(x.shape[0 if d is None else 1] for x, d in zip(moved, dims, strict=True))
    primals = primitive.num_gradients(spec)

    def fold(i: int, x: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            if x.shape[0] == 1 and i >= primals:
                return x
            x = x[None]
        return x.expand(count, batch, *x.shape[2:]).reshape(count * batch, *x.shape[2:])

    folded = [fold(i, x, d) for i, (x, d) in enumerate(zip(moved, dims, strict=True))]
    outputs = [y.reshape(count, y.shape[0] // count, *y.shape[1:]) for y in _call(name, spec, folded)]
    for i in range(primals):
        if moved[i].shape[0 if dims[i] is None else 1] == 1:
            outputs[i] = outputs[i].sum(1, keepdim=True)
    return outputs, [0] * len(outputs)


_call.register_vmap(_call_vmap)


class _Function(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, spec: str, *arrays: Tensor) -> Any:
        return tuple(_call(name, spec, list(arrays)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name, ctx.spec = inputs[:2]
        ctx.num_arrays = len(inputs) - 2
        ctx.save_for_backward(*inputs[2:], *output)
        ctx.save_for_forward(*inputs[2:], *output)
        ctx.set_materialize_grads(False)
        flags = PRIMITIVES[ctx.name].differentiable(ctx.spec)
        ctx.mark_non_differentiable(*[y for y, flag in zip(output, flags, strict=True) if not flag])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        saved, n = ctx.saved_tensors, ctx.num_arrays
        primitive = PRIMITIVES[ctx.name]
        if all(c is None for c in cotangents):
            return (None,) * (n + 2)
        needed = ctx.needs_input_grad[2 : 2 + primitive.num_primals(ctx.spec)]
        found = primitive.vjp(BACKEND, ctx.spec, saved[:n], saved[n:], cotangents, needed)
        return None, None, *found, *[None] * (n - len(found))

    @staticmethod
    def jvp(ctx: Any, _name: Any, _spec: Any, *tangents: Any) -> Any:
        saved, n = ctx.saved_tensors, ctx.num_arrays
        primitive = PRIMITIVES[ctx.name]
        given = tangents[: primitive.num_primals(ctx.spec)]
        # torch turns forward mode off here, and for the levels around this one too, whose tangents would be lost
        level = max((i.level() for i in _interpreters() if i.key() == _functorch.TransformType.Jvp), default=None)
        if level is not None:
            saved = [_without_tangent(x, level) for x in saved]
        with torch.autograd.forward_ad._set_fwd_grad_enabled(level is not None):
            return tuple(primitive.jvp(BACKEND, ctx.spec, saved[:n], saved[n:], given))


class _Eager(torch.autograd.Function):
    """The same for plain tensors, without the operator: calling that takes Python longer than a short sequence does."""

    @staticmethod
    def forward(ctx: Any, name: str, spec: str, *arrays: Tensor) -> Any:
        outputs = tuple(_outputs(name, spec, arrays))
        _Function.setup_context(ctx, (name, spec, *arrays), outputs)
        return outputs

    backward = _Function.backward
    jvp = _Function.jvp


def _apply(name: str, spec: str, *arrays: Tensor) -> Any:
    return _Function.apply(name, spec, *arrays)  # type: ignore[no-untyped-call]


class _WhenDynamoComes(MetaPathFinder):
    """Tells torch's compiler of `_apply` once it is imported: importing it for that would cost a second and a half."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "torch._dynamo":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                module.allow_in_graph(_apply)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "torch._dynamo" in sys.modules:
    torch.compiler.allow_in_graph(_apply)  # type: ignore[no-untyped-call]
else:
    sys.meta_path.insert(0, _WhenDynamoComes())
