"""From states back to speech parameters: the smoothest course that static and dynamic features agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan, prod
from typing import Any, NamedTuple

from ._check import broadcast_batch, need_count, need_shape
from .backend import Array, Backend, backend_of
from .banded import apply, solve, solve_again
from .chain import lengths_of
from .emissions.density import in_one_dtype
from .numerics import multiply
from .windows import Frames, Window, flat, frames_of, need_edges, need_windows, normal_equations, shifted

ENOUGH = 1e-12
"""Iterations end where the objective grows by less than this share of what a frame weighs."""

STEPS = (0.0, *(2.0**-n for n in range(12, 0, -1)), 1.0, 1.5, 2.0, 3.0, 4.0)
"""The lengths of step tried along a direction; 0 keeps what there is."""


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


def mlpg(
    means: Array,
    variances: Array,
    windows: Any,
    *,
    edges: str = "truncate",
    lengths: Any = None,
    global_variance: GlobalVariance | None = None,
) -> Array:
    """Maximum likelihood parameter generation: the static features whose windows' outputs are the most probable.

    Args:
        means: (..., T, W D), of each frame's Gaussian; blocks of D, window after window, the static one first.
        variances: (..., T, W D), (..., 1, W D) or (W D,), positive; infinite where a mean has no weight and is not
            read, as those of dynamic windows across a boundary.
        windows: W centred sequences of odd length, such as ((1,), (-0.5, 0, 0.5), (1, -2, 1)).
        edges: "truncate" drops window coefficients beyond the ends; "hts" gives windows after the first no weight in
            frames where they cross an end, coefficients of 0 counted, too.
        lengths: (...) integers 1..T, valid frames of right-padded sequences; padding is not read and 0 in the result.
        global_variance: raises the variance over time towards that of speech.

    Returns:
        (..., T, D), the c that maximises log N(W c; means, variances), or, with `global_variance`, log N(W c; ...) /
        (W T) + weight log N(variance of c over time; ...). NaN where a sequence's feature holds NaN, its others being
        untouched.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, lengths, windows or edges; variances
        that are not positive, and frames that nothing determines (infinite variances, or windows that leave a constant
        or a slope open). Where values cannot be read (tracing, GPUs) these two give NaN.

    Gradient: any order, reverse and forward, by the factor at hand (in JAX, in first order). None with
        `global_variance`: it raises.

    Cost: O(T D L^2) for windows that span L frames; the factorisation once for a batch that shares its variances. In
        float64 where there is one.

    References: Tokuda et al. 2000; Toda and Tokuda 2007, here by Newton's steps with a positive definite matrix,
        each as long as the quartic along it says, from the solution scaled to the wanted variance.

    Example:
        >>> import torch, hmm_functional as hf
        >>> means = torch.tensor([[0.0, 0.0]] * 3 + [[1.0, 0.0]] * 3)  # a step, and no slope
        >>> hf.mlpg(means, torch.tensor([1.0, 0.2]), ((1,), (-1, 1, 0)), edges="hts")[:, 0]
        tensor([0.2221, 0.2665, 0.3642, 0.5348, 0.6123, 1.0000])
    """
    backend = backend_of(means=means, variances=variances)
    xp, parts = backend.xp, need_windows(windows)
    need_edges(edges)
    means, variances = in_one_dtype(backend, means=means, variances=variances)
    need_shape("means", means.shape, (None, None), "(..., T, W D)")
    num_steps, size = means.shape[-2:]
    if num_steps < 1 or size < 1 or size % len(parts):
        words = f"(..., T, W D) with T at least 1 and W = {len(parts)}, the number of windows"
        raise ValueError(f"means: expected shape {words}, got {tuple(means.shape)}")
    need_shape("variances", variances.shape, (size,), f"(..., T or 1, W D) with W D = {size} as in means")
    if variances.ndim == 1:
        variances = variances[None, :]
    if variances.shape[-2] not in (1, num_steps):
        raise ValueError(f"variances: expected T = {num_steps} or 1 frames, got {tuple(variances.shape)}")
    if lengths is not None:
        lengths = lengths_of(backend, lengths, num_steps, means)
    batches = {"means": means.shape[:-2], "variances": variances.shape[:-2]}
    batch = broadcast_batch({**batches, "lengths": () if lengths is None else lengths.shape})

    dtype = means.dtype
    wide = backend.wide_dtype(means) or dtype
    frames = frames_of(backend, lengths, batch, num_steps, means)
    is_shared = lengths is None and prod(variances.shape[:-2]) == 1
    variances = xp.broadcast_to(variances, (*variances.shape[:-2], num_steps, size))
    variances = _by_window(backend, variances, () if is_shared else batch, len(parts), wide)
    precisions = _precisions(backend, variances, parts, frames, edges)
    means = _by_window(backend, means, batch, len(parts), wide)
    found = _trajectory(backend, parts, precisions, means, frames, global_variance, batch)
    found = xp.reshape(xp.permute_dims(found, (0, 2, 1)), (*batch, num_steps, size // len(parts)))
    return xp.astype(found, dtype, copy=False)


def _by_window(backend: Backend, x: Array, batch: tuple[int, ...], count: int, dtype: Any) -> Array:
    """(..., T, W D) to (B, W, D, T)."""
    xp = backend.xp
    if batch:
        x = flat(backend, x, batch, 2)
    x = xp.reshape(xp.astype(x, dtype, copy=False), (-1, x.shape[-2], count, x.shape[-1] // count))
    return xp.permute_dims(x, (0, 2, 3, 1))


def _precisions(backend: Backend, variances: Array, windows: tuple[Window, ...], frames: Frames, edges: str) -> Array:
    """1 / variances (P, W, D, T), and 0 where a frame or a window has no weight.

    Raises:
        ValueError: a variance that is not positive, where values can be read; NaN elsewhere.
    """
    xp = backend.xp
    is_valid = frames.are_within(0)[:, None, None, :]
    variances = xp.where(is_valid, variances, 1.0)
    is_positive = ~(variances <= 0)
    if not backend.is_traced(variances) and backend.is_host(variances) and not bool(xp.all(is_positive)):
        raise ValueError(f"variances: expected positive ones, got {float(xp.min(variances))}")
    precisions = xp.where(is_positive, 1.0 / xp.where(is_positive, variances, 1.0), nan)
    reach = [window.reach if edges == "hts" and i else 0 for i, window in enumerate(windows)]
    is_used = xp.stack([frames.are_within(n) for n in reach], axis=1)[:, :, None, :]
    return xp.where(is_used, precisions, 0.0)


class _System(NamedTuple):
    """What a trajectory solves."""

    bands: Array
    """(B or 1, D, T, J)"""
    factor: Array | None
    """None where the bands are a diagonal."""

    def solve(self, backend: Backend, right: Array) -> Array:
        if self.factor is None:
            return right / self.bands[..., 0]
        return solve_again(backend, self.bands, right, self.factor)


def _trajectory(
    backend: Backend,
    windows: tuple[Window, ...],
    precisions: Array,
    means: Array,
    frames: Frames,
    global_variance: GlobalVariance | None,
    batch: tuple[int, ...],
) -> Array:
    """(B, D, T), 0 in the padding."""
    xp = backend.xp
    weighted = multiply(backend, precisions, means)
    bands, right = normal_equations(backend, windows, precisions, weighted, frames)
    factor = None
    if bands.shape[-1] > 1:
        found, factor = solve(backend, bands, right)
    else:
        found = _averages(backend, windows, precisions, means, bands[..., 0])
    _need_solution(backend, found, bands, right)
    if global_variance is not None:
        law = _law(backend, global_variance, batch, found)
        system = _System(*(None if x is None else backend.stop_gradient(x) for x in (bands, factor)))
        raised = _raise_variance(backend, system, backend.stop_gradient(found), frames, len(windows), law)
        words = "mlpg with global_variance has no derivatives: take mlpg's without, or a loss on the variance"
        found = raised + backend.forbid_gradient(found - backend.stop_gradient(found), words)
    return xp.where(frames.are_within(0)[:, None, :], found, 0.0)


def _averages(backend: Backend, windows: tuple[Window, ...], precisions: Array, means: Array, diagonal: Array) -> Array:
    """The solution where every window has one coefficient: means weighted by shares, exact where there is one."""
    xp, found = backend.xp, None
    is_open = diagonal == 0
    for i, window in enumerate(windows):
        ((offset, weight),) = window.taps
        share = weight * weight * shifted(backend, precisions[:, i, ...], offset) / xp.where(is_open, 1.0, diagonal)
        part = multiply(backend, share, shifted(backend, means[:, i, ...], offset) / weight)
        found = part if found is None else found + part
    return xp.where(is_open, nan, found)


def _need_solution(backend: Backend, found: Array, bands: Array, right: Array) -> None:
    """Raise ValueError where a system of finite numbers has no solution, where values can be read."""
    xp = backend.xp
    if backend.is_traced(found) or not backend.is_host(found) or not bool(xp.any(xp.isnan(found))):
        return
    is_given = xp.all(xp.all(xp.isfinite(bands), axis=-1) & xp.isfinite(right), axis=-1)
    is_open = xp.any(xp.isnan(found), axis=-1) & is_given
    if bool(xp.any(is_open)):
        place = int(xp.argmax(xp.astype(xp.reshape(is_open, (-1,)), xp.int32)))
        sequence, feature = divmod(place, is_open.shape[-1])
        raise ValueError(
            "variances: expected enough finite ones to determine every frame (windows of differences alone leave a "
            f"constant open), got too few in sequence {sequence}, feature {feature}"
        )


class _Law(NamedTuple):
    """A global variance's Gaussian, each (B or 1, D, 1) or a number, and how long to go on."""

    mean: Array
    variance: Array
    weight: Any
    num_iterations: int


def _law(backend: Backend, given: GlobalVariance, batch: tuple[int, ...], like: Array) -> _Law:
    """`given`, checked, as constants beside (B, D, T)."""
    xp, dim = backend.xp, like.shape[1]
    if not isinstance(given, GlobalVariance):
        raise TypeError(f"global_variance: expected a GlobalVariance, got {type(given).__name__}")
    names = ("global_variance.means", "global_variance.variances")
    arrays = in_one_dtype(backend, **dict(zip(names, (given.means, given.variances), strict=True)))
    found = []
    for name, x in zip(names, arrays, strict=True):
        if backend_of(**{name: x}) is not backend:
            raise TypeError(f"{name}: expected an array of {backend.name}")
        need_shape(name, x.shape, (dim,), f"(..., D) with D = {dim}")
        if not backend.is_traced(x) and backend.is_host(x) and not bool(xp.all(x > 0)):
            raise ValueError(f"{name}: expected positive numbers, got {float(xp.min(x))}")
        x = xp.astype(backend.stop_gradient(x), like.dtype, copy=False)
        found.append((x[None, :] if x.ndim == 1 else flat(backend, x, batch, 1))[..., None])
    if not isinstance(given.weight, int | float) or not given.weight >= 0:
        raise ValueError(f"global_variance.weight: expected a number of at least 0, got {given.weight!r}")
    count = need_count("global_variance.num_iterations", given.num_iterations, 0)
    return _Law(found[0], found[1], float(given.weight), count)


def _raise_variance(
    backend: Backend, system: _System, start: Array, frames: Frames, num_windows: int, law: _Law
) -> Array:
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

    def along(added: Array, direction: Array) -> tuple[Array, Array]:
        """What is added after the best of STEPS, and how much the objective grew, (B, D, 1)."""
        pushed = apply(backend, system.bands, direction)
        linear, square = dot(added, pushed) * scale, 0.5 * dot(direction, pushed) * scale
        now, more = centred(start + added), centred(direction)
        off = dot(now, now) / count - law.mean
        first, second = 2.0 * dot(now, more) / count, dot(more, more) / count
        steps = xp.astype(backend.asarray(list(STEPS), like=start), start.dtype)
        change = steps * (first + steps * second)
        gains = -steps * (linear + steps * square) - stiffness * change * (off + 0.5 * change)
        gains = xp.where(xp.isnan(gains), 0.0, gains)
        best = xp.argmax(gains, axis=-1, keepdims=True)
        taken = backend.take_along(xp.broadcast_to(steps, gains.shape), best, -1)
        return xp.where(taken > 0, added + taken * direction, added), backend.take_along(gains, best, -1)

    def step(added: Array) -> tuple[Array, Array]:
        spread = centred(start + added)
        slope = 2.0 * spread / count
        variance = dot(spread, spread) / count
        off = variance - law.mean
        turned = system.solve(backend, slope) / scale
        plain = -added - stiffness * off * turned
        share = stiffness * dot(slope, plain) / (1.0 + stiffness * dot(slope, turned))
        direct = plain - share * turned
        # straight on, the variance grows with the square of the step, too: bent to what the slope promises
        there = centred(start + added + direct)
        promised = xp.maximum(variance + dot(slope, direct), 0.25 * variance)
        reached = dot(there, there) / count
        bend = xp.sqrt(promised / xp.where(reached > 0, reached, 1.0)) - 1.0
        return along(added, direct + bend * there)

    spread = centred(start)
    now = dot(spread, spread) / count
    grown = xp.sqrt(law.mean / xp.where(now > 0, now, law.mean))
    added, _ = along(xp.zeros_like(start), (grown - 1.0) * spread)
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
