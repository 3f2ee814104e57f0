"""The density that every Gaussian family here rests on."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log, pi
from typing import Any

from .._check import broadcast_batch, need_shape
from ..backend import Array, Backend
from ..kernels.gaussians import can_read, mixture_log_prob
from ..numerics import in_one_dtype

WORKSPACE = 2**23
"""Elements of scratch one block of frames may use."""

LARGEST_LOSS = 1e-2
"""Nats: a matrix product that may be off by more than this gives way to squared differences, on the CPU."""

COVARIANCE_SHAPES: dict[str, tuple[str, ...]] = {
    "diag": ("K", "M", "D"),
    "spherical": ("K", "M"),
    "full": ("K", "M", "D", "D"),
    "tied": ("D", "D"),
    "tied_diag": ("D",),
}
"""Axes of `covariances` for each `covariance_type`; a single Gaussian has no M."""


def spread_of(backend: Backend, covariances: Array, has_factor: bool) -> tuple[Array, Array]:
    """Cholesky factors of (..., D, D), or roots of variances (..., D); and the log-densities at the means."""
    xp = backend.xp
    spread = xp.linalg.cholesky(covariances) if has_factor else xp.sqrt(covariances)
    log_det = xp.sum(xp.log(xp.linalg.diagonal(spread) if has_factor else spread), axis=-1)
    return spread, -0.5 * covariances.shape[-1] * log(2 * pi) - log_det


def log_prob_of_gaps(backend: Backend, gaps: Array, spread: Array, constant: Array, has_factor: bool) -> Array:
    """(N, C) for what is left of frames less the means of C Gaussians, (N, C, D), and what `spread_of` gives."""
    xp = backend.xp
    if has_factor:
        white = backend.solve_triangular(spread, xp.permute_dims(gaps, (1, 2, 0)))
        return xp.matrix_transpose(-0.5 * xp.sum(white * white, axis=1)) + constant
    white = gaps / spread
    return constant - 0.5 * xp.sum(white * white, axis=-1)


def log_prob_by_frame(
    backend: Backend, observations: Array, means: Array, covariances: Array, covariance_type: str
) -> Array:
    """(..., T, K) for observations (..., T, D) and means (..., T or 1, K, D), as `gaussian_log_prob` has them."""
    xp, has_factor = backend.xp, covariance_type in ("full", "tied")
    if covariance_type == "spherical":
        covariances = xp.broadcast_to(covariances[..., None], (*covariances.shape, means.shape[-1]))
    gaps = observations[..., None, :] - means
    spread, constant = spread_of(backend, covariances, has_factor)
    if not has_factor:
        return log_prob_of_gaps(backend, gaps, spread, constant, False)
    found = log_prob_of_gaps(backend, xp.reshape(gaps, (-1, *gaps.shape[-2:])), spread, constant, True)
    return xp.reshape(found, gaps.shape[:-1])


class Density:
    """log-densities of frames (N, D) under C Gaussians, made ready once for many blocks of frames."""

    def __init__(
        self, backend: Backend, observations: Array, means: Array, covariances: Array, covariance_type: str
    ) -> None:
        xp = backend.xp
        self._backend = backend
        self._has_factor = covariance_type in ("full", "tied")
        num_gaussians, dim = means.shape
        if covariance_type == "spherical":
            covariances = xp.broadcast_to(covariances[:, None], means.shape)
        spread, constant = spread_of(backend, covariances, self._has_factor)
        self._is_tied = covariance_type.startswith("tied")
        self._is_direct = covariance_type == "full" or self._loses_too_much(observations, means, spread)
        self.cost = num_gaussians * dim if self._is_direct else num_gaussians
        """Elements of scratch a frame."""
        self.parameters: tuple[Array, ...]
        """What `log_prob` takes beside the frames."""
        if self._is_direct:
            self.parameters = (means, spread, constant)
            return
        centre = backend.stop_gradient(xp.mean(means, axis=0))
        if self._is_tied:
            white = self._whitened(means - centre, spread)
            self.parameters = (centre, spread, white, constant - 0.5 * xp.sum(white * white, axis=-1))
            return
        means, precision = means - centre, 1.0 / covariances
        weights = xp.concat([means * precision, -0.5 * precision], axis=-1)
        self.parameters = (centre, weights, constant - 0.5 * xp.sum(means * means * precision, axis=-1))

    def log_prob(self, frames: Array, *parameters: Array) -> Array:
        """(N, C) for frames (N, D) and `self.parameters`."""
        xp = self._backend.xp
        if self._is_direct:
            means, spread, constant = parameters
            return log_prob_of_gaps(self._backend, frames[:, None, :] - means, spread, constant, self._has_factor)
        frames = frames - parameters[0]
        if self._is_tied:
            _, spread, linear, constant = parameters
            white = self._whitened(frames, spread)
            own = -0.5 * xp.sum(white * white, axis=-1, keepdims=True)
            return white @ xp.matrix_transpose(linear) + own + constant
        _, weights, constant = parameters
        return xp.concat([frames, frames * frames], axis=-1) @ xp.matrix_transpose(weights) + constant

    def _whitened(self, x: Array, spread: Array) -> Array:
        if not self._has_factor:
            return x / spread
        turn = self._backend.xp.matrix_transpose
        return turn(self._backend.solve_triangular(spread, turn(x)))

    def _loses_too_much(self, observations: Array, means: Array, spread: Array) -> bool:
        """Whether products would cancel more than LARGEST_LOSS, where values can be read; False elsewhere."""
        backend, xp = self._backend, self._backend.xp
        if backend.is_traced(observations, means, spread) or not backend.is_host(means):
            return False
        observations, means, spread = (backend.stop_gradient(x) for x in (observations, means, spread))
        centre = xp.mean(means, axis=0)
        reach = xp.abs(xp.reshape(observations, (-1, means.shape[1])) - centre)
        reach = xp.max(xp.where(reach < inf, reach, 0.0), axis=0) if reach.shape[0] else xp.zeros_like(centre)
        if self._has_factor:
            spread = xp.min(xp.linalg.diagonal(spread))
        # division first: squares of what float32 holds may not fit it
        scaled = (reach + xp.abs(means - centre)) / spread
        bound = float(xp.finfo(means.dtype).eps) * xp.sum(scaled * scaled, axis=-1)
        return not bool(xp.max(bound) < LARGEST_LOSS)


def can_compile(backend: Backend, covariance_type: str, *arrays: Array) -> bool:
    """Whether compiled code gives the values: for diagonal covariances of arrays it can read."""
    return covariance_type not in ("full", "tied") and can_read(backend, *arrays)


def compiled_log_prob(
    backend: Backend,
    observations: Array,
    log_weights: Array | None,
    means: Array,
    covariances: Array,
    covariance_type: str,
) -> Array:
    """(..., T, K) by compiled code, for diagonal covariances and means (K, M, D)."""
    xp, shape = backend.xp, means.shape
    if covariance_type == "spherical":
        covariances = xp.reshape(covariances, (*shape[:2], 1))
    elif covariance_type == "diag":
        covariances = xp.reshape(covariances, shape)
    variances = xp.broadcast_to(covariances, shape)
    frames = xp.reshape(observations, (-1, shape[-1]))
    found = mixture_log_prob(frames, log_weights, means, variances)
    return xp.reshape(found, (*observations.shape[:-1], shape[0]))


def over_frames(
    backend: Backend, observations: Array, cost: int, function: Callable[..., Array], *parameters: Array
) -> Array:
    """function(frames (N, D), *parameters) over the frames of (..., T, D), in blocks of WORKSPACE / cost frames."""
    xp = backend.xp
    frames = xp.reshape(observations, (-1, observations.shape[-1]))
    length = max(1, WORKSPACE // cost)
    if frames.shape[0] <= length:
        found = function(frames, *parameters)
    else:
        starts = range(0, frames.shape[0], length)
        blocks = [backend.remat(function, frames[s : s + length, ...], *parameters) for s in starts]
        found = xp.concat(blocks, axis=0)
    return xp.reshape(found, (*observations.shape[:-1], found.shape[-1]))


def common(backend: Backend, observations: Array, **parameters: Array) -> tuple[Array, list[Array]]:
    """Arrays in one floating dtype, float32 or wider; observations checked to be (..., T, D) as the means are."""
    observations, *rest = in_one_dtype(backend, observations=observations, **parameters)
    dim = parameters["means"].shape[-1]
    need_shape("observations", observations.shape, (None, dim), f"(..., T, D) with D = {dim} as in means")
    return observations, rest


def need_frame_shapes(
    observations: tuple[int, ...], means: tuple[int, ...], covariances: tuple[int, ...], covariance_type: Any
) -> None:
    """Raise ValueError unless means (..., T or 1, K, D) and their covariances go with observations (..., T, D)."""
    num_steps, num_states = observations[-2], means[-2]
    batches = {"observations": tuple(observations[:-2])}
    named = {"means": (means, 2)}
    base = {"diag": 2, "spherical": 1}.get(covariance_type, len(covariances))
    if len(covariances) > base:
        named["covariances"] = (covariances, base)
    for name, (shape, rank) in named.items():
        if shape[-rank - 1] not in (1, num_steps):
            words = f"(..., T or 1, K{', D' * (rank == 2)}) with T = {num_steps} as in observations"
            raise ValueError(f"{name}: expected shape {words}, got {tuple(shape)}")
        batches[name] = tuple(shape[: -rank - 1])
    broadcast_batch(batches)
    need_covariances(covariances[max(len(covariances) - base, 0) :], covariance_type, num_states, None, means[-1])


def need_covariances(
    shape: tuple[int, ...], covariance_type: Any, num_states: int, num_mixtures: int | None, dim: int
) -> None:
    """Raise ValueError unless `shape` is what `covariance_type` wants."""
    if covariance_type not in COVARIANCE_SHAPES:
        known = ", ".join(repr(name) for name in COVARIANCE_SHAPES)
        raise ValueError(f"covariance_type: expected one of {known}, got {covariance_type!r}")
    sizes = {"K": num_states, "M": num_mixtures, "D": dim}
    axes = [axis for axis in COVARIANCE_SHAPES[covariance_type] if sizes[axis] is not None]
    wanted = tuple(sizes[axis] for axis in axes)
    if tuple(shape) != wanted:
        words = f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"
        raise ValueError(f"covariances: expected shape {words} = {wanted} for {covariance_type!r}, got {tuple(shape)}")
