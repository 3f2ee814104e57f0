"""From states back to speech parameters: the smoothest course that static and dynamic features agree on."""

from __future__ import annotations

from math import nan, prod
from typing import Any

from ._check import broadcast_batch, need_shape
from .backend import Array, Backend, backend_of
from .banded import solve
from .chain import lengths_of
from .global_variance import GlobalVariance, System, law_of, raise_variance
from .numerics import in_one_dtype, multiply
from .windows import Frames, Window, flat, frames_of, need_edges, need_windows, normal_equations, shifted


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
    shape = (prod(x.shape[:-2]), x.shape[-2], count, x.shape[-1] // count)
    x = xp.reshape(xp.astype(x, dtype, copy=False), shape)
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
        law = law_of(backend, global_variance, batch, found)
        system = System(*(None if x is None else backend.stop_gradient(x) for x in (bands, factor)))
        raised = raise_variance(backend, system, backend.stop_gradient(found), frames, len(windows), law)
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
