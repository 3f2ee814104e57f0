"""What models are conditioned on, checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._check import need_support


class Given(NamedTuple):
    """What a `NeuralHMM` is conditioned on."""

    context: Tensor
    """(..., T or 1, C), 0 in padding; C is 0 where there is none."""
    states: Tensor | None
    """(..., K, E), 0 in padding."""
    state_lengths: Tensor | None
    """(...)"""
    num_states: int
    """K."""

    def is_last(self) -> Tensor:
        """(K,) or (..., K): which state is the last."""
        states = torch.arange(self.num_states, device=self.context.device)
        return states == (self.num_states if self.state_lengths is None else self.state_lengths[..., None]) - 1


def checked_input(
    name: str,
    value: Any,
    tail: tuple[int, ...],
    shape: tuple[int, ...],
    lengths: Tensor | None,
    is_by_frame: bool = False,
) -> Tensor:
    """A tensor (..., T, *tail), one a frame and 0 in padding, or (..., *tail), one a sequence, beside `shape` (..., T).

    Args:
        tail: (N,) for finite numbers, () for integers.
        is_by_frame: whether the second is refused.

    Raises:
        TypeError: another dtype. ValueError: another shape, NaN or infinity within the lengths.
    """
    wanted = [(*shape, *tail)] if is_by_frame else [(*shape, *tail), (*shape[:-1], *tail)]
    words, kind = " or ".join(map(str, wanted)), "a floating-point" if tail else "an integer"
    is_kind = isinstance(value, Tensor) and value.dtype != torch.bool and value.is_floating_point() == bool(tail)
    if not is_kind:
        shown = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected {kind} tensor of shape {words}, got {shown}")
    if tuple(value.shape) not in wanted:
        raise ValueError(f"{name}: expected shape {words}, got {tuple(value.shape)}")
    is_read = None
    if lengths is not None and value.ndim == len(shape) + len(tail):
        is_read = torch.arange(shape[-1], device=value.device) < lengths[..., None]
    if tail:
        bounds = (-torch.inf, torch.inf)
        need_support(name, value, len(tail), bounds, is_read, "finite numbers", "padding alone may hold anything")
    found: Tensor = value
    return found if is_read is None else found.where(is_read.reshape(*is_read.shape, *[1] * len(tail)), 0)
