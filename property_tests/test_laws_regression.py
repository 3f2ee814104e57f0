"""Regressions: no step lowers what it climbs whatever is fixed, statistics add up and move, all libraries agree."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from hmm_functional import learning
from hmm_functional.emissions import LinearRegression, RegressionParameters
from property_tests.strategies import seeds
from property_tests.test_laws_learning import COVARIANCES, Problem, alike, logs, objective


@st.composite
def regressions(draw, *, sizes=None):
    """Small data on any scale, at times too few for their regressors, or constant; and any start."""
    drawn = [draw(st.integers(low, high)) for low, high in ((1, 3), (1, 3), (1, 3), (2, 12), (0, 2), (0, 2))]
    num_states, dim, batch, num_steps, num_lags, input_dim = drawn if sizes is None else sizes
    kind, history = draw(st.sampled_from(COVARIANCES)), draw(st.sampled_from(["zeros", "condition"]))
    rng = np.random.default_rng(draw(seeds))
    x = rng.normal(size=(batch, num_steps, dim + input_dim)) * 10.0 ** rng.integers(-2, 3) + rng.normal() * 100
    if draw(st.booleans()):
        x = np.round(x)
    if draw(st.booleans()):
        x[..., -1] = x[0, 0, -1]
    scale = x.std() ** 2 + 1.0
    shapes = {"diag": (num_states, dim), "spherical": (num_states,), "tied_diag": (dim,)}
    if kind in shapes:
        covariances = scale * rng.uniform(0.5, 2.0, size=shapes[kind])
    else:
        root = rng.normal(size=(num_states, dim, dim))
        covariances = scale * (root @ root.swapaxes(1, 2) + 0.5 * np.eye(dim))
        covariances = covariances[0] if kind == "tied" else covariances
    weights = 0.5 * rng.normal(size=(num_states, dim, num_lags * dim + input_dim))
    own = RegressionParameters(weights, x.mean() + rng.normal(size=(num_states, dim)), covariances)
    family = LinearRegression(kind, 1e-6 * scale, num_lags, input_dim, history)
    chain = logs(rng, (num_states,)), logs(rng, (num_states, num_states))
    lengths, times = rng.integers(1, num_steps + 1, size=batch), rng.integers(1, 4, size=batch).astype(float)
    return Problem(learning.HMMParameters(*chain, own), family, x, lengths, times, learning.Priors())


@st.composite
def masks(draw, problem):
    """What is fixed: nothing, all, or any entries; of matrices the whole."""
    rng, found = np.random.default_rng(draw(seeds)), []
    for name, x in problem.parameters.emission._asdict().items():
        mask = rng.random(x.shape) < 0.4
        if name == "covariances" and problem.family.covariance_type in ("full", "tied"):
            mask = np.broadcast_to(mask[..., :1, :1], x.shape)
        found.append(draw(st.sampled_from([None, False, True, mask, mask])))
    return RegressionParameters(*found)


@given(st.data(), regressions())
def test_em_never_lowers_the_likelihood(data, problem):
    fixed = data.draw(st.none() | masks(problem))
    family, parameters = (
        problem.family,
        problem.parameters._replace(emission=problem.family.bounded(problem.parameters.emission)),
    )
    values = [objective(problem, parameters)]
    for _ in range(4):
        found = learning.expected_statistics(
            parameters, family, problem.observations, lengths=problem.lengths, weights=problem.weights
        )
        old, new = parameters, learning.maximize(found, parameters, family)
        parameters = new._replace(emission=family.m_step(found.emission, old.emission, fixed))
        values.append(objective(problem, parameters))
        for mask, one, other in zip(fixed or (), parameters.emission, old.emission, strict=False):
            kept = np.broadcast_to(bool(mask) if mask is None else mask, one.shape)
            np.testing.assert_array_equal(one[kept], other[kept])
    assert np.isfinite(values).all()
    gains, scale = np.diff(values), 1.0 + np.abs(values[1:])
    assert (gains > -1e-9 * scale).all(), values


@given(regressions(), st.sampled_from(["em", "viterbi"]))
def test_statistics_of_batches_add_up(problem, method):
    parameters, family, x, lengths, weights, _ = problem
    whole = learning.expected_statistics(parameters, family, x, lengths=lengths, weights=weights, method=method)
    every = (slice(i, i + 1) for i in range(len(x)))
    options = [{"lengths": lengths[i], "weights": weights[i], "method": method, "observations": x[i]} for i in every]
    parts = [learning.expected_statistics(parameters, family, **each) for each in options]
    alike(whole, learning.add(*parts), 1e-9)
    given_away = 0 if family.history == "zeros" else family.num_lags
    scored = (weights * np.maximum(lengths - given_away, 0)).sum()
    np.testing.assert_allclose(whole.emission.counts.sum(), scored, rtol=1e-9)


@given(regressions(), seeds)
def test_statistics_may_change_their_parameters(problem, seed):
    family, x, old, rng = problem.family, problem.observations, problem.parameters.emission, np.random.default_rng(seed)
    new = RegressionParameters(*(part + rng.normal(size=part.shape) for part in old))
    weights = rng.uniform(size=(*x.shape[:2], len(old.biases)))
    moved = family.moved(family.statistics(x, weights, old), old, new)
    scale = 10.0 * max(1.0, float(np.abs(x).max()))
    for one, other, power in zip(moved, family.statistics(x, weights, new), (0, 1, 2), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12 * scale**power)


@given(regressions())
def test_without_regressors_it_is_a_gaussian(problem):
    family, (weights, biases, covariances) = problem.family, problem.parameters.emission
    y, kind = problem.observations[..., : biases.shape[1]], family.covariance_type
    found = LinearRegression(kind).log_prob(y, RegressionParameters(weights[..., :0], biases, covariances))
    expected = hf.gaussian_log_prob(y, biases, covariances, covariance_type=kind)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("library", [torch.from_numpy, jnp.asarray])
@given(st.data(), regressions(sizes=(2, 2, 2, 12, 1, 1)))  # JAX compiles for every shape; few frames fix no weights
def test_libraries_agree(library, data, problem):
    family, own, x = problem.family, problem.parameters.emission, problem.observations
    fixed = data.draw(st.none() | masks(problem))
    posteriors = np.random.default_rng(0).uniform(size=(*x.shape[:2], 2))
    there = partial(learning.each, lambda a: library(np.array(a)) if isinstance(a, np.ndarray) else a)
    alike(family.log_prob(x, own), family.log_prob(there(x), there(own)), 1e-9)
    expected = family.statistics(x, posteriors, own)
    statistics = family.statistics(there(x), there(posteriors), there(own))
    alike(expected, statistics, 1e-9)
    alike(family.m_step(expected, own, fixed), family.m_step(statistics, there(own), there(fixed)), 1e-6)
