"""Exponential families on finitely many durations: their maximum-likelihood parameters, a concave problem."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ..backend import Array, Backend
from ..numerics import logsumexp, softmax

_STEPS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.03, 0.001)
_MOST = 60
_ENOUGH = 1e-14


def fit_exponential(
    backend: Backend,
    counts: Array,
    base: Array,
    features: Sequence[Array],
    start: Sequence[Array],
    least: Sequence[Array],
    most: Sequence[Array],
) -> tuple[tuple[Array, ...], Array]:
    """Natural parameters of p(d) in proportion to exp(base(d) + sum over f of parameter_f feature_f(d)).

    Args:
        counts: (S, D), 0 where `base` is -inf.
        base: (S, D), -inf for what is impossible.
        features: one or two, (S, D).
        start, least, most: (S,) for each feature: where to begin, and between which bounds; equal ones fix it.

    Returns:
        The parameters, (S,) each, and the mean of log p under the counts, (S,), which is not below that of the start.

    Newton's method within the bounds: what a bound holds back is left out, and each step goes as far as is best of
    several lengths, none included.

    References: Bertsekas 1982 (projected Newton).
    """
    xp = backend.xp
    share = counts / xp.where((total := xp.sum(counts, axis=-1, keepdims=True)) > 0, total, 1.0)
    wanted = xp.stack([xp.sum(share * f, axis=-1) for f in features])
    plain = xp.sum(xp.where(share > 0, share * xp.where(share > 0, base, 0.0), 0.0), axis=-1)
    low, high = xp.stack(list(least)), xp.stack(list(most))
    size = len(features)
    steps = (0.0, *_STEPS)

    def weights(found: Array) -> Array:  # (..., F, S)
        return base + sum(found[..., f, :, None] * features[f] for f in range(size))

    def value(found: Array) -> Array:
        return plain + xp.sum(found * wanted, axis=-2) - logsumexp(backend, weights(found))

    def step(found: Array) -> tuple[Array, Array]:
        p = softmax(backend, weights(found))
        means = [xp.sum(p * f, axis=-1) for f in features]
        slope = wanted - xp.stack(means)
        is_held = ((found <= low) & (slope <= 0)) | ((found >= high) & (slope >= 0))
        slope = xp.where(is_held, 0.0, slope)
        gaps = [f - m[:, None] for f, m in zip(features, means, strict=True)]
        own = [xp.sum(p * gap * gap, axis=-1) for gap in gaps]
        own = [xp.where(x > 0, x, 1.0) for x in own]
        ways = [xp.stack([slope[f, :] / own[f] for f in range(size)])]
        if size == 2:
            both = xp.where(is_held[0, :] | is_held[1, :], 0.0, xp.sum(p * gaps[0] * gaps[1], axis=-1))
            room = own[0] * own[1]
            det = xp.clip(room - both * both, min=0.0)
            det = xp.where(det > 1e-12 * room, det, 1e-12 * room)
            first = (own[1] * slope[0, :] - both * slope[1, :]) / det
            ways.append(xp.stack([first, (own[0] * slope[1, :] - both * slope[0, :]) / det]))
        tried = xp.stack([xp.clip(found + s * way, low, high) for way in ways for s in steps])
        values = value(tried)
        best = xp.argmax(xp.where(values == values, values, -inf), axis=0)
        chosen = backend.take_along(tried, best[None, None, :], 0)[0, ...]
        return chosen, backend.take_along(values, best[None, :], 0)[0, ...] - values[0, :]

    found = xp.clip(xp.stack(list(start)), low, high)
    if backend.is_traced(found, counts):

        def again(carry: Array, _: Array) -> tuple[Array, Array]:
            moved, gain = step(carry)
            return moved, gain

        found, _ = backend.scan(again, found, backend.arange(_MOST, like=found))
    else:
        for _ in range(_MOST):
            found, gain = step(found)
            if not bool(xp.any(gain > _ENOUGH)):
                break
    return tuple(found[f, :] for f in range(size)), value(found)
