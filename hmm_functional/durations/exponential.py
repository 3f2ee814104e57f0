"""Exponential families on finitely many durations: their maximum-likelihood parameters, a concave problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from ..backend import Array, Backend
from ..numerics import logsumexp, softmax

_STEPS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.03, 0.001)
_MOST = 60
_NATS = 16.0
"""By how much a step of length 1 along the slope changes odds of durations."""
_ENOUGH = 1e-14
_CLOSE = 1e-12


def fit_mean(
    backend: Backend, counts: Array, base: Array, feature: Array, start: Array, least: Array, most: Array
) -> Array:
    """The natural parameter of p(d) in proportion to exp(base(d) + parameter feature(d)).

    Args:
        counts: (..., D), 0 where `base` is -inf.
        base: (..., D), -inf for what is impossible.
        feature: (..., D).
        start, least, most: (...): where to begin, and between which bounds; equal ones fix it.

    Returns:
        (...): where the mean of the feature is that of the counts, or the bound that comes nearest.

    Newton's method, and halves of what is left where it leaves that: the mean rises with the parameter.
    """
    xp = backend.xp
    wanted = xp.sum(shares(backend, counts) * feature, axis=-1)

    def moments(found: Array) -> tuple[Array, Array]:
        p = softmax(backend, base + found[..., None] * feature)
        mean = xp.sum(p * feature, axis=-1)
        return wanted - mean, xp.sum(p * xp.square(feature - mean[..., None]), axis=-1)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        found, low, high = carry
        gap, variance = moments(found)
        low, high = xp.where(gap >= 0, found, low), xp.where(gap <= 0, found, high)
        moved = found + gap / xp.where(variance > 0, variance, 1.0)
        moved = xp.where((moved > low) & (moved < high), moved, 0.5 * (low + high))
        return xp.where(xp.abs(gap) <= _CLOSE * variance * (1.0 + xp.abs(found)), found, moved), low, high

    def is_still(before: tuple[Array, ...], after: tuple[Array, ...]) -> Array:
        return xp.abs(after[0] - before[0]) <= _CLOSE * (1.0 + xp.abs(after[0]))

    # the mean may lie beyond a bound
    low = xp.where(moments(most)[0] > 0, most, least)
    high = xp.where(moments(least)[0] < 0, least, most)
    return repeated(backend, step, (xp.clip(start, low, high), low, high), is_still)[0]


def fit_two(
    backend: Backend,
    counts: Array,
    base: Array,
    features: tuple[Array, Array],
    start: Sequence[Array],
    least: Sequence[Array],
    most: Sequence[Array],
) -> tuple[Array, Array]:
    """Both natural parameters of p(d) in proportion to exp(base(d) + sum over f of parameter_f feature_f(d)).

    Args:
        counts, base: as `fit_mean`, (K, D).
        features: (K, D) each.
        start, least, most: (K,) for each feature: where to begin, and between which bounds (which a start beyond them
            widens); equal ones fix it.

    Returns:
        (K,) each; log p of the counts is not below that of the start.

    Newton's method within the bounds: what a bound holds back is left out, and each step goes as far as is best of
    several lengths, none included. Where nearly all is on one duration Newton's steps are too long by orders of
    magnitude; a step along the slope, which changes odds by some nats, leads away from there.

    References: Bertsekas 1982 (projected Newton).
    """
    xp, share = backend.xp, shares(backend, counts)
    wanted = xp.stack([xp.sum(share * f, axis=-1) for f in features])
    begin = xp.stack(list(start))
    low, high = xp.minimum(xp.stack(list(least)), begin), xp.maximum(xp.stack(list(most)), begin)
    steps = (0.0, *_STEPS)

    def spread(x: Array) -> Array:  # (K, D) to (K,)
        high, low = (xp.where(base > -inf, x, end) for end in (-inf, inf))
        found = xp.max(high, axis=-1) - xp.min(low, axis=-1)
        return xp.where(found > 0, found, 1.0)

    sizes = [spread(f) for f in features]

    def weights(found: Array) -> Array:  # (..., 2, K)
        return base + found[..., 0, :, None] * features[0] + found[..., 1, :, None] * features[1]

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        found, _ = carry
        p = softmax(backend, weights(found))
        means = [xp.sum(p * f, axis=-1) for f in features]
        slope = wanted - xp.stack(means)
        is_held = ((found <= low) & (slope <= 0)) | ((found >= high) & (slope >= 0))
        slope = xp.where(is_held, 0.0, slope)
        gaps = [f - m[:, None] for f, m in zip(features, means, strict=True)]
        own = [xp.sum(p * gap * gap, axis=-1) for gap in gaps]
        own = [xp.where(x > 0, x, 1.0) for x in own]
        both = xp.where(is_held[0, :] | is_held[1, :], 0.0, xp.sum(p * gaps[0] * gaps[1], axis=-1))
        room = own[0] * own[1]
        det = xp.maximum(room - both * both, 1e-12 * room)
        det = xp.where(det > 0, det, 1.0)  # where all is on one duration, products are too small for numbers
        plain = xp.stack([slope[f, :] / sizes[f] / sizes[f] for f in range(2)])
        moved = plain[0, :, None] * features[0] + plain[1, :, None] * features[1]
        ways = (
            _NATS / spread(moved) * plain,
            xp.stack([slope[f, :] / own[f] for f in range(2)]),
            xp.stack([own[1 - f] * slope[f, :] - both * slope[1 - f, :] for f in range(2)]) / det,
        )
        tried = xp.stack([xp.clip(found + s * way, low, high) for way in ways for s in steps])
        values = xp.sum(tried * wanted, axis=-2) - logsumexp(backend, weights(tried))
        best = xp.argmax(xp.where(values == values, values, -inf), axis=0)[None, :]
        found = backend.take_along(tried, best[None, ...], 0)[0, ...]
        return found, backend.take_along(values, best, 0)[0, ...] - values[0, :]

    carry = (begin, xp.zeros_like(begin[0, :]))
    found, _ = repeated(backend, step, carry, lambda before, after: after[1] <= _ENOUGH)
    return found[0, :], found[1, :]


def repeated(
    backend: Backend, step: Callable[[Any], Any], carry: Any, is_done: Callable[[Any, Any], Array], most: int = _MOST
) -> Any:
    """`step` again and again, until nothing is left to be done where that can be read."""
    if backend.is_traced(carry[0]):
        return backend.scan(lambda x, _: (step(x), x[0]), carry, backend.arange(most, like=carry[0]))[0]
    for _ in range(most):
        before, carry = carry, step(carry)
        if bool(backend.xp.all(is_done(before, carry))):
            break
    return carry


def shares(backend: Backend, counts: Array) -> Array:
    """Counts (..., D) of a sum of one; zeros where there are none."""
    xp = backend.xp
    total = xp.sum(counts, axis=-1, keepdims=True)
    return counts / xp.where(total > 0, total, 1.0)
