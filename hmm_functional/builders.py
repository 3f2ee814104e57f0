"""Transition matrices of common topologies."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._check import need_count
from .backend import Array, backend_named, backend_of
from .transition import Banded, Sparse


def left_to_right(
    num_states: int,
    *,
    self_loop: float = 0.5,
    skip: float = 0.0,
    structured: bool = False,
    like: Array | None = None,
) -> Any:
    """log transition of a left-to-right model: stay, go on by one state, or, with `skip`, by two.

    Args:
        num_states: K.
        self_loop: probability of staying, in [0, 1].
        skip: probability of going on by two states; self_loop + skip at most 1. The state before the last, which
            has none to skip to, adds it to its step. The last state is absorbing.
        structured: return `Banded` instead of a dense matrix.
        like: an array whose library, dtype and device the result takes; default torch's defaults.

    Returns:
        (K, K), nats, or `Banded` with offsets (0, 1), or (0, 1, 2) where skip is above 0.

    Raises:
        ValueError: a probability outside [0, 1], or both above 1 together.

    Example:
        >>> import hmm_functional as hf
        >>> hf.left_to_right(3, self_loop=0.75).exp()
        tensor([[0.7500, 0.2500, 0.0000],
                [0.0000, 0.7500, 0.2500],
                [0.0000, 0.0000, 1.0000]])
    """
    num_states = need_count("num_states", num_states, 1)
    _need_probability("self_loop", self_loop)
    _need_probability("skip", skip)
    if self_loop + skip > 1:
        raise ValueError(f"skip: expected self_loop + skip at most 1, got {self_loop} + {skip}")
    bands = np.zeros((3, num_states))
    bands[0], bands[1], bands[2] = self_loop, 1.0 - self_loop - skip, skip
    bands[1, -2:] += bands[2, -2:]
    bands[2, -2:] = 0.0
    bands[:, -1] = (1.0, 0.0, 0.0)
    bands = bands[: 3 if skip > 0 else 2]
    if structured:
        return Banded(_log(bands, like), tuple(range(len(bands))))
    matrix = np.zeros((num_states, num_states))
    for offset, band in enumerate(bands):
        source = np.arange(num_states - offset)
        matrix[source, source + offset] = band[source]
    return _log(matrix, like)


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
    _need_probability("self_loop", self_loop)
    matrix = np.full((num_states, num_states), (1.0 - self_loop) / max(num_states - 1, 1))
    np.fill_diagonal(matrix, self_loop if num_states > 1 else 1.0)
    if structured:
        return _sparse(matrix, like)
    return _log(matrix, like)


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
    return _sparse(matrix, like) if structured else _log(matrix, like)


def _log(p: Any, like: Array | None) -> Array:
    with np.errstate(divide="ignore"):
        values = np.log(p)
    if like is None:
        torch = backend_named("torch")
        return torch.xp.asarray(values, dtype=torch.xp.get_default_dtype())
    backend = backend_of(like=like)
    return backend.xp.astype(backend.asarray(values, like=like), like.dtype)


def _sparse(matrix: Any, like: Array | None) -> Sparse:
    sources, targets = np.nonzero(matrix)
    return Sparse(_log(matrix[sources, targets], like), sources, targets, matrix.shape[0])


def _need_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {value}")
