"""Which durations are possible, and what every family of durations shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

from .._check import need_count, need_floating
from ..backend import Array, Backend
from ..numerics import is_seen, log_normalize, wide

Limit = int | tuple[int, ...]
"""Of the durations of all states, or of each."""


class Support(NamedTuple):
    """Durations 1..D_max, as constants of NumPy; K is 1 where it is the same for all states."""

    longest: int
    """D_max"""
    durations: Any
    """(1, D_max)"""
    is_possible: Any
    """(K, D_max)"""
    extra: Any
    """(K, D_max): steps beyond the least possible duration, 0 below it."""
    middle: Any
    """(K, 1): of the possible durations."""


def support_of(max_duration: Any, min_duration: Any, num_states: int | None = None) -> Support:
    """The possible durations.

    Args:
        max_duration, min_duration: a number for all states, or one for each.
        num_states: K, where it is known.

    Raises:
        TypeError, ValueError: no such numbers, or a least one above the largest.
    """
    most, least = limit("max_duration", max_duration), limit("min_duration", min_duration)
    most, least = (x if isinstance(x, tuple) else (x,) for x in (most, least))
    for name, found in (("max_duration", most), ("min_duration", least)):
        if num_states is not None and len(found) not in (1, num_states):
            raise ValueError(f"{name}: expected a number or {num_states}, one for each state, got {len(found)}")
    if len(most) > 1 and len(least) > 1 and len(most) != len(least):
        raise ValueError(f"min_duration: expected a number or {len(most)} as in max_duration, got {len(least)}")
    count, longest = max(len(most), len(least)), max(most)
    most, least = (x * count if len(x) < count else x for x in (most, least))
    if any(low > high for low, high in zip(least, most, strict=True)):
        raise ValueError(f"min_duration: expected at most max_duration = {max_duration}, got {min_duration}")
    # sizes are Python's numbers, so that compilers see constants
    durations = np.arange(1, longest + 1)[None, :]
    highest, lowest = (np.array(x)[:, None] for x in (most, least))
    is_possible = (durations >= lowest) & (durations <= highest)
    extra = np.where(durations >= lowest, durations - lowest, 0)
    return Support(longest, durations, is_possible, extra, 0.5 * (highest + lowest))


def limit(name: str, value: Any) -> Limit:
    """A number for all states as a Python integer, or one for each as a tuple of them.

    Raises:
        TypeError, ValueError: no such numbers.
    """
    if getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, Sequence):
        return need_count(name, value, 1)
    if not value:
        raise ValueError(f"{name}: expected a number or one for each state, got none")
    return tuple(need_count(name, one, 1) for one in value)


def need_rows(backend: Backend, max_duration: Any, min_duration: Any, **parameters: Array) -> tuple[Support, Any]:
    """The support, and parameters (..., K) of one shape as numbers (..., K, 1) in the widest dtype there is."""
    xp, shape = backend.xp, None
    for name, x in parameters.items():
        need_floating(name, xp, x)
        if x.ndim < 1 or (shape is not None and tuple(x.shape) != shape):
            wanted = "(..., K)" if shape is None else str(shape)
            raise ValueError(f"{name}: expected shape {wanted}, got {tuple(x.shape)}")
        shape = tuple(x.shape)
    assert shape is not None
    found = tuple(wide(backend, x)[..., None] for x in parameters.values())
    return support_of(max_duration, min_duration, shape[-1]), found


def normalised(backend: Backend, log_weights: Array, support: Support, like: Array) -> Array:
    """log-probabilities (..., K, D_max) from weights that are finite, in the dtype of `like` (float32 or wider)."""
    xp = backend.xp
    is_possible = backend.asarray(support.is_possible, like=log_weights)
    found = xp.where(is_possible, log_weights, -inf)
    found = log_normalize(backend, found - backend.pivot(found, -1))  # large weights lose no digits
    dtype = like.dtype if xp.finfo(like.dtype).bits >= 32 else xp.float32
    return xp.astype(found, dtype, copy=False)


def constant(backend: Backend, values: Any, like: Array) -> Array:
    """NumPy's numbers as those of `like`."""
    return backend.xp.astype(backend.asarray(np.asarray(values, dtype=np.float64), like=like), like.dtype)


@dataclass(frozen=True)
class DurationFamily(ABC):
    """A law of durations. Parameters are a NamedTuple of arrays with a row for each of K states.

    Args:
        max_duration: the longest a state can last, steps, or one number for each state.
        min_duration: the shortest.
    """

    max_duration: Limit
    min_duration: Limit = 1

    def __post_init__(self) -> None:
        support_of(self.max_duration, self.min_duration)

    @abstractmethod
    def log_prob(self, parameters: Any) -> Array:
        """log p(duration = d + 1 given the state), (K, D_max); every row sums to one."""

    @abstractmethod
    def m_step(self, counts: Array, parameters: Any, fixed: Any = None) -> Any:
        """The parameters of highest expected log-probability.

        Args:
            counts: (K, D_max), how often each duration is expected.
            parameters: those at hand; a state without counts keeps its own, and the result is never worse.
            fixed: booleans in place of the parameters, True what stays; None for none.
        """

    def log_prior(self, parameters: Any) -> Any:
        """log density of the parameters before any data, up to a constant; 0.0 without a prior."""
        return 0.0


def base_of(family: DurationFamily, backend: Backend, counts: Array) -> tuple[Support, Array]:
    """The support, and 0 (K, D_max) for what is possible, else -inf."""
    support = support_of(family.max_duration, family.min_duration, counts.shape[0])
    is_possible = backend.asarray(support.is_possible, like=counts)
    return support, backend.xp.where(is_possible, backend.xp.zeros_like(counts), -inf)


def used(backend: Backend, counts: Array, found: Array, old: Array) -> Array:
    """`found` where there are counts (K, D_max), in the dtype of the `old` parameters (K,), which stay elsewhere."""
    xp = backend.xp
    has_any = is_seen(xp, xp.sum(counts, axis=-1))
    return xp.where(has_any, xp.astype(found, old.dtype), old)
