"""Contenders of the mixture cell: log p(x_t given z_t = k) of diagonal Gaussian mixtures, (B, T, K)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .cells import Mixture
from .torch_contenders import Timed, default_dtype


def ours(problem: Mixture, operation: str, dtype: str) -> Timed:
    """`hf.gmm_log_likelihood`."""
    import hmm_functional as hf

    x, weights, means, variances = _tensors(problem, dtype)
    log_weights = weights.log()
    return lambda: hf.gmm_log_likelihood(x, log_weights, means, variances, covariance_type="diag"), _numpy


def hmmlearn(problem: Mixture, operation: str, dtype: str) -> Timed:
    """`GMMHMM._compute_log_likelihood` over all frames; float64."""
    from hmmlearn.hmm import GMMHMM

    cell = problem.cell
    model = GMMHMM(cell.states, cell.components, covariance_type="diag")
    model.weights_, model.means_, model.covars_ = problem.weights, problem.means, problem.variances
    frames = problem.observations.reshape(-1, cell.features)
    return lambda: model._compute_log_likelihood(frames), lambda out: out.reshape(cell.batch, cell.steps, -1)


def scikit_learn(problem: Mixture, operation: str, dtype: str) -> Timed:
    """`GaussianMixture.score_samples` a state."""
    from sklearn.mixture import GaussianMixture

    cell = problem.cell
    frames = problem.observations.reshape(-1, cell.features).astype(dtype)
    models = []
    for weights, means, variances in zip(problem.weights, problem.means, problem.variances, strict=True):
        model = GaussianMixture(cell.components, covariance_type="diag")
        model.weights_, model.means_, model.covariances_ = (x.astype(dtype) for x in (weights, means, variances))
        model.precisions_cholesky_ = model.covariances_**-0.5
        models.append(model)

    def read(out: Any) -> Any:
        return np.stack(out, -1).astype(np.float64).reshape(cell.batch, cell.steps, -1)

    return lambda: [model.score_samples(frames) for model in models], read


def dynamax(problem: Mixture, operation: str, dtype: str) -> Timed:
    """The emission densities of `DiagonalGaussianMixtureHMM` under jit of vmap."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", dtype == "float64")
    from dynamax.hidden_markov_model.models import gmm_hmm

    cell = problem.cell
    model = gmm_hmm.DiagonalGaussianMixtureHMM(cell.states, cell.components, cell.features)
    arrays = (problem.weights, problem.means, problem.variances**0.5, problem.observations)
    weights, means, scales, frames = (jnp.asarray(x, dtype) for x in arrays)
    parameters = gmm_hmm.ParamsDiagonalGaussianMixtureHMMEmissions(weights, means, scales)
    score = model.emission_component._compute_conditional_logliks
    run = jax.jit(jax.vmap(score, (None, 0)))
    return lambda: run(parameters, frames).block_until_ready(), lambda out: np.asarray(out, np.float64)


def pomegranate(problem: Mixture, operation: str, dtype: str) -> Timed:
    """`GeneralMixtureModel.log_probability` a state."""
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    cell = problem.cell
    x, weights, means, variances = _tensors(problem, dtype)
    frames = x.reshape(-1, cell.features)
    with default_dtype(x.dtype):
        states = [
            [Normal(mean, variance, covariance_type="diag") for mean, variance in zip(m, v, strict=True)]
            for m, v in zip(means, variances, strict=True)
        ]
        models = [GeneralMixtureModel(state, priors=w) for state, w in zip(states, weights, strict=True)]
    call = lambda: torch.stack([model.log_probability(frames) for model in models], -1)  # noqa: E731
    return call, lambda out: _numpy(out).reshape(cell.batch, cell.steps, -1)


def distributions(problem: Mixture, operation: str, dtype: str) -> Timed:
    """`torch.distributions.MixtureSameFamily`, all states at once."""
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    x, weights, means, variances = _tensors(problem, dtype)
    mixture = MixtureSameFamily(
        Categorical(weights), Independent(Normal(means, variances.sqrt()), 1), validate_args=False
    )
    return lambda: mixture.log_prob(x[:, :, None, :]), _numpy


def _tensors(problem: Mixture, dtype: str) -> list[Any]:
    arrays = (problem.observations, problem.weights, problem.means, problem.variances)
    return [torch.as_tensor(x).to(getattr(torch, dtype)) for x in arrays]


def _numpy(out: Any) -> Any:
    return out.detach().double().numpy()
