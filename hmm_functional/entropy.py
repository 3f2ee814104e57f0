"""Entropy of the state path given the observations."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from .arrays import at_last, chain_arrays, emission_shape, filled, num_theta, split, sum_over_slots, unpack
from .backend import Array, Backend, Primitive
from .backend.protocol import declare
from .chain import chain_of
from .gradient import CURVATURE
from .numerics import centre, log_normalize, multiply
from .semiring import LOG, Message
from .transition import LowRank


def posterior_entropy(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """Entropy of the state path given x: the sum over paths of -p(z given x) log p(z given x).

    Args: as `log_likelihood`.

    Returns:
        (...), nats; 0 for an impossible sequence.

    Raises: as `log_likelihood`.

    Gradient: reverse and forward mode, by the expectation semiring; the second derivative raises in torch.

    Cost: two passes and a sum over pairs, O(B T K^2) time, O(B T K) memory.

    References: Hernando, Crespi and Cybenko 2005, in the form H(z_T) + sum over t of H(z_t given z_{t+1}).

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.posterior_entropy(torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 2)) / torch.tensor(2.0).log()
        tensor(3.)
    """
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    if isinstance(log_transition, LowRank):
        chain = chain.with_dense_transition()
    arrays = chain_arrays(chain, kernel)
    (entropy,) = chain.backend.call(ENTROPY, arrays.spec.encode(), [*arrays.theta, *arrays.constants])
    return chain.unflatten(entropy)


def _entropy(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """H(z) = H(z_last) + sum of H(z_t given z_{t+1}, x_0..t): terms that are all positive, so none cancel."""
    xp, a = backend.xp, unpack(backend, encoded, arrays)
    emission, _ = a.centred()
    call = a.call(emission)
    (messages,), (back,) = a.messages(call).values, a.messages(a.call(emission, reverse=True)).values
    log_posterior = a.masked(log_normalize(backend, messages + back), -inf)
    last = at_last(a, log_posterior)
    entropy = -xp.sum(multiply(backend, xp.exp(last), last), axis=-1)
    if emission.shape[1] == 1:
        return (entropy,)
    slots = a.structure.prepare(backend, LOG, call.weights, 0)
    (predicted,) = a.structure.contract(backend, LOG, (messages[:, :-1, :],), slots)
    predicted = xp.where(predicted == -inf, 0.0, predicted)
    predicted = xp.concat([predicted[:, :1, :], predicted], axis=1)  # the first row is not read

    def terms(here: Message, there: Message) -> tuple[Array, ...]:
        _, (pair,) = a.structure.pull(backend, here[0], a.weights, there[0])
        ((log_share,),) = a.structure.edges(backend, LOG, here, call.weights, there[1:])
        return (-multiply(backend, pair, log_share),)

    (conditional,) = sum_over_slots(a, (messages,), (xp.exp(log_posterior), -predicted), terms, is_per_sequence=True)
    return (entropy + conditional,)


def _entropy_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    """H = L - theta . dL/dtheta, so that dH/dtheta = -(d2L/dtheta2) theta."""
    theta, _, constants = split(encoded, arrays)
    found = backend.call(CURVATURE, encoded, [*theta, *_finite(backend, theta), cotangents[0], *constants])
    return [-f for f in found]


def _entropy_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    xp = backend.xp
    theta, _, constants = split(encoded, arrays)
    size = theta[-2].shape[0]
    whole = [xp.broadcast_to(x, (size, *x.shape[1:])) for x in theta]
    ones = backend.full((size,), 1.0, like=theta[-2])
    bent = backend.call(CURVATURE, encoded, [*whole, *_finite(backend, whole), ones, *constants])
    moves = filled(backend, theta, tangents)
    return [-sum(xp.sum(b * v, axis=tuple(range(1, b.ndim))) for b, v in zip(bent, moves, strict=True))]


def _finite(backend: Backend, theta: Sequence[Array]) -> list[Array]:
    """theta as a direction: emissions centred, which changes no curvature, and 0 where nothing can move."""
    xp = backend.xp
    moved = [*theta[:-2], centre(backend, theta[-2])[0], theta[-1]]
    return [xp.where(xp.abs(x) < inf, x, 0.0) for x in moved]


ENTROPY = declare(
    Primitive(
        "entropy",
        _entropy,
        num_theta,
        lambda encoded, shapes: ((emission_shape(encoded, shapes)[0],),),
        lambda encoded: (True,),
        _entropy_jvp,
        _entropy_vjp,
    )
)
