"""Moments of frames under weights, and the Gaussians that fit them best: the E- and M-step of all Gaussian families."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import inf
from typing import Any, NamedTuple, TypeVar

from ..backend import Array, Backend, backend_of, find_backend
from ..numerics import is_seen, wide
from .constraints import held, is_any, need_at_least, need_whole
from .density import WORKSPACE

Parameters = TypeVar("Parameters")


class GaussianStatistics(NamedTuple):
    """Sums over frames for each of C Gaussians, about a common centre; they add up over batches and processes."""

    counts: Array
    """(C,)"""
    sums: Array
    """(C, D)"""
    squares: Array
    """"diag" (C, D), "spherical" (C,), "full" (C, D, D), "tied" (D, D), "tied_diag" (D,)."""


@dataclass(frozen=True)
class GaussianPrior:
    """Conjugate prior: mean ~ N(`mean`, covariance / `mean_weight`), covariance ~ inverse Wishart(`scale`, `degrees`).

    For "full" and "tied" covariances, where `scale` is (D, D). For the others every variance ~ inverse gamma
    (`degrees` / 2, `scale` / 2), `scale` a number or (D,) ("spherical": a number).

    Args:
        mean: (D,), or (C, D) for means of their own.
        mean_weight: how many observations the prior mean counts for; 0 for none.
        scale: sum of squares that the prior counts for.
        degrees: degrees of freedom.
        has_own_scales: whether `scale` is (C, D): "diag" variances of C Gaussians, each with a scale of its own.

    References: Gelman et al. 2013, section 3.6; the estimate is the joint mode.
    """

    mean: Any = 0.0
    mean_weight: float = 0.0
    scale: Any = 0.0
    degrees: float = 0.0
    has_own_scales: bool = False

    def __post_init__(self) -> None:
        for name in ("mean_weight", "scale", "degrees"):
            if name != "scale" or self.has_own_scales or not is_matrix(self.scale):
                need_at_least(name, getattr(self, name), 0.0)
        need_at_least("mean", self.mean, -inf)

    def log_density(self, means: Array, covariances: Array, covariance_type: str) -> Any:
        """log density of these parameters, up to a constant."""
        backend = backend_of(means=means, covariances=covariances)
        xp, dim = backend.xp, means.shape[-1]
        means = xp.reshape(means, (-1, dim))
        count, gaps = means.shape[0], means - self.mean
        squares = self.mean_weight * gaps * gaps
        if covariance_type in ("full", "tied"):
            flat = xp.reshape(covariances, (-1, dim, dim))
            inverse = xp.linalg.inv(flat)
            log_det = 2 * xp.sum(xp.log(xp.linalg.diagonal(xp.linalg.cholesky(flat))), axis=-1)
            each = count // flat.shape[0]  # Gaussians that share a covariance
            whole = self.mean_weight * (xp.matrix_transpose(inverse) @ gaps[..., None])[..., 0] * gaps
            traces = xp.sum(xp.sum(inverse * xp.asarray(self.scale), axis=-1), axis=-1)
            has_mean = each if self.mean_weight else 0
            return -0.5 * (
                xp.sum(whole) + xp.sum(traces) + xp.sum(log_det) * (self.degrees_of(covariance_type, dim) + has_mean)
            )
        if covariance_type == "spherical":
            variances, squares = xp.reshape(covariances, (-1,)), xp.sum(squares, axis=-1)
            terms = dim if self.mean_weight else 0
        elif covariance_type == "tied_diag":
            variances, squares = covariances, xp.sum(squares, axis=0)
            terms = count if self.mean_weight else 0
        else:
            variances = xp.reshape(covariances, means.shape)
            terms = 1 if self.mean_weight else 0
        powers = self.degrees_of(covariance_type, dim) + terms
        return -0.5 * xp.sum((squares + self.scale) / variances + powers * xp.log(variances))

    def degrees_of(self, covariance_type: str, dim: int) -> float:
        """Twice the power of the determinant (or variance) in the covariance's own density; 0 where it has none."""
        if not self.degrees:
            return 0.0
        return self.degrees + (dim + 1 if covariance_type in ("full", "tied") else 2)


def is_matrix(scale: Any) -> bool:
    """Whether a prior's scale is a matrix; ValueError where it is one that is not symmetric and semi-definite."""
    backend = find_backend(scale)
    if backend is None or scale.ndim < 2:
        return False
    if not backend.is_traced(scale):
        xp = backend.xp
        top = xp.max(xp.abs(scale))
        is_symmetric = scale.shape[-1] == scale.shape[-2] and bool(
            xp.max(xp.abs(scale - xp.matrix_transpose(scale))) <= 1e-6 * top
        )
        if not is_symmetric or bool(xp.min(xp.linalg.eigvalsh(scale)) < -1e-6 * top):
            raise ValueError("scale: expected a symmetric, positive semi-definite matrix")
    return True


def centre_of(backend: Backend, means: Array) -> Array:
    """(D,): what moments are taken about, the mean of the means, so that little cancels."""
    xp = backend.xp
    return backend.stop_gradient(xp.mean(xp.reshape(means, (-1, means.shape[-1])), axis=0))


def weighted_moments(
    backend: Backend, observations: Array, weights: Array, centre: Array, covariance_type: str
) -> GaussianStatistics:
    """Moments of observations (..., T, D) about `centre` (D,) under weights (..., T, C), 0 where not observed."""
    xp = backend.xp
    dim, count = observations.shape[-1], weights.shape[-1]
    frames, weights = xp.reshape(observations, (-1, dim)), xp.reshape(weights, (-1, count))
    length = max(1, WORKSPACE // (dim + count))
    parts = (slice(start, start + length) for start in range(0, max(1, frames.shape[0]), length))
    return summed(_moments(backend, frames[part, ...], weights[part, ...], centre, covariance_type) for part in parts)


def _moments(
    backend: Backend, frames: Array, weights: Array, centre: Array, covariance_type: str
) -> GaussianStatistics:
    xp, turn = backend.xp, backend.xp.matrix_transpose
    weights = wide(backend, weights)
    total = xp.sum(weights, axis=-1, keepdims=True)
    x = wide(backend, frames) - wide(backend, centre)
    can_read = not backend.is_traced(total) and backend.is_host(total)
    if not can_read or not bool(xp.all(total > 0)):
        x = xp.where(total > 0, x, 0.0)  # what has no weight may be NaN
    counts, sums = xp.sum(weights, axis=0), turn(weights) @ x
    if covariance_type == "tied":
        squares = turn(x * total) @ x
    elif covariance_type == "full":
        squares = xp.stack([turn(x * weights[:, c : c + 1]) @ x for c in range(weights.shape[1])])
    elif covariance_type == "tied_diag":
        squares = xp.sum(total * x * x, axis=0)
    elif covariance_type == "spherical":
        squares = (turn(weights) @ xp.sum(x * x, axis=-1, keepdims=True))[:, 0]
    else:
        squares = turn(weights) @ (x * x)
    return GaussianStatistics(counts, sums, squares)


def recentred(statistics: GaussianStatistics, shift: Array, covariance_type: str) -> GaussianStatistics:
    """The same moments about a centre that lies `shift` (D,) below theirs."""
    xp = backend_of(sums=statistics.sums).xp
    n, sums, squares = statistics
    moved = sums + n[:, None] * shift
    if covariance_type in ("full", "tied"):
        outer = sums[:, :, None] * shift
        added = outer + xp.matrix_transpose(outer) + n[:, None, None] * shift[:, None] * shift
    else:
        added = (sums + moved) * shift
    if covariance_type.startswith("tied"):
        added = xp.sum(added, axis=0)
    elif covariance_type == "spherical":
        added = xp.sum(added, axis=-1)
    return GaussianStatistics(n, moved, squares + added)


def maximize_gaussians(
    statistics: GaussianStatistics,
    means: Array,
    covariances: Array,
    covariance_type: str,
    *,
    floor: Any = 0.0,
    prior: GaussianPrior | None = None,
    frames: Array | None = None,
    fixed: tuple[Any, Any] = (None, None),
) -> tuple[Array, Array]:
    """Means (C, D) and covariances of highest expected log-density (and prior), from moments about `centre_of(means)`.

    Args:
        means, covariances: the parameters before, which Gaussians without weight keep.
        floor: the least variance, a number or (D,); a matrix less the diagonal matrix of these stays semi-definite.
        frames: (C,), what sums of squares are divided by, where that is not the counts.
        fixed: which means and which covariances stay: booleans, None for none of them, True for all. Covariances that
            are matrices stay whole or not at all.

    With fixed entries among the means of correlated features the others are maximised over under the covariances
    before, then the covariances: the expected log-density never falls.
    """
    backend = backend_of(means=means, covariances=covariances)
    xp = backend.xp
    if covariance_type in ("full", "tied"):
        need_whole(backend, "fixed.covariances", fixed[1])
    prior = GaussianPrior() if prior is None else prior
    if prior.has_own_scales and covariance_type != "diag":
        raise ValueError(f"prior: expected 'diag' covariances beside has_own_scales, got {covariance_type!r}")
    dtype, (count, dim) = means.dtype, means.shape
    centre = wide(backend, centre_of(backend, means))
    n, sums, squares = statistics
    weight = n + prior.mean_weight
    believed = wide(backend, xp.zeros_like(means) + backend_array(backend, prior.mean, means)) - centre
    offset = (sums + prior.mean_weight * believed) / _divisor(xp, weight)[:, None]
    offset = xp.where(is_seen(xp, weight)[:, None], offset, wide(backend, means) - centre)
    if is_any(fixed[0]):
        offset = _held_means(backend, offset, means, centre, covariances, covariance_type, fixed[0])
    gaps = offset - believed
    is_matrix, extra = covariance_type in ("full", "tied"), prior.degrees_of(covariance_type, dim)
    own = 1 if prior.mean_weight else 0
    scale = wide(backend, backend_array(backend, prior.scale, means))
    if is_matrix:
        outer = sums[:, :, None] * offset[:, None, :]
        taken = outer + xp.matrix_transpose(outer) - (n[:, None] * offset)[:, :, None] * offset[:, None, :]
        added = prior.mean_weight * gaps[:, :, None] * gaps[:, None, :] - taken
    else:
        added = prior.mean_weight * gaps * gaps - (2 * sums - n[:, None] * offset) * offset
    n = n if frames is None else frames
    if covariance_type == "tied" or covariance_type == "tied_diag":
        scatter, total = squares + xp.sum(added, axis=0) + scale, xp.sum(n) + own * count + extra
    elif covariance_type == "spherical":
        scatter, total = squares + xp.sum(added, axis=-1) + scale, (n + own) * dim + extra
    else:
        scatter, total = squares + added + scale, n + own + extra
    total = xp.reshape(total, (*total.shape, *[1] * (scatter.ndim - total.ndim)))
    is_known = is_seen(xp, total)
    found = scatter / _divisor(xp, total)
    if is_matrix:
        found = 0.5 * (found + xp.matrix_transpose(found))
    found = bounded(backend, found, covariance_type, floor)
    found = xp.where(is_known, found, wide(backend, xp.reshape(covariances, scatter.shape)))
    found = xp.astype(xp.reshape(found, covariances.shape), dtype)
    return held(fixed[0], means, xp.astype(offset + centre, dtype)), held(fixed[1], covariances, found)


def _held_means(
    backend: Backend,
    offset: Array,
    means: Array,
    centre: Array,
    covariances: Array,
    covariance_type: str,
    is_fixed: Any,
) -> Array:
    """Means (C, D) less the centre, those that are fixed and what is best for the others beside them."""
    xp, (count, dim) = backend.xp, means.shape
    old = wide(backend, means) - centre
    if is_fixed is True or covariance_type not in ("full", "tied"):
        return held(is_fixed, old, offset)
    share = wide(backend, xp.astype(xp.broadcast_to(is_fixed, means.shape), means.dtype))
    matrices = wide(backend, xp.broadcast_to(xp.reshape(covariances, (-1, dim, dim)), (count, dim, dim)))
    among = matrices * share[:, :, None] * share[:, None, :]
    each = backend.arange(dim, like=share)
    among = among + xp.where(each[:, None] == each, (1.0 - share)[:, None, :], 0.0)  # the others are cut off
    pulled = xp.linalg.solve(among, (share * (old - offset))[..., None])
    return offset + (matrices @ (share[..., None] * pulled))[..., 0]


@dataclass(frozen=True)
class GaussianFamily:
    """What families with means and covariances share; their parameters are NamedTuples with fields of these names."""

    covariance_type: str = "diag"
    variance_floor: Any = 1e-12

    def bounded(self, parameters: Parameters) -> Parameters:
        """The parameters with variances raised to the floor, so that the first M-step cannot lose by it."""
        given: Any = parameters
        backend = backend_of(covariances=given.covariances)
        covariances = bounded(backend, given.covariances, self.covariance_type, self.variance_floor)
        return given._replace(covariances=covariances)  # type: ignore[no-any-return]

    def moved(self, statistics: Any, old: Any, new: Any) -> Any:
        """Statistics made with the old parameters, as if with the new ones' centre."""
        backend = backend_of(means=old.means)
        shift = wide(backend, centre_of(backend, old.means)) - wide(backend, centre_of(backend, new.means))
        return recentred(statistics, shift, self.covariance_type)


def summed(parts: Iterable[GaussianStatistics]) -> GaussianStatistics:
    """The statistics of all parts together."""
    return reduce(lambda x, y: GaussianStatistics(*(a + b for a, b in zip(x, y, strict=True))), parts)


def bounded(backend: Backend, covariances: Array, covariance_type: str, floor: Any) -> Array:
    """Covariances raised to the least variances `floor`, a number or (D,)."""
    xp = backend.xp
    least = xp.astype(backend_array(backend, floor, covariances), covariances.dtype)
    if covariance_type in ("full", "tied"):
        return _floored(backend, covariances, least)
    return xp.maximum(covariances, xp.max(least) if covariance_type == "spherical" else least)


def backend_array(backend: Backend, value: Any, like: Array) -> Array:
    """A number, or an array of the library, as an array."""
    if isinstance(value, int | float):
        return backend.full((), float(value), like=like)
    return value


def _divisor(xp: Any, counts: Array) -> Array:
    return xp.where(is_seen(xp, counts), counts, 1.0)


def _floored(backend: Backend, matrices: Array, floor: Array) -> Array:
    """The matrices of highest likelihood that exceed diag(floor): eigenvalues, in its units, of at least 1."""
    xp = backend.xp
    if not backend.is_traced(floor) and not backend.to_numpy(floor).max() > 0:
        return matrices
    # a floor of 0 for some features, or under a tracer, is one that no number is below
    least = 1e-20 * xp.linalg.diagonal(matrices) + (1e-300 if xp.finfo(matrices.dtype).bits > 32 else 1e-30)
    deviations = xp.sqrt(xp.maximum(wide(backend, floor) + xp.zeros_like(least), least))
    outer = deviations[..., :, None] * deviations[..., None, :]
    values, vectors = xp.linalg.eigh(matrices / outer)
    return ((vectors * xp.maximum(values, 1.0)[..., None, :]) @ xp.matrix_transpose(vectors)) * outer
