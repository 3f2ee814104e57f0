"""States drawn from the prior, and given the observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, prod
from typing import Any

from ._check import need_count
from .arrays import Spec, chain_arrays, emission_shape, no_rule, unpack
from .backend import Array, Backend, Primitive, Rng
from .backend.protocol import Shape, declare
from .chain import chain_of
from .numerics import draw
from .recursion import traceback


def sample(
    log_initial: Array,
    log_transition: Any,
    *,
    num_steps: int,
    rng: Rng,
    batch_shape: tuple[int, ...] = (),
) -> Array:
    """States drawn from the prior: z_0 from log_initial, then each from its row of the transition.

    Args:
        log_initial: (..., K), nats.
        log_transition: as in `log_likelihood`; rows are normalised.
        num_steps: T.
        rng: a `torch.Generator`, a JAX key or a `numpy.random.Generator`.
        batch_shape: axes of independent draws, before those of the parameters.

    Returns:
        (*batch_shape, ..., T) int64 (int32 in JAX without x64); -1 from where a state has no way out.

    Raises:
        TypeError: `rng` is not the array library's own. ValueError: shapes.

    Cost: O(T K) a draw for a dense transition.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> hf.sample(initial, transition, num_steps=4, rng=torch.Generator())
        tensor([0, 1, 0, 1])
    """
    num_steps = need_count("num_steps", num_steps, 1)
    shape = tuple(need_count("batch_shape", n, 0) for n in batch_shape)
    chain = chain_of(log_initial, log_transition, None, num_steps=num_steps)
    backend, xp = chain.backend, chain.backend.xp
    batch = chain.lengths.shape[0]
    copies = prod(shape)
    luck = backend.uniform(rng, (num_steps, copies, batch), chain.initial)
    initial = xp.broadcast_to(chain.initial, (copies, batch, chain.num_states))
    state = draw(backend, initial, luck[0, ...], None)
    state = xp.where(xp.max(initial, axis=-1) > -inf, state, -1)
    structure, weights = chain.structure.transposed(backend, tuple((w,) for w in chain.weights))
    is_constant = chain.weights[0].shape[1] == 1
    constant = tuple(part[0][:, 0, ...] for part in weights) if is_constant else ()
    slots = None if is_constant else tuple(xp.moveaxis(part[0], 1, 0) for part in weights)

    def step(state: Array, item: Any) -> tuple[Array, Array]:
        luck, slot = item
        outgoing, targets = structure.incoming(
            backend, constant if slot is None else slot, xp.where(state < 0, 0, state)
        )
        place = draw(backend, outgoing, luck, None)
        if targets is not None:
            place = backend.take_along(targets, place[..., None], -1)[..., 0]
        is_stuck = (state < 0) | (xp.max(outgoing, axis=-1) == -inf)
        state = xp.where(is_stuck, -1, place)
        return state, state

    path = state[None, ...]
    if num_steps > 1:
        _, later = backend.scan(step, state, (luck[1:, ...], slots))
        path = xp.concat([path, later], axis=0)
    path = xp.astype(xp.permute_dims(path, (1, 2, 0)), backend.index_dtype())
    return xp.reshape(path, (*shape, *chain.batch_shape, num_steps))


def sample_posterior(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    rng: Rng,
    num_samples: int = 1,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """State paths drawn from p(z given x).

    Args: as `log_likelihood`.
        rng: a `torch.Generator`, a JAX key or a `numpy.random.Generator`.
        num_samples: independent paths a sequence.

    Returns:
        (num_samples, ..., T) int64 (int32 in JAX without x64); -1 in the padding and where a sequence is impossible
        or holds NaN. The draws of a step do not depend on the padding after it.

    Raises: as `log_likelihood`; TypeError if `rng` is not the array library's own.

    Cost: a forward pass, then O(T K) a sample.

    References: forward filtering, backward sampling: Scott 2002, section 2.2.

    Example:
        >>> import torch, hmm_functional as hf
        >>> emission = torch.tensor([[0.0, -9e9], [-9e9, 0.0]])
        >>> hf.sample_posterior(torch.zeros(2), torch.zeros(2, 2), emission, rng=torch.Generator(), num_samples=2)
        tensor([[0, 1],
                [0, 1]])
    """
    num_samples = need_count("num_samples", num_samples, 1)
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    backend, xp = chain.backend, chain.backend.xp
    arrays = chain_arrays(chain, kernel)
    size = chain.emission.shape[0]
    # time first, so that a longer batch draws the same numbers for the steps it shares with a shorter one
    luck = backend.uniform(rng, (chain.num_steps, num_samples, size), chain.emission)
    constants = [backend.stop_gradient(x) for x in arrays.theta]
    luck = xp.permute_dims(luck, (2, 0, 1))
    spec = replace(arrays.spec, num_best=num_samples).encode()
    states, ends = backend.call(SAMPLE, spec, [*constants, *arrays.constants, luck])
    is_state = (ends > -inf)[:, None, None] & chain.is_valid()[:, None, :]
    states = xp.permute_dims(xp.where(is_state, states, -1), (1, 0, 2))
    return xp.reshape(states, (num_samples, *chain.batch_shape, chain.num_steps))


def _sample_paths(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, a = backend.xp, unpack(backend, encoded, arrays)
    (luck,) = a.saved
    emission, _ = a.centred()
    call = a.call(emission)
    (messages,) = a.messages(call).values
    states = traceback(
        backend,
        a.structure,
        a.weights,
        messages,
        a.final,
        call.lengths,
        draw,
        chance=_last_draw_first(backend, a, xp.permute_dims(luck, (1, 2, 0))),
        copies=luck.shape[2],
    )
    ends = xp.max(messages[:, -1, :] + a.final, axis=-1)
    return xp.astype(xp.permute_dims(states, (1, 0, 2)), backend.index_dtype()), ends


def _last_draw_first(backend: Backend, a: Any, luck: Array) -> Array:
    """Numbers (T, copies, B) with each sequence's last step's in the place of step T-1, where paths start."""
    xp = backend.xp
    if not a.spec.is_ragged:
        return luck
    place = xp.broadcast_to((a.lengths - 1)[None, None, :], (1, *luck.shape[1:]))
    return xp.concat([luck[:-1, ...], backend.take_along(luck, place, 0)], axis=0)


SAMPLE = declare(
    Primitive(
        "sample_paths",
        _sample_paths,
        lambda encoded: 0,
        lambda encoded, shapes: _sample_shapes(encoded, shapes),
        lambda encoded: (False, False),
        no_rule("the derivative of a sample"),
        no_rule("the derivative of a sample"),
        integers=(True, False),
    )
)


def _sample_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    batch, steps, _ = emission_shape(encoded, shapes)
    return (batch, Spec.decode(encoded).num_best, steps), (batch,)
