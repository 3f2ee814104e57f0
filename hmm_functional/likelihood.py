"""Log-likelihoods and filtered posteriors: what one forward pass gives."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from ._check import need_count
from ._types import Forward
from .arrays import chain_arrays, fused, fused_values
from .backend import Array
from .chain import Chain, chain_of
from .gradient import BACKWARD, FORWARD
from .kernels.repeat import repeats
from .numerics import log_normalize


@repeats
def log_likelihood(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """log p(x), summed over all state paths.

    Args:
        log_initial: (..., K), log p(z_0), nats; need not be normalised, as all that follows.
        log_transition: (K, K) or (..., T-1 or 1, K, K), log p(z_{t+1} given z_t), [from, to]; or `Banded`,
            `Sparse`, `LowRank`.
        log_emission: (..., T, K), log p(x_t given z_t). A zero row is a missing observation.
        lengths: (...) integers 1..T, the valid steps of right-padded sequences; padding is never read.
        log_final: (..., K), log weight of ending in each state; default zeros.
        kernel: "auto", or the name of the implementation to use.

    Returns:
        (...), nats; -inf, with a gradient of zero, where no path is possible; NaN for a sequence holding NaN.

    Raises:
        TypeError: not arrays of one library, or not floating-point. ValueError: shapes, lengths or the kernel's
            name; the message gives the argument, what was wanted and what came.

    Gradient: posteriors and expected transition counts, by one reversed pass; second derivatives and forward
    mode by the expectation semiring. Higher ones raise in torch.

    Cost: O(B T K^2) time for a dense transition, O(B T K) memory with gradients.

    References: Rabiner 1989, equations 18 to 21; every message is normalised here.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log()
        >>> emission = torch.tensor([[0.9, 0.2], [0.9, 0.2]]).log()
        >>> hf.log_likelihood(initial, transition, emission).exp()
        tensor(0.3515)
    """
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    return chain.unflatten(forward_pass(chain, kernel)[0])


@repeats
def forward(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Forward:
    """Filtered posteriors log p(z_t given x_0..t), and log p(x).

    Args: as `log_likelihood`; `log_final` is no part of the filtered posteriors.

    Returns:
        `Forward(log_filtered (..., T, K), log_likelihood (...))`, normalised. Padding is -inf, and so are the
        steps of an impossible sequence from the first that cannot be; those before it stay valid.

    Raises: as `log_likelihood`.

    Gradient: reverse and forward mode, O(B T K) memory; the second derivative of `log_filtered` raises in torch.

    Cost: as `log_likelihood`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log()
        >>> emission = torch.tensor([[0.9, 0.2], [0.9, 0.2]]).log()
        >>> hf.forward(initial, transition, emission).log_filtered.exp()
        tensor([[0.8182, 0.1818],
                [0.8834, 0.1166]])
    """
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    if (whole := fused_values(chain, kernel)) is not None:
        likelihood, filtered = whole[0].forward(whole[1], chain.final, True, True)
        filtered = masked(chain, filtered)
    else:
        likelihood, messages = forward_pass(chain, kernel, has_messages=True)
        filtered = masked(chain, log_normalize(chain.backend, messages))
    return Forward(chain.unflatten(filtered), chain.unflatten(likelihood))


def forecast(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    num_steps: int,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """log p(z_{T-1+h} given x) for h = 1..num_steps, from each sequence's own end.

    Args: as `log_likelihood`; the transition must be constant in time, and `log_final` is no part of the result.
        num_steps: how many steps to look ahead.

    Returns:
        (..., num_steps, K), normalised; -inf where the sequence is impossible.

    Raises: as `log_likelihood`; ValueError for a time-varying transition, whose future is not given.

    Cost: one forward pass over T + num_steps steps.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.9, 0.1], [0.0, 1.0]]).log()
        >>> hf.forecast(initial, transition, torch.zeros(1, 2), num_steps=2).exp()
        tensor([[0.9000, 0.1000],
                [0.8100, 0.1900]])
    """
    num_steps = need_count("num_steps", num_steps, 1)
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    if chain.weights[0].shape[1] != 1:
        raise ValueError(
            f"log_transition: expected one constant in time to forecast with, got {chain.weights[0].shape[1]} slots"
        )
    backend, xp = chain.backend, chain.backend.xp
    _, messages = forward_pass(chain, kernel, has_messages=True)
    last = xp.sum(xp.where(chain.is_last()[..., None], log_normalize(backend, messages), 0.0), axis=1)
    ahead = replace(
        chain,
        initial=last,
        emission=backend.full((last.shape[0], num_steps + 1, chain.num_states), 0.0, like=last),
        lengths=backend.full((last.shape[0],), num_steps + 1, like=last, dtype=backend.index_dtype()),
        is_ragged=False,
    )
    _, messages = forward_pass(ahead, kernel, has_messages=True)
    return chain.unflatten(log_normalize(backend, messages)[:, 1:, :])


def forward_pass(chain: Chain, kernel: str, *, has_messages: bool = False) -> tuple[Array, ...]:
    """(log_likelihood (B,), messages (B, T, K)), or the first alone."""
    arrays = chain_arrays(chain, kernel)
    records = chain.backend.records(arrays.theta)
    whole = None if chain.backend.is_traced(*arrays.theta) else fused(chain, kernel)
    meets = whole is not None and not has_messages and whole[0].meets(whole[1], records)
    if whole is not None and not records:
        return whole[0].forward(whole[1], chain.final, has_messages, meets=meets)
    spec = replace(
        arrays.spec,
        has_messages=has_messages or records,
        messages_vary=has_messages,
        meets=meets and chain.weights[0].shape[1] == 1,
    )
    return chain.backend.call(FORWARD, spec.encode(), [*arrays.theta, *arrays.constants])


def backward_pass(chain: Chain, kernel: str) -> Array:
    """Reversed messages without their own emission, (B, T, K)."""
    arrays = chain_arrays(chain, kernel)
    return chain.backend.call(BACKWARD, arrays.spec.encode(), [*arrays.theta, *arrays.constants])[0]


def masked(chain: Chain, x: Array) -> Array:
    """(B, T, K) with -inf in the padding."""
    if not chain.is_ragged:
        return x
    return chain.backend.xp.where(chain.is_valid()[..., None], x, -inf)
