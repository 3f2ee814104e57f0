"""Gaussian emissions: the density every Gaussian family here rests on."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import Any

from .._check import need_floating, need_shape
from ..backend import Array, Backend, backend_of

WORKSPACE = 2**23
"""Elements of scratch one block of frames may use."""

COVARIANCE_SHAPES: dict[str, tuple[str, ...]] = {
    "diag": ("K", "M", "D"),
    "spherical": ("K", "M"),
    "full": ("K", "M", "D", "D"),
    "tied": ("D", "D"),
    "tied_diag": ("D",),
}
"""Axes of `covariances` for each `covariance_type`; a single Gaussian has no M."""


def gaussian_log_prob(observations: Array, means: Array, covariances: Array, *, covariance_type: str = "diag") -> Array:
    """log p(x_t given z_t = k) of Gaussian emissions.

    Args:
        observations: (..., T, D).
        means: (K, D).
        covariances: variances, not standard deviations: "diag" (K, D), "spherical" (K,), "full" (K, D, D), "tied"
            (D, D), "tied_diag" (D,). Positive (definite): not checked here, what is not gives NaN.
        covariance_type: which of these.

    Returns:
        (..., T, K), nats; NaN for a frame that holds NaN, and for that one alone.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, or an unknown covariance_type.

    Cost: one matrix product, O(B T K D), for all but "full", O(B T K D^2) by triangular solves in blocks of frames;
    no (B, T, K, D) array beyond a workspace of 2^23 elements. The products centre observations and means on the mean
    of the means, c; their rounding error is a few eps times the sum over features of (|x - c| + |mean - c|)^2 over
    the variance, which an offset of the data does not enter: in float32, D = 80, offset 1000, 6e-5 nats of 300.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.gaussian_log_prob(torch.zeros(1, 1), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1))
        tensor([[-0.9189, -1.4189]])
    """
    backend = backend_of(observations=observations, means=means, covariances=covariances)
    need_shape("means", means.shape, (None, None), "(K, D)")
    if means.ndim != 2:
        raise ValueError(f"means: expected shape (K, D), got {tuple(means.shape)}")
    observations, (means, covariances) = common(backend, observations, means=means, covariances=covariances)
    need_covariances(covariances.shape, covariance_type, means.shape[0], None, means.shape[1])
    density = Density(backend, means, covariances, covariance_type)
    return over_frames(backend, observations, density.cost, density.log_prob, *density.parameters)


class Density:
    """log-densities of frames (N, D) under C Gaussians, made ready once for many blocks of frames."""

    def __init__(self, backend: Backend, means: Array, covariances: Array, covariance_type: str) -> None:
        xp = backend.xp
        self._backend, self._type = backend, covariance_type
        num_gaussians, dim = means.shape
        centre = backend.stop_gradient(xp.mean(means, axis=0))
        means = means - centre
        self.cost = num_gaussians
        """Elements of scratch a frame."""
        self.parameters: tuple[Array, ...]
        half = 0.5 * dim * log(2 * pi)
        if covariance_type == "full":
            factor = xp.linalg.cholesky(covariances)
            self.cost = num_gaussians * dim
            self.parameters = (centre, means, factor, -half - _half_log_det(xp, factor))
            return
        if covariance_type == "tied":
            factor = xp.linalg.cholesky(covariances)
            white = xp.matrix_transpose(backend.solve_triangular(factor, xp.matrix_transpose(means)))
            constant = -half - _half_log_det(xp, factor)
            linear, square = white, xp.sum(white * white, axis=-1)
            self.parameters = (centre, factor, linear, constant - 0.5 * square)
            return
        if covariance_type == "tied_diag":
            scale = xp.sqrt(covariances)
            white = means / scale
            constant = -half - 0.5 * xp.sum(xp.log(covariances))
            self.parameters = (centre, scale, white, constant - 0.5 * xp.sum(white * white, axis=-1))
            return
        if covariance_type == "spherical":
            precision = 1.0 / covariances
            constant = -half - 0.5 * dim * xp.log(covariances)
            linear = means * precision[:, None]
            square = precision[:, None]
        else:
            precision = 1.0 / covariances
            constant = -half - 0.5 * xp.sum(xp.log(covariances), axis=-1)
            linear, square = means * precision, precision
        weights = xp.concat([linear, -0.5 * square], axis=-1)
        self.parameters = (centre, weights, constant - 0.5 * xp.sum(means * linear, axis=-1))

    def log_prob(self, frames: Array, *parameters: Array) -> Array:
        """(N, C) for frames (N, D) and `self.parameters`."""
        backend, xp = self._backend, self._backend.xp
        frames = frames - parameters[0]
        if self._type == "full":
            _, means, factor, constant = parameters
            gaps = xp.permute_dims(frames[:, None, :] - means, (1, 2, 0))
            white = backend.solve_triangular(factor, gaps)
            return constant - 0.5 * xp.matrix_transpose(xp.sum(white * white, axis=1))
        if self._type in ("tied", "tied_diag"):
            _, scale, linear, constant = parameters
            if self._type == "tied":
                white = xp.matrix_transpose(backend.solve_triangular(scale, xp.matrix_transpose(frames)))
            else:
                white = frames / scale
            own = -0.5 * xp.sum(white * white, axis=-1, keepdims=True)
            return white @ xp.matrix_transpose(linear) + own + constant
        _, weights, constant = parameters
        squares = frames * frames
        if self._type == "spherical":
            squares = xp.sum(squares, axis=-1, keepdims=True)
        return xp.concat([frames, squares], axis=-1) @ xp.matrix_transpose(weights) + constant


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
    xp = backend.xp
    named = {"observations": observations, **parameters}
    for name, x in named.items():
        need_floating(name, xp, x)
    dim = parameters["means"].shape[-1]
    need_shape("observations", observations.shape, (None, dim), f"(..., T, D) with D = {dim} as in means")
    dtype = xp.result_type(*(x.dtype for x in named.values()))
    if xp.finfo(dtype).bits < 32:
        dtype = xp.float32
    observations, *rest = (xp.astype(x, dtype, copy=False) for x in named.values())
    return observations, rest


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


def _half_log_det(xp: Any, factor: Array) -> Array:
    return xp.sum(xp.log(xp.linalg.diagonal(factor)), axis=-1)
