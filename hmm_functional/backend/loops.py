"""Scans as plain loops, for libraries that have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .protocol import Array, Step


def loop_scan(
    unstack: Callable[[Array], Sequence[Array]],
    stack: Callable[..., Array],
    step: Step,
    carry: Any,
    xs: Any,
) -> tuple[Any, Any]:
    """`Backend.scan` as a loop; `unstack` splits an array along its leading axis."""
    columns: list[Sequence[Array]] = []
    rebuild = _flatten(xs, lambda x: columns.append(unstack(x)))
    ys: list[Any] = []
    for leaves in zip(*columns, strict=True):
        carry, y = step(carry, rebuild(iter(leaves)))
        ys.append(y)
    return carry, _stack(stack, ys)


def loop_associative_scan(concat: Callable[..., Array], combine: Callable[[Any, Any], Any], items: Any) -> Any:
    """Hillis and Steele's inclusive scan: ceil(log2 n) rounds, each one batched `combine`."""
    length, shift = items[0].shape[0], 1
    while shift < length:
        later = combine(tuple(x[:-shift, ...] for x in items), tuple(x[shift:, ...] for x in items))
        items = tuple(concat([x[:shift, ...], y], axis=0) for x, y in zip(items, later, strict=True))
        shift *= 2
    return items


def _flatten(tree: Any, leaf: Callable[[Array], None]) -> Callable[[Any], Any]:
    """Visits the arrays of a nested tuple; the result rebuilds the tuple from an iterator of leaves."""
    if tree is None:
        return lambda leaves: None
    if isinstance(tree, tuple):
        parts = [_flatten(part, leaf) for part in tree]
        return lambda leaves: tuple(part(leaves) for part in parts)
    leaf(tree)
    return next


def _stack(stack: Callable[..., Array], ys: list[Any]) -> Any:
    if not ys or ys[0] is None:
        return None
    if isinstance(ys[0], tuple):
        return tuple(_stack(stack, [y[i] for y in ys]) for i in range(len(ys[0])))
    return stack(ys, axis=0)
