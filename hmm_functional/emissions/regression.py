"""Linear regression and autoregression: their log-density, expected statistics, and M-step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .._check import broadcast_batch, need_count, need_shape
from ..backend import Array, Backend, backend_of
from ..numerics import in_one_dtype, is_seen, solve_semidefinite, wide
from .constraints import held, need_whole
from .density import WORKSPACE, log_prob_of_gaps, need_covariances, over_frames, spread_of
from .moments import GaussianFamily, GaussianStatistics, maximize_gaussians

HISTORIES = ("zeros", "condition")
"""What stands for the frames before the start."""


def linear_regression_log_prob(
    observations: Array,
    regressors: Array,
    weights: Array,
    biases: Array,
    covariances: Array,
    *,
    covariance_type: str = "full",
) -> Array:
    """log p(y_t given z_t and state k) of y_t ~ N(W_k z_t + b_k, C_k).

    Args:
        observations: (..., T, D), y.
        regressors: (..., T, P), z; P may be 0. Batch axes broadcast with those of the observations. See `lagged`
            for autoregression.
        weights: (K, D, P).
        biases: (K, D).
        covariances: as in `gaussian_log_prob`: "diag" (K, D), "spherical" (K,), "full" (K, D, D), "tied" (D, D),
            "tied_diag" (D,).
        covariance_type: which of these.

    Returns:
        (..., T, K), nats; NaN for a frame that holds NaN in y or z.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, or an unknown covariance_type.

    Cost: O(B T K D (P + 1)), O(B T K D (P + D)) for "full" and "tied"; no (B, T, K, D) array beyond a workspace of
    2^23 elements. It squares differences; what rounds is y - (W z + b), by eps times the size of its terms.

    References: Hamilton 1989 (Markov switching regression); Hamilton 1994, chapter 22.

    Example:
        >>> import torch, hmm_functional as hf
        >>> y, z = torch.tensor([[3.0]]), torch.tensor([[1.0]])
        >>> weights, biases = torch.tensor([[[2.0]], [[0.0]]]), torch.tensor([[1.0], [2.0]])
        >>> hf.linear_regression_log_prob(y, z, weights, biases, torch.ones(2), covariance_type="spherical")
        tensor([[-0.9189, -1.4189]])
    """
    backend = backend_of(
        observations=observations, regressors=regressors, weights=weights, biases=biases, covariances=covariances
    )
    xp = backend.xp
    if weights.ndim != 3:
        raise ValueError(f"weights: expected shape (K, D, P), got {tuple(weights.shape)}")
    num_states, dim, num_regressors = weights.shape
    if tuple(biases.shape) != (num_states, dim):
        raise ValueError(f"biases: expected shape (K, D) = {(num_states, dim)}, got {tuple(biases.shape)}")
    need_shape("observations", observations.shape, (None, dim), f"(..., T, D) with D = {dim} as in weights")
    tail = (observations.shape[-2], num_regressors)
    need_shape("regressors", regressors.shape, tail, f"(..., T, P) with (T, P) = {tail} as in observations and weights")
    need_covariances(covariances.shape, covariance_type, num_states, None, dim)
    batch = broadcast_batch({"observations": observations.shape[:-2], "regressors": regressors.shape[:-2]})
    y, z, weights, biases, covariances = in_one_dtype(
        backend,
        observations=observations,
        regressors=regressors,
        weights=weights,
        biases=biases,
        covariances=covariances,
    )
    if covariance_type == "spherical":
        covariances = xp.broadcast_to(covariances[:, None], biases.shape)
    has_factor = covariance_type in ("full", "tied")
    spread, constant = spread_of(backend, covariances, has_factor)
    columns = xp.matrix_transpose(xp.reshape(weights, (num_states * dim, num_regressors)))

    def log_prob(frames: Array, columns: Array, biases: Array, spread: Array, constant: Array) -> Array:
        means = xp.reshape(frames[:, dim:] @ columns, (-1, num_states, dim)) + biases
        return log_prob_of_gaps(backend, frames[:, None, :dim] - means, spread, constant, has_factor)

    frames = xp.concat([xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (y, z)], axis=-1)
    return over_frames(backend, frames, num_states * dim, log_prob, columns, biases, spread, constant)


def lagged(observations: Array, num_lags: int, history: Array | None = None) -> Array:
    """The frames before each frame, the last one first: [x_{t-1}, ..., x_{t-num_lags}].

    Args:
        observations: (..., T, D).
        num_lags: at least 0.
        history: (..., num_lags, D), what came before the start, in the order of time; zeros by default.

    Returns:
        (..., T, num_lags * D).

    Example:
        >>> import torch
        >>> lagged(torch.tensor([[1.0], [2.0], [3.0]]), 2)
        tensor([[0., 0.],
                [1., 0.],
                [2., 1.]])
    """
    backend = backend_of(observations=observations, history=history)
    xp, num_lags = backend.xp, need_count("num_lags", num_lags, 0)
    need_shape("observations", observations.shape, (None, None), "(..., T, D)")
    *batch, num_steps, dim = observations.shape
    if history is None:
        history = backend.full((*batch, num_lags, dim), 0.0, like=observations)
    tail = (num_lags, dim)
    need_shape("history", history.shape, tail, f"(..., num_lags, D) with (num_lags, D) = {tail}")
    history = xp.astype(xp.broadcast_to(history, (*batch, *tail)), observations.dtype, copy=False)
    x = xp.concat([history, observations], axis=-2)
    found = [x[..., num_lags - lag : num_lags - lag + num_steps, :] for lag in range(1, num_lags + 1)]
    return xp.concat(found, axis=-1) if found else observations[..., :0]


class RegressionParameters(NamedTuple):
    """Weights (K, D, P), biases (K, D), and covariances in the shape of their type."""

    weights: Array
    biases: Array
    covariances: Array


class RegressionStatistics(NamedTuple):
    """Sums over frames, for each state, of [e, z]: e = y - W z - b under the parameters they were made with.

    Residuals rather than observations, so that little cancels where data lie far from 0.
    """

    counts: Array
    """(K,)"""
    sums: Array
    """(K, D + P)"""
    squares: Array
    """(K, D + P, D + P)"""


@dataclass(frozen=True)
class LinearRegression(GaussianFamily):
    """The family of y_t ~ N(W_k z_t + b_k, C_k), z_t = [y_{t-1}, ..., y_{t-num_lags}, u_t], for learning.

    Its observations are (..., T, D + input_dim): y_t, then the inputs u_t; the lags are taken inside. Sequences begin
    at step 0. A frame whose lags or inputs hold NaN has a density of NaN: where frames are missing, the `num_lags`
    frames after them are to be marked as not observed, too.

    Args:
        covariance_type: as in `gaussian_log_prob`.
        variance_floor: the least variance of the residuals, a number or (D,).
        num_lags: frames that y is regressed on; 0 for none.
        input_dim: how many of the features are inputs.
        history: "zeros" where y before the start is 0; "condition" where the first `num_lags` frames of a sequence
            are given: they score 0 in every state, and enter no statistic.

    References: Hamilton 1990, sections 3 and 4 (EM of autoregressions that switch).
    """

    covariance_type: str = "full"
    num_lags: int = 0
    input_dim: int = 0
    history: str = "zeros"

    def __post_init__(self) -> None:
        need_count("num_lags", self.num_lags, 0)
        need_count("input_dim", self.input_dim, 0)
        if self.history not in HISTORIES:
            raise ValueError(f"history: expected one of {', '.join(map(repr, HISTORIES))}, got {self.history!r}")

    def regressors(self, observations: Array, parameters: RegressionParameters) -> tuple[Array, Array]:
        """y (..., T, D) and z (..., T, P) of observations (..., T, D + input_dim)."""
        weights = parameters.weights
        backend = backend_of(observations=observations, weights=weights)
        dim = parameters.biases.shape[-1]
        wanted = self.num_lags * dim + self.input_dim
        need_shape("weights", weights.shape, (dim, wanted), f"(K, D, num_lags * D + input_dim) = (K, {dim}, {wanted})")
        width = dim + self.input_dim
        need_shape("observations", observations.shape, (None, width), f"(..., T, D + input_dim) = (..., T, {width})")
        y, inputs = observations[..., :dim], observations[..., dim:]
        return y, backend.xp.concat([lagged(y, self.num_lags), inputs], axis=-1)

    def log_prob(self, observations: Array, parameters: RegressionParameters) -> Array:
        """(..., T, K)."""
        y, z = self.regressors(observations, parameters)
        found = linear_regression_log_prob(y, z, *parameters, covariance_type=self.covariance_type)
        return self._scored(found)

    def statistics(
        self, observations: Array, posteriors: Array, parameters: RegressionParameters
    ) -> RegressionStatistics:
        """Weighted moments of residuals and regressors, summed over all frames, in O(B T K (D + P)^2).

        Args:
            posteriors: (..., T, K), probabilities times weights; 0 where nothing was observed.
        """
        backend = backend_of(observations=observations, posteriors=posteriors)
        y, z = self.regressors(observations, parameters)
        return _moments(backend, y, z, self._scored(posteriors), parameters)

    def m_step(
        self,
        statistics: RegressionStatistics,
        parameters: RegressionParameters,
        fixed: RegressionParameters | None = None,
    ) -> RegressionParameters:
        """The parameters of highest expected log-density; a state without frames keeps its own.

        Weights of regressors that do not vary on their own keep their values.

        Args:
            fixed: booleans, arrays of the parameters' shapes, or one for all; None for False. What is True keeps its
                value, and the rest is the maximum under that: weights and biases given the old covariances, then
                covariances given these. Full and tied covariances are fixed as whole matrices.

        Raises:
            TypeError: what is not boolean. ValueError: shapes, or a matrix that is fixed in part.

        Cost: O(K (D + P)^3); where weights or biases are fixed in part O(K D (P + 1)^3), or O(K (D (P + 1))^3) for
        "full" and "tied", whose features depend on each other then.

        References: Meng and Rubin 1993 (conditional maximisation).
        """
        backend = backend_of(weights=parameters.weights, counts=statistics.counts)
        keeps = _fixed(backend, fixed, parameters, self.covariance_type)
        new = _regress(backend, statistics, parameters, keeps, self.covariance_type)
        left = self.moved(statistics, parameters, new)
        covariances = _scatter(backend, left, parameters, self.covariance_type, self.variance_floor)
        return new._replace(covariances=held(keeps.covariances, parameters.covariances, covariances))

    def moved(
        self, statistics: RegressionStatistics, old: RegressionParameters, new: RegressionParameters
    ) -> RegressionStatistics:
        """Statistics made with the old parameters, as if with the new ones: residuals differ by a line in z."""
        backend = backend_of(weights=old.weights, new=new.weights)
        xp, turn, dim = backend.xp, backend.xp.matrix_transpose, old.biases.shape[-1]
        slope = wide(backend, new.weights) - wide(backend, old.weights)
        shift = (wide(backend, new.biases) - wide(backend, old.biases))[:, :, None]
        n, sums, squares = statistics
        sums = sums[:, :, None]
        e, z, ee, ez, zz = (
            sums[:, :dim, :],
            sums[:, dim:, :],
            squares[:, :dim, :dim],
            squares[:, :dim, dim:],
            squares[:, dim:, dim:],
        )
        # g = slope z + shift is what residuals lose
        g, gz = slope @ z + shift * n[:, None, None], slope @ zz + shift @ turn(z)
        ge = slope @ turn(ez) + shift @ turn(e)
        ee = ee - ge - turn(ge) + gz @ turn(slope) + g @ turn(shift)
        ez = ez - gz
        rows = [xp.concat([ee, ez], axis=-1), xp.concat([turn(ez), zz], axis=-1)]
        return RegressionStatistics(n, xp.concat([e - g, z], axis=1)[:, :, 0], xp.concat(rows, axis=1))

    def log_prior(self, parameters: RegressionParameters) -> Any:
        """0: there is no prior."""
        return 0.0

    def _scored(self, x: Array) -> Array:
        """(..., T, K) with 0 for the frames that are given."""
        if self.history == "zeros":
            return x
        backend = backend_of(x=x)
        return backend.xp.where(backend.arange(x.shape[-2], like=x)[:, None] < self.num_lags, 0.0, x)


def _moments(
    backend: Backend, y: Array, z: Array, posteriors: Array, parameters: RegressionParameters
) -> RegressionStatistics:
    """Moments of [e, z] under posteriors (..., T, K), state by state, in blocks of frames."""
    xp, turn = backend.xp, backend.xp.matrix_transpose
    weights, biases = wide(backend, parameters.weights), wide(backend, parameters.biases)
    num_states, dim, num_regressors = weights.shape
    frames = xp.reshape(xp.concat([y, z], axis=-1), (-1, dim + num_regressors))
    posteriors = xp.reshape(posteriors, (-1, num_states))
    length = max(1, WORKSPACE // (dim + num_regressors + num_states))
    counts: Any = 0.0
    sums: list[Any] = [0.0] * num_states
    squares: list[Any] = [0.0] * num_states
    for start in range(0, max(1, frames.shape[0]), length):
        part = slice(start, start + length)
        x, share = wide(backend, frames[part, ...]), wide(backend, posteriors[part, ...])
        counts = counts + xp.sum(share, axis=0)
        for k in range(num_states):
            own, lines = share[:, k : k + 1], x[:, dim:]
            e = x[:, :dim] - lines @ turn(weights[k, ...]) - biases[k, ...]
            v = xp.where(own > 0, xp.concat([e, lines], axis=-1), 0.0)  # what has no weight may be NaN
            sums[k] = sums[k] + xp.sum(own * v, axis=0)
            squares[k] = squares[k] + turn(own * v) @ v
    return RegressionStatistics(counts, xp.stack(sums), xp.stack(squares))


def _regress(
    backend: Backend,
    statistics: RegressionStatistics,
    parameters: RegressionParameters,
    keeps: RegressionParameters,
    covariance_type: str,
) -> RegressionParameters:
    """The weights and biases of least squares, some of them kept."""
    xp, turn = backend.xp, backend.xp.matrix_transpose
    weights, biases, covariances = parameters
    _, dim, num_regressors = weights.shape
    has_any = is_seen(xp, statistics.counts)[:, None]
    n = xp.where(has_any, statistics.counts[:, None], 1.0)
    means, squares = statistics.sums / n, statistics.squares / n[:, :, None]
    e, z, ez, zz = means[:, :dim], means[:, dim:], squares[:, :dim, dim:], squares[:, dim:, dim:]
    size = xp.sqrt(xp.linalg.diagonal(zz))
    # a regressor that is as good as 0 in all frames of a state would have a weight made of rounding errors
    least = 1e-2 * float(xp.finfo(size.dtype).eps) ** 0.5 * xp.max(size, axis=0)
    size = xp.where(size > least, size, 0.0)
    keep, is_joint = keeps.weights, not isinstance(keeps.biases, bool)
    if is_joint:  # biases are the weights of a regressor that is 1
        one, last = xp.ones_like(e[:, :1]), z[:, :, None]
        zz = xp.concat([xp.concat([zz, last], axis=2), xp.concat([turn(last), one[:, :, None]], axis=2)], axis=1)
        ez, size = xp.concat([ez, e[:, :, None]], axis=2), xp.concat([size, one], axis=1)
        keep = backend.full((), keep, like=weights, dtype=xp.bool) if isinstance(keep, bool) else keep
        keep = xp.broadcast_to(keep, weights.shape)
        keep = xp.concat([keep, keeps.biases[:, :, None]], axis=2)
    elif keeps.biases is False:  # biases follow from the weights
        ez, zz = ez - e[:, :, None] * z[:, None, :], zz - z[:, :, None] * z[:, None, :]
    if keep is True or zz.shape[-1] == 0:
        change = xp.zeros_like(ez)
    elif keep is False:
        change = turn(solve_semidefinite(backend, zz, turn(ez), size))
    else:
        free = xp.astype(~keep, zz.dtype)
        change = _solved_in_part(backend, zz, ez, size, free, covariances, covariance_type)

    def moved(keep: Any, old: Array, change: Array) -> Array:
        found = xp.astype(wide(backend, old) + change, old.dtype)
        return held(keep, old, xp.where(xp.reshape(has_any, (-1, *[1] * (old.ndim - 1))), found, old))

    new = moved(keeps.weights, weights, change[:, :, :num_regressors])
    if is_joint:
        shift = change[:, :, -1]
    else:  # of the weights as they were rounded
        shift = e - ((wide(backend, new) - wide(backend, weights)) @ z[:, :, None])[:, :, 0]
    return RegressionParameters(new, moved(keeps.biases, biases, shift), covariances)


def _solved_in_part(
    backend: Backend, zz: Array, ez: Array, size: Array, free: Array, covariances: Array, covariance_type: str
) -> Array:
    """Changes (K, D, P) of the weights that are free (1, else 0), which minimise the squares given the covariances."""
    xp, turn = backend.xp, backend.xp.matrix_transpose
    if covariance_type not in ("full", "tied"):  # no feature depends on another
        return solve_semidefinite(backend, zz[:, None, :, :], ez[..., None], size[:, None, :], free)[..., 0]
    num_states, dim, num_regressors = ez.shape
    precision = xp.linalg.inv(wide(backend, xp.reshape(covariances, (-1, dim, dim))))
    precision = 0.5 * (precision + turn(precision))
    both, single = (num_states, dim * num_regressors, dim * num_regressors), (num_states, dim * num_regressors)
    hessian = xp.reshape(precision[:, :, None, :, None] * zz[:, None, :, None, :], both)
    size = xp.sqrt(xp.linalg.diagonal(precision))[:, :, None] * size[:, None, :]
    right = xp.reshape(precision @ ez, (*single, 1))
    found = solve_semidefinite(backend, hessian, right, xp.reshape(size, single), xp.reshape(free, single))
    return xp.reshape(found, ez.shape)


def _scatter(
    backend: Backend,
    statistics: RegressionStatistics,
    parameters: RegressionParameters,
    covariance_type: str,
    floor: Any,
) -> Array:
    """Covariances of residuals, which have no mean of their own."""
    xp, (_, biases, covariances) = backend.xp, parameters
    dim = biases.shape[-1]
    squares = statistics.squares[:, :dim, :dim]
    if covariance_type not in ("full", "tied"):
        squares = xp.linalg.diagonal(squares)
    if covariance_type.startswith("tied"):
        squares = xp.sum(squares, axis=0)
    elif covariance_type == "spherical":
        squares = xp.sum(squares, axis=-1)
    moments = GaussianStatistics(statistics.counts, xp.zeros_like(statistics.sums[:, :dim]), squares)
    return maximize_gaussians(moments, xp.zeros_like(biases), covariances, covariance_type, floor=floor)[1]


def _fixed(
    backend: Backend, fixed: RegressionParameters | None, parameters: RegressionParameters, covariance_type: str
) -> RegressionParameters:
    """What is fixed of each parameter: False, True, or an array of both."""
    if fixed is None:
        return RegressionParameters(False, False, False)
    found = []
    for name, mask, x in zip(parameters._fields, fixed, parameters, strict=True):
        if mask is None or isinstance(mask, bool):
            found.append(bool(mask))
            continue
        xp, mask = backend.xp, backend.asarray(mask, like=x)
        if not xp.isdtype(mask.dtype, "bool"):
            raise TypeError(f"fixed.{name}: expected booleans, got {mask.dtype}")
        if tuple(mask.shape) not in ((), tuple(x.shape)):
            raise ValueError(f"fixed.{name}: expected shape {tuple(x.shape)}, got {tuple(mask.shape)}")
        mask = xp.broadcast_to(mask, x.shape)
        if name == "covariances" and covariance_type in ("full", "tied"):
            need_whole(backend, f"fixed.{name}", mask)
        if not backend.is_traced(mask):
            mask = True if bool(xp.all(mask)) else mask if bool(xp.any(mask)) else False
        found.append(mask)
    return RegressionParameters(*found)
