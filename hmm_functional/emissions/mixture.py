"""Mixtures of Gaussians."""

from __future__ import annotations

from .._check import need_shape
from ..backend import Array, backend_of
from ..numerics import logsumexp
from .gaussian import Density, can_compile, common, compiled_log_prob, need_covariances, over_frames


def gmm_log_likelihood(
    observations: Array, log_weights: Array, means: Array, covariances: Array, *, covariance_type: str = "diag"
) -> Array:
    """log p(x_t given z_t = k), where each state's density is a mixture of M Gaussians.

    Args:
        observations: (..., T, D).
        log_weights: (K, M), nats; -inf turns a component off. Need not be normalised.
        means: (K, M, D).
        covariances: variances, not standard deviations: "diag" (K, M, D), "spherical" (K, M), "full" (K, M, D, D),
            "tied" (D, D), "tied_diag" (D,). Positive (definite): not checked here, what is not gives NaN.
        covariance_type: which of these.

    Returns:
        (..., T, K), nats; -inf for a state whose components are all off.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, or an unknown covariance_type.

    Cost: as `gaussian_log_prob` for K M Gaussians, in blocks of frames, so that neither a (B, T, K, M) nor a
    (B, T, K, M, D) array is made beyond a workspace of 2^23 elements. Rounding errors are those of `gaussian_log_prob`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> weights, means = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[[-1.0], [1.0]]])
        >>> hf.gmm_log_likelihood(torch.zeros(1, 1), weights, means, torch.ones(1, 2, 1))
        tensor([[-1.4189]])
    """
    backend = backend_of(observations=observations, log_weights=log_weights, means=means, covariances=covariances)
    xp = backend.xp
    if means.ndim != 3:
        raise ValueError(f"means: expected shape (K, M, D), got {tuple(means.shape)}")
    num_states, num_mixtures, dim = means.shape
    observations, (log_weights, means, covariances) = common(
        backend, observations, log_weights=log_weights, means=means, covariances=covariances
    )
    need_shape("log_weights", log_weights.shape, (num_states, num_mixtures), "(K, M) as in means")
    if log_weights.ndim != 2:
        raise ValueError(f"log_weights: expected shape (K, M), got {tuple(log_weights.shape)}")
    need_covariances(covariances.shape, covariance_type, num_states, num_mixtures, dim)

    def exact(observations: Array, log_weights: Array, means: Array, covariances: Array) -> Array:
        if not covariance_type.startswith("tied"):
            covariances = xp.reshape(covariances, (num_states * num_mixtures, *covariances.shape[2:]))
        density = Density(backend, observations, xp.reshape(means, (-1, dim)), covariances, covariance_type)

        def mixed(frames: Array, log_weights: Array, *parameters: Array) -> Array:
            scores = density.log_prob(frames, *parameters)
            return logsumexp(backend, xp.reshape(scores, (-1, num_states, num_mixtures)) + log_weights)

        return over_frames(backend, observations, density.cost, mixed, log_weights, *density.parameters)

    def fast(observations: Array, log_weights: Array, means: Array, covariances: Array) -> Array:
        return compiled_log_prob(backend, observations, log_weights, means, covariances, covariance_type)

    arrays = (observations, log_weights, means, covariances)
    if not can_compile(backend, covariance_type, *arrays):
        return exact(*arrays)
    return backend.shortcut(fast, exact, *arrays)
