"""Scans as plain loops, for libraries that have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .protocol import Array, Step


def loop_scan(
    unstack: Callable[[Array], Sequence[Array]],
    stack: Callable[..., Array],
    empty: Callable[[int, Array], Array] | None,
    step: Step,
    carry: Any,
    xs: Any,
) -> tuple[Any, Any]:
    """`Backend.scan` as a loop; `unstack` splits an array along its leading axis.

    The ys are written into `empty(length, first y)` as they come: small results kept between large temporaries
    would break up the heap. Without `empty`, where writing is not possible, they are stacked at the end.
    """
    columns: list[Sequence[Array]] = []
    rebuild = _flatten(xs, lambda x: columns.append(unstack(x)))
    length = len(columns[0])
    ys: list[Any] = []
    whole: Any = None
    for place, leaves in enumerate(zip(*columns, strict=True)):
        carry, y = step(carry, rebuild(iter(leaves)))
        if empty is None:
            ys.append(y)
        else:
            whole = _make(empty, length, y) if place == 0 else whole
            _write(whole, place, y)
    return carry, whole if empty is not None else _stack(stack, ys)


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


def _make(empty: Callable[[int, Array], Array], length: int, y: Any) -> Any:
    if y is None:
        return None
    return tuple(_make(empty, length, part) for part in y) if isinstance(y, tuple) else empty(length, y)


def _write(whole: Any, place: int, y: Any) -> None:
    if isinstance(y, tuple):
        for part, value in zip(whole, y, strict=True):
            _write(part, place, value)
    elif y is not None:
        whole[place, ...] = y


def _stack(stack: Callable[..., Array], ys: list[Any]) -> Any:
    if not ys or ys[0] is None:
        return None
    if isinstance(ys[0], tuple):
        return tuple(_stack(stack, [y[i] for y in ys]) for i in range(len(ys[0])))
    return stack(ys, axis=0)
