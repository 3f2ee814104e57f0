"""Emission scores that say what was not observed, and where a state is not allowed."""

from __future__ import annotations

from math import inf

from ._check import broadcast_batch, need_floating, need_shape
from .backend import Array, backend_of


def mask_emission(log_emission: Array, is_observed: Array) -> Array:
    """log_emission with a row of zeros at each step that was not observed: it says nothing about the state.

    Args:
        log_emission: (..., T, K), nats; may hold anything, NaN too, where not observed.
        is_observed: (..., T) booleans; its batch axes broadcast with those of log_emission.

    Returns:
        (..., T, K).

    Raises:
        TypeError: not arrays of one library, or not booleans. ValueError: shapes.

    Gradient: zero where not observed.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.mask_emission(torch.tensor([[1.0, 2.0], [float("nan"), 3.0]]), torch.tensor([True, False]))
        tensor([[1., 2.],
                [0., 0.]])
    """
    backend = backend_of(log_emission=log_emission, is_observed=is_observed)
    need_floating("log_emission", backend.xp, log_emission)
    need_shape("log_emission", log_emission.shape, (None, None), "(..., T, K)")
    _need_booleans("is_observed", backend.xp, is_observed)
    num_steps = log_emission.shape[-2]
    need_shape("is_observed", is_observed.shape, (num_steps,), f"(..., T) with T = {num_steps} as in log_emission")
    broadcast_batch({"log_emission": log_emission.shape[:-2], "is_observed": is_observed.shape[:-1]})
    return backend.xp.where(is_observed[..., None], log_emission, 0.0)


def restrict_states(log_emission: Array, is_allowed: Array) -> Array:
    """log_emission with -inf where a state is not allowed at a step.

    Args:
        log_emission: (..., T, K), nats.
        is_allowed: (..., T, K) booleans; its batch axes broadcast with those of log_emission.

    Returns:
        (..., T, K).

    Raises:
        TypeError: not arrays of one library, or not booleans. ValueError: shapes.

    Gradient: zero where not allowed.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.restrict_states(torch.zeros(1, 2), torch.tensor([[True, False]]))
        tensor([[0., -inf]])
    """
    backend = backend_of(log_emission=log_emission, is_allowed=is_allowed)
    need_floating("log_emission", backend.xp, log_emission)
    need_shape("log_emission", log_emission.shape, (None, None), "(..., T, K)")
    _need_booleans("is_allowed", backend.xp, is_allowed)
    tail = tuple(log_emission.shape[-2:])
    need_shape("is_allowed", is_allowed.shape, tail, f"(..., T, K) with (T, K) = {tail} as in log_emission")
    broadcast_batch({"log_emission": log_emission.shape[:-2], "is_allowed": is_allowed.shape[:-2]})
    return backend.xp.where(is_allowed, log_emission, -inf)


def _need_booleans(name: str, xp: object, x: Array) -> None:
    if not xp.isdtype(x.dtype, "bool"):  # type: ignore[attr-defined]
        raise TypeError(f"{name}: expected booleans, got {x.dtype}")
