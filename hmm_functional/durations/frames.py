"""Whole frames for the states of an utterance, and the states of its frames."""

from __future__ import annotations

from math import inf
from typing import Any

from .._check import broadcast_batch, need_count, need_integers, need_number, need_shape
from ..backend import Array, Backend, backend_of
from ..chain import lengths_of
from ..numerics import in_one_dtype

STIFF = 1e-6
"""What a variance of 0 counts as, in shares of the largest."""


def scale_durations(
    means: Array,
    variances: Array,
    *,
    total: Any = None,
    rate: float = 1.0,
    least: int = 1,
    lengths: Any = None,
) -> Array:
    """Whole numbers of frames that add up to `total`: the most probable real ones under Gaussian durations, rounded.

    Every duration is mean + rho variance, with the one rho that gives the sum, or `least` where that is more; it is
    rounded down, and what is left goes to the largest fractions.

    Args:
        means: (..., N), frames.
        variances: (..., N), of at least 0, frames squared. A state of variance 0 gives way only where no other can; if
            all are 0, they share alike.
        total: frames of each sequence, an integer or (...) integers; default the sum of the means over `rate`, rounded,
            or N `least` where that is more.
        rate: speaking rate, 2.0 is twice as fast.
        least: frames each state has at least.
        lengths: (...) integers 1..N, states of right-padded sequences; padding is not read and 0 in the result.

    Returns:
        (..., N) int64 (int32 under JAX without x64).

    Raises:
        TypeError: not floating-point arrays of one library, or totals that are not integers. ValueError: shapes; both
        `total` and `rate`; a total below N `least`; where values can be read, means that are not finite or variances
        that are negative or not finite.

    Gradient: none, they are integers.

    Cost: O(N log N).

    References: Yoshimura et al. 1998.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.scale_durations(torch.tensor([4.0, 10.0, 6.0]), torch.tensor([1.0, 9.0, 2.0]), total=26)
        tensor([ 5, 14,  7])
    """
    backend = backend_of(means=means, variances=variances)
    xp = backend.xp
    least = need_count("least", least, 0)
    if total is not None and rate != 1.0:
        raise ValueError(f"rate: expected none beside total, got {rate}")
    need_number("rate", rate)
    if not 0 < rate < inf:
        raise ValueError(f"rate: expected a positive number, got {rate}")
    means, variances = in_one_dtype(backend, means=means, variances=variances)
    need_shape("means", means.shape, (None,), "(..., N)")
    count = means.shape[-1]
    if count < 1:
        raise ValueError(f"means: expected at least one state, got {tuple(means.shape)}")
    need_shape("variances", variances.shape, (count,), f"(..., N) with N = {count} as in means")
    if lengths is not None:
        lengths = lengths_of(backend, lengths, count, means)
    if total is not None:
        total = _integers(backend, "total", total, means)
    shapes = {"means": means.shape[:-1], "variances": variances.shape[:-1]}
    shapes |= {name: x.shape for name, x in (("total", total), ("lengths", lengths)) if x is not None}
    batch = broadcast_batch(shapes)

    wide = backend.wide_dtype(means) or means.dtype
    means, variances = (
        xp.broadcast_to(xp.astype(backend.stop_gradient(x), wide, copy=False), (*batch, count))
        for x in (means, variances)
    )
    states = backend.arange(count, like=means)
    is_valid = states < (count if lengths is None else lengths[..., None])
    is_valid = xp.broadcast_to(is_valid, (*batch, count))
    means, variances = xp.where(is_valid, means, 0.0), xp.where(is_valid, variances, 0.0)
    _need_laws(backend, means, variances)
    index = backend.index_dtype()
    fewest = least * xp.sum(xp.astype(is_valid, index), axis=-1)
    if total is None:
        total = xp.maximum(xp.astype(xp.round(xp.sum(means, axis=-1) / rate), index), fewest)
    total = xp.broadcast_to(total, batch)
    can_read = not backend.is_traced(total, fewest) and backend.is_host(total)
    if can_read and bool(xp.any(total < fewest)):
        place = int(xp.argmax(xp.astype(xp.reshape(total < fewest, (-1,)), xp.int32)))
        wanted, got = (int(xp.reshape(x, (-1,))[place]) for x in (fewest, total))
        raise ValueError(f"total: expected at least {wanted}, {least} a state, got {got}")
    exact = _exact(backend, means, variances, is_valid, xp.astype(total, wide), float(least))
    found = _whole(backend, exact, is_valid, total, least)
    return xp.where(is_valid, found, 0)


def expand_states(states: Array, durations: Array, num_steps: int | None = None) -> Array:
    """The state of every frame: each state as often as its duration says.

    Args:
        states: (..., N) integers.
        durations: (..., N) integers of at least 0; not read where the state is negative, as in padding.
        num_steps: T; default the longest sum of durations, which has to be known: not under jit or vmap.

    Returns:
        (..., T) int64 (int32 under JAX without x64), -1 past a sequence's last frame.

    Raises:
        TypeError: not integer arrays of one library. ValueError: shapes; where values can be read, negative durations,
        or a sum above `num_steps`; where they cannot, no `num_steps`.

    Cost: O(T N).

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.expand_states(torch.tensor([7, 8, 9]), torch.tensor([[1, 0, 2], [2, 1, 1]]))
        tensor([[ 7,  9,  9, -1],
                [ 7,  7,  8,  9]])
    """
    backend = backend_of(states=states, durations=durations)
    xp, index = backend.xp, backend.index_dtype()
    for name, x in (("states", states), ("durations", durations)):
        need_integers(name, xp, x)
        need_shape(name, x.shape, (None,), "(..., N)")
    count = states.shape[-1]
    need_shape("durations", durations.shape, (count,), f"(..., N) with N = {count} as in states")
    batch = broadcast_batch({"states": states.shape[:-1], "durations": durations.shape[:-1]})
    if num_steps is not None:
        num_steps = need_count("num_steps", num_steps, 0)
    durations = xp.where(states < 0, 0, xp.astype(durations, index, copy=False))
    ends = xp.cumulative_sum(durations, axis=-1) if count else durations
    if not backend.is_traced(durations) and (num_steps is None or backend.is_host(durations)):
        values = backend.to_numpy(durations)
        if (values < 0).any():
            raise ValueError(f"durations: expected at least 0, got {int(values.min())}")
        longest = int(values.sum(-1).max(initial=0))
        if num_steps is None:
            num_steps = longest
        elif longest > num_steps:
            raise ValueError(f"num_steps: expected at least {longest}, the longest sum of durations, got {num_steps}")
    elif num_steps is None:
        raise ValueError("num_steps: expected a number, since durations cannot be read under jit or vmap")
    if not count:
        return xp.astype(backend.full((*batch, num_steps), -1, like=states), index)
    steps = backend.arange(num_steps, like=durations)
    place = xp.sum(xp.astype(ends[..., None, :] <= steps[:, None], index), axis=-1)
    place = xp.broadcast_to(place, (*batch, num_steps))
    states = xp.broadcast_to(xp.astype(states, index, copy=False), (*batch, count))
    return xp.where(place < count, backend.take_along(states, xp.clip(place, max=count - 1), -1), -1)


def _exact(backend: Backend, means: Array, variances: Array, is_valid: Array, total: Array, least: float) -> Array:
    """max(least, mean + rho variance) with the rho at which they sum to `total`, (..., N).

    Their sum is piecewise linear in rho and never falls. Beside each place where a state leaves its least it is known,
    which tells the piece that `total` lies on.
    """
    xp = backend.xp
    largest = xp.max(variances, axis=-1, keepdims=True)
    variances = xp.where(largest > 0, xp.maximum(variances, STIFF * largest), 1.0)
    leaves = xp.where(is_valid, (least - means) / variances, inf)
    order = xp.argsort(leaves, axis=-1)
    leaves, means_, slopes, is_there = (backend.take_along(x, order, -1) for x in (leaves, means, variances, is_valid))
    means_, slopes = (xp.cumulative_sum(xp.where(is_there, x, 0.0), axis=-1) for x in (means_, slopes))
    numbers = xp.cumulative_sum(xp.astype(is_there, total.dtype), axis=-1)
    resting = least * (numbers[..., -1:] - numbers)
    sums = resting + means_ + xp.where(is_there, leaves, 0.0) * slopes
    is_passed = is_there & (sums <= total[..., None])
    piece = xp.sum(xp.astype(is_passed, backend.index_dtype()), axis=-1, keepdims=True) - 1
    piece = xp.clip(piece, min=0)
    resting, means_, slopes = (backend.take_along(x, piece, -1) for x in (resting, means_, slopes))
    rho = (total[..., None] - resting - means_) / slopes
    return xp.where(is_valid, xp.maximum(means + rho * variances, least), 0.0)


def _whole(backend: Backend, exact: Array, is_valid: Array, total: Array, least: int) -> Array:
    """`exact` rounded down, and what is missing from `total` given to the largest fractions."""
    xp, index = backend.xp, backend.index_dtype()
    # what rounding put just below a whole number has the largest fraction, and is first to get it back
    slack = float(xp.finfo(exact.dtype).eps) ** 0.5
    whole = xp.clip(xp.floor(exact - slack), min=float(least))
    fraction = xp.where(is_valid, exact - whole, -inf)
    whole = xp.where(is_valid, xp.astype(whole, index), 0)
    missing = (total - xp.sum(whole, axis=-1))[..., None]
    rank = xp.argsort(xp.argsort(-fraction, axis=-1), axis=-1)
    count = xp.sum(xp.astype(is_valid, index), axis=-1, keepdims=True)
    return whole + missing // count + xp.astype(rank < missing % count, index)


def _integers(backend: Backend, name: str, value: Any, like: Array) -> Array:
    """An integer, or an array of them, as an array."""
    xp = backend.xp
    if not backend.is_array(value):
        return xp.astype(backend.asarray(need_count(name, value, 0), like=like), backend.index_dtype())
    need_integers(name, xp, value)
    return xp.astype(value, backend.index_dtype(), copy=False)


def _need_laws(backend: Backend, means: Array, variances: Array) -> None:
    """Raise ValueError for numbers that are none, where values can be read."""
    xp = backend.xp
    if backend.is_traced(means, variances) or not backend.is_host(means):
        return
    if not bool(xp.all(xp.isfinite(means))):
        raise ValueError("means: expected finite numbers of frames")
    if not bool(xp.all((variances >= 0) & xp.isfinite(variances))):
        raise ValueError(f"variances: expected finite ones of at least 0, got {float(xp.min(variances))}")
