"""Functions that look at each frame by itself, over pieces of the time axis whose insides are never kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ._check import is_traced


def over_time(
    function: Callable[..., Tensor], by_frame: Sequence[Tensor], others: Sequence[Tensor], length: int, axis: int
) -> Tensor:
    """function(*by_frame, *others), made piece after piece, and again for gradients.

    Args:
        function: depends on nothing else that takes gradients.
        by_frame: (..., T or 1, N), cut along T.
        others: what goes to each piece as a whole.
        length: frames of a piece.
        axis: of time in what the function gives, from the end.

    Raises:
        ValueError: the function has gradients for something else.

    Results are written into one buffer, and nothing else stays between two pieces: small arrays among large temporaries
    would let the heap grow with T. Second derivatives are those of the whole, and keep it; under a tracer so do first
    ones. Forward mode raises.
    """
    num_steps = max(x.shape[-2] for x in by_frame)
    if num_steps <= length or is_traced(*by_frame, *others):
        return function(*by_frame, *others)
    plan = _Plan(function, num_steps, length, axis, len(by_frame), by_frame[0].device)
    return _Pieces.apply(plan, *by_frame, *others)  # type: ignore[no-untyped-call, no-any-return]


class _Plan:
    """What there is to do, and the state of autocast and of random numbers in which it is done, again and again."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        num_steps: int,
        length: int,
        axis: int,
        num_cut: int,
        device: torch.device,
    ) -> None:
        self.function, self.axis = function, axis
        self._num_steps, self._length, self._num_cut = num_steps, length, num_cut
        self._devices = [device] if device.type == "cuda" else []
        kind = device.type
        self._autocast: tuple[Any, ...] | None = None
        if torch.amp.is_autocast_available(kind):
            self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self._luck = [torch.get_rng_state(), *(torch.cuda.get_rng_state(one) for one in self._devices)]

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Start and length of each."""
        for start in range(0, self._num_steps, self._length):
            yield start, min(self._length, self._num_steps - start)

    def cut(self, index: int, x: Tensor, start: int, length: int) -> Tensor:
        """The part of the tensor at this place that goes to a piece."""
        return x.narrow(-2, start, length) if index < self._num_cut and x.shape[-2] > 1 else x

    def autocast(self) -> AbstractContextManager[Any]:
        """As it was."""
        if self._autocast is None:
            return nullcontext()
        kind, dtype, is_enabled = self._autocast
        return torch.autocast(kind, dtype=dtype, enabled=is_enabled)

    @contextmanager
    def luck(self) -> Iterator[None]:
        """Random numbers as they were."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._luck[0])
            for device, state in zip(self._devices, self._luck[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        found: Tensor | None = None
        for start, length in plan.pieces():
            parts = [plan.cut(i, x.detach(), start, length) for i, x in enumerate(tensors)]
            with torch.enable_grad():
                piece = plan.function(*parts)
            if piece.requires_grad:
                raise ValueError("function: expected gradients for its arguments alone, it takes them for others, too")
            if found is None:
                shape = list(piece.shape)
                shape[plan.axis] = plan._num_steps
                found = piece.new_empty(shape)
            found.narrow(plan.axis, start, length).copy_(piece)
            del piece, parts
        assert found is not None
        return found

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        plan, tensors, needed = ctx.plan, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            aliases = [x.view_as(x) if need else x for x, need in zip(tensors, needed, strict=True)]
            with plan.luck(), plan.autocast():
                found = plan.function(*aliases)
            return None, *_gradients(found, aliases, needed, cotangent, create_graph=True)
        sums = [torch.zeros_like(x) if need else None for x, need in zip(tensors, needed, strict=True)]
        with plan.luck():
            for start, length in plan.pieces():
                leaves = [
                    plan.cut(i, x, start, length).detach().requires_grad_(need)
                    for i, (x, need) in enumerate(zip(tensors, needed, strict=True))
                ]
                with torch.enable_grad(), plan.autocast():
                    piece = plan.function(*leaves)
                own = cotangent.narrow(plan.axis, start, length)
                for i, (total, part) in enumerate(zip(sums, _gradients(piece, leaves, needed, own), strict=True)):
                    if total is not None and part is not None:
                        plan.cut(i, total, start, length).add_(part)
                del piece, leaves, part
        return None, *sums


def _gradients(
    found: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool], cotangent: Tensor, create_graph: bool = False
) -> list[Tensor | None]:
    """Of what is needed."""
    wanted = [x for x, need in zip(tensors, needed, strict=True) if need]
    grads = iter(torch.autograd.grad(found, wanted, cotangent, create_graph=create_graph, allow_unused=True))
    return [next(grads) if need else None for need in needed]
