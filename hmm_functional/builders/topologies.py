"""Transition matrices of common topologies: forward, any to any, by a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._check import need_count, need_number
from ..backend import Array, backend_named, backend_of
from ..transition import Banded, Sparse

SUM_TOLERANCE = 1e-9
"""By how much probabilities of a row may miss one, as sums of decimal fractions do."""


def left_to_right(
    num_states: int,
    *,
    self_loop: float = 0.5,
    skip: float | Sequence[float] = 0.0,
    cyclic: bool = False,
    structured: bool = False,
    like: Array | None = None,
) -> Any:
    """log transition of a left-to-right model: stay, go on by one state, or, with `skip`, by two or more.

    Args:
        num_states: K.
        self_loop: probability of staying, in [0, 1].
        skip: probability of going on by two states, or probabilities of two, three and so on; with self_loop at most 1.
            A state that has none to skip to adds it to its step. Where they leave less than 1e-9 no step is possible.
        cyclic: whether the last states go on to the first ones; else the last state is absorbing.
        structured: return `Banded` instead of a dense matrix.
        like: an array whose library, dtype and device the result takes; default torch's defaults.

    Returns:
        (K, K), nats, or `Banded` with offsets (0, 1), or (0, 1, 2) where skip is above 0, and so on; where it is
        cyclic those less K, too.

    Raises:
        ValueError: a probability outside [0, 1], all above 1 together, or a cycle too short for its skips.

    Example:
        >>> import hmm_functional as hf
        >>> hf.left_to_right(3, self_loop=0.75).exp()
        tensor([[0.7500, 0.2500, 0.0000],
                [0.0000, 0.7500, 0.2500],
                [0.0000, 0.0000, 1.0000]])
    """
    num_states = need_count("num_states", num_states, 1)
    need_probability("self_loop", self_loop)
    skips = [skip] if isinstance(skip, int | float) else list(skip)
    for p in skips:
        need_probability("skip", p)
    if self_loop + sum(skips) > 1 + SUM_TOLERANCE:
        raise ValueError(f"skip: expected self_loop + skip at most 1, got {self_loop} + {skip}")
    skips = skips if any(skips) else []
    return forward_bands(
        np.full(num_states, self_loop), np.outer(skips, np.ones(num_states)), cyclic, structured=structured, like=like
    )


def forward_bands(
    self_loop: Any, skips: Any, cyclic: bool, *, structured: bool = False, like: Array | None = None
) -> Any:
    """A left-to-right model of probabilities on the host: (K,) of staying, (S, K) of going on by 2, ..., S + 1.

    Skips that leave less than SUM_TOLERANCE for a step, or too little by as much, take all that does not stay.
    """
    num_states, most = len(self_loop), len(skips) + 1
    if cyclic and num_states <= most:
        raise ValueError(
            f"cyclic: expected more than {most} states, that many steps on is another one, got {num_states}"
        )
    skipped = skips.sum(0)
    is_all = (skipped > 0) & (1.0 - self_loop - skipped < SUM_TOLERANCE)
    skips = np.where(is_all, skips / np.where(is_all, skipped, 1.0) * (1.0 - self_loop), skips)
    bands = np.stack([self_loop, np.where(is_all, 0.0, 1.0 - self_loop - skipped), *skips])
    offsets, is_out = np.arange(most + 1), np.arange(num_states) + np.arange(most + 1)[:, None] >= num_states
    if cyclic:
        bands = np.concatenate([bands * ~is_out, (bands * is_out)[1:]])
        offsets = np.concatenate([offsets, offsets[1:] - num_states])
    else:
        bands[1] += (bands * is_out)[2:].sum(0)
        bands[2:][is_out[2:]] = 0.0
        bands[:, -1] = np.arange(most + 1) == 0
    if structured:
        return Banded(log_like(bands, like), tuple(offsets.tolist()))
    matrix = np.zeros((num_states, num_states))
    for offset, band in zip(offsets.tolist(), bands, strict=True):
        source = np.arange(num_states)[max(0, -offset) : max(0, num_states - max(0, offset))]
        matrix[source, source + offset] = band[source]
    return log_like(matrix, like)


def ergodic(num_states: int, *, self_loop: float = 0.5, structured: bool = False, like: Array | None = None) -> Any:
    """log transition that stays with probability `self_loop` and else goes to any other state alike.

    Args:
        num_states: K.
        self_loop: probability of staying, in [0, 1]; 1 where K is 1.
        structured: return `Sparse` with all edges instead of a dense matrix.
        like: an array whose library, dtype and device the result takes; default torch's defaults.

    Returns:
        (K, K), nats, or `Sparse`.

    Raises:
        ValueError: `self_loop` outside [0, 1].

    Example:
        >>> import hmm_functional as hf
        >>> hf.ergodic(3, self_loop=0.5).exp()
        tensor([[0.5000, 0.2500, 0.2500],
                [0.2500, 0.5000, 0.2500],
                [0.2500, 0.2500, 0.5000]])
    """
    num_states = need_count("num_states", num_states, 1)
    need_probability("self_loop", self_loop)
    matrix = np.full((num_states, num_states), (1.0 - self_loop) / max(num_states - 1, 1))
    np.fill_diagonal(matrix, self_loop if num_states > 1 else 1.0)
    if structured:
        return sparse_like(matrix, like)
    return log_like(matrix, like)


def from_mask(mask: Array, *, structured: bool = False, like: Array | None = None) -> Any:
    """log transition that goes from each state to any of those its row of the mask allows, all alike.

    Args:
        mask: (K, K) booleans, [from, to], an array or a nested list.
        structured: return `Sparse` instead of a dense matrix.
        like: an array whose library, dtype and device the result takes; default torch's defaults.

    Returns:
        (K, K), nats, or `Sparse`.

    Raises:
        ValueError: not square, or a state that leads nowhere.

    Example:
        >>> import hmm_functional as hf
        >>> hf.from_mask([[True, True], [False, True]]).exp()
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    allowed = np.asarray(mask if isinstance(mask, list | tuple) else backend_of(mask=mask).to_numpy(mask))
    if allowed.ndim != 2 or allowed.shape[0] != allowed.shape[1] or allowed.size == 0:
        raise ValueError(f"mask: expected shape (K, K), got {allowed.shape}")
    if allowed.dtype != np.bool_:
        raise TypeError(f"mask: expected booleans, got {allowed.dtype}")
    count = allowed.sum(1, keepdims=True)
    if (count == 0).any():
        raise ValueError(f"mask: expected a way out of every state, state {int(np.argmin(count))} has none")
    matrix = allowed / count
    return sparse_like(matrix, like) if structured else log_like(matrix, like)


def log_like(p: Any, like: Array | None) -> Array:
    """log of probabilities on the host, as an array like `like`, or torch's default."""
    with np.errstate(divide="ignore"):
        values = np.log(p)
    if like is None:
        torch = backend_named("torch")
        return torch.xp.asarray(values, dtype=torch.xp.get_default_dtype())
    backend = backend_of(like=like)
    return backend.xp.astype(backend.asarray(values, like=like), like.dtype)


def sparse_like(matrix: Any, like: Array | None) -> Sparse:
    """The log of a matrix on the host, as edges."""
    sources, targets = np.nonzero(matrix)
    return Sparse(log_like(matrix[sources, targets], like), sources, targets, matrix.shape[0])


def need_probability(name: str, value: float) -> None:
    """A number in [0, 1]."""
    need_number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {value}")
