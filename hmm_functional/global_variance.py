"""Trajectories whose variance over time is that of speech."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._check import need_count, need_shape
from .backend import Array, Backend, backend_of
from .banded import apply, solve_again
from .numerics import in_one_dtype
from .windows import Frames, flat

ENOUGH = 1e-12
"""Iterations end where the objective grows by less than this share of what a frame weighs."""

STEPS = (0.0, *(2.0**-n for n in range(12, 0, -1)), 1.0, 1.5, 2.0, 3.0, 4.0)
"""The lengths of step tried along a direction, 0 first: it keeps what there is."""


@dataclass(frozen=True)
class GlobalVariance:
    """What the variance over time of each feature is like in speech: a Gaussian.

    Args:
        means: (D,) or (..., D), mean of the variance over an utterance's frames.
        variances: the same shape, variance of that variance.
        weight: of its log-density, beside the log-likelihood of the features divided by W T.
        num_iterations: Newton steps at most.
    """

    means: Array
    variances: Array
    weight: float = 1.0
    num_iterations: int = 50


class System(NamedTuple):
    """What a trajectory solves."""

    bands: Array
    """(B or 1, D, T, J)"""
    factor: Array | None
    """None where the bands are a diagonal."""

    def solve(self, backend: Backend, right: Array) -> Array:
        if self.factor is None:
            return right / self.bands[..., 0]
        return solve_again(backend, self.bands, right, self.factor)


class Law(NamedTuple):
    """A global variance's Gaussian, each (B or 1, D, 1) or a number, and how long to go on."""

    mean: Array
    variance: Array
    weight: Any
    num_iterations: int


def law_of(backend: Backend, given: GlobalVariance, batch: tuple[int, ...], like: Array) -> Law:
    """`given`, checked, as constants beside (B, D, T)."""
    xp, dim = backend.xp, like.shape[1]
    if not isinstance(given, GlobalVariance):
        raise TypeError(f"global_variance: expected a GlobalVariance, got {type(given).__name__}")
    named = {"global_variance.means": given.means, "global_variance.variances": given.variances}
    backend_of(means=like, **named)
    found = []
    for name, x in zip(named, in_one_dtype(backend, **named), strict=True):
        need_shape(name, x.shape, (dim,), f"(..., D) with D = {dim}")
        is_positive = xp.all(x > 0)
        if not backend.is_traced(is_positive) and backend.is_host(x) and not bool(is_positive):
            raise ValueError(f"{name}: expected positive numbers, got {float(xp.min(x))}")
        x = xp.astype(backend.stop_gradient(x), like.dtype, copy=False)
        found.append((x[None, :] if x.ndim == 1 else flat(backend, x, batch, 1))[..., None])
    if not isinstance(given.weight, int | float) or not given.weight >= 0:
        raise ValueError(f"global_variance.weight: expected a number of at least 0, got {given.weight!r}")
    count = need_count("global_variance.num_iterations", given.num_iterations, 0)
    return Law(found[0], found[1], float(given.weight), count)


def raise_variance(backend: Backend, system: System, start: Array, frames: Frames, num_windows: int, law: Law) -> Array:
    """The trajectory (B, D, T) of the highest objective, by steps that never lower it.

    With e what is added to `start`, and v the variance over time, it is

        - e' P e / (2 W T) - weight (v - mean)^2 / (2 variance)

    less a constant. Newton's matrix leaves out the second derivative of v, so that it is positive definite and differs
    from P by one direction: a step takes one solution of P x = dv/dc.
    """
    xp = backend.xp
    is_valid = frames.are_within(0)[:, None, :]
    count = xp.astype(frames.end, start.dtype)[..., None]
    scale = 1.0 / (num_windows * count)
    stiffness = law.weight / law.variance

    def dot(x: Array, y: Array) -> Array:
        return xp.sum(x * y, axis=-1, keepdims=True)

    def centred(x: Array) -> Array:
        x = xp.where(is_valid, x, 0.0)
        return xp.where(is_valid, x - xp.sum(x, axis=-1, keepdims=True) / count, 0.0)

    def along(added: Array, direction: Array, is_bent: bool) -> tuple[Array, Array]:
        """What is added after the best of STEPS, and how much the objective grew, (B, D, 1).

        A straight step changes the variance by its square, too. One that is bent takes that back by the distance from
        the mean over time, so that the variance is what the slope promised.
        """
        spread = centred(start + added)
        more = centred(direction)
        now, first, second = dot(spread, spread) / count, dot(spread, more) / count, dot(more, more) / count
        steps = xp.astype(backend.asarray(list(STEPS), like=start), start.dtype)
        turns = xp.zeros_like(steps * now)
        if is_bent:
            promised = xp.maximum(now + 2.0 * steps * first, 0.25 * now)
            root = (steps * first) ** 2 - now * (steps * steps * second - promised)
            can_turn = (root >= 0) & (now > 0)
            ends = xp.sqrt(xp.where(can_turn, root, 0.0)) - steps * first
            turns = xp.where(can_turn & (steps > 0), ends / xp.where(now > 0, now, 1.0) - 1.0, 0.0)
        change = turns * (2.0 + turns) * now + 2.0 * (1.0 + turns) * steps * first + steps * steps * second
        pushed, pulled = apply(backend, system.bands, direction), apply(backend, system.bands, spread)
        loss = steps * (dot(added, pushed) + 0.5 * steps * dot(direction, pushed))
        loss = loss + turns * (dot(added, pulled) + steps * dot(direction, pulled) + 0.5 * turns * dot(spread, pulled))
        gains = -scale * loss - stiffness * change * (now - law.mean + 0.5 * change)
        gains = xp.where(xp.isnan(gains), 0.0, gains)
        best = xp.argmax(gains, axis=-1, keepdims=True)
        taken, gain, turn = (
            backend.take_along(xp.broadcast_to(x, gains.shape), best, -1) for x in (steps, gains, turns)
        )
        return xp.where(taken > 0, added + taken * direction + turn * spread, added), gain

    def step(added: Array) -> tuple[Array, Array]:
        slope = 2.0 * centred(start + added) / count
        off = 0.25 * count * dot(slope, slope) - law.mean
        turned = system.solve(backend, slope) / scale
        plain = -added - stiffness * off * turned
        share = stiffness * dot(slope, plain) / (1.0 + stiffness * dot(slope, turned))
        return along(added, plain - share * turned, is_bent=True)

    spread = centred(start)
    now = dot(spread, spread) / count
    grown = xp.sqrt(law.mean / xp.where(now > 0, now, law.mean))
    added, _ = along(xp.zeros_like(start), (grown - 1.0) * spread, is_bent=False)
    return start + _iterate(backend, step, added, law.num_iterations)


def _iterate(
    backend: Backend, step: Callable[[Array], tuple[Array, Array]], added: Array, num_iterations: int
) -> Array:
    """Steps until none gains, where that can be read."""
    xp = backend.xp
    if num_iterations and (backend.is_traced(added) or not backend.is_host(added)):
        counts = backend.arange(num_iterations, like=added)
        return backend.scan(lambda carry, _: (step(carry)[0], None), added, counts)[0]
    for _ in range(num_iterations):
        added, gain = step(added)
        if not bool(xp.any(gain > ENOUGH)):
            break
    return added
