"""EM never lowers what it climbs, statistics add up, and all array libraries learn the same."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from hmm_functional import emissions, learning
from property_tests.strategies import seeds

KINDS = ("gaussian", "mixture", "student_t", "categorical", "poisson", "bernoulli")
COVARIANCES = ("diag", "spherical", "full", "tied", "tied_diag")
FORMS = ("dense", "banded", "sparse")


class Problem(NamedTuple):
    """A model, its family, and data, in NumPy."""

    parameters: learning.HMMParameters
    family: learning.Family
    observations: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray
    priors: learning.Priors


@st.composite
def problems(draw, *, kind=None, forms=("dense",), sizes=None):
    """Small data, repeated values and outliers among them, and any start."""
    kind = draw(st.sampled_from(KINDS)) if kind is None else kind
    drawn = [draw(st.integers(low, high)) for low, high in ((1, 3), (1, 3), (1, 3), (1, 3), (2, 12))]
    num_states, num_mixtures, dim, batch, num_steps = drawn if sizes is None else sizes
    form = draw(st.sampled_from(COVARIANCES))
    has_prior = draw(st.booleans())
    rng = np.random.default_rng(draw(seeds))
    log_initial, matrix = logs(rng, (num_states,)), logs(rng, (num_states, num_states))
    structure = draw(st.sampled_from(forms))
    if structure == "banded" and num_states > 1:
        bands = np.full((2, num_states), np.log(0.5))
        bands[:, -1] = 0.0, -np.inf  # the last state has nowhere to go
        matrix = hf.Banded(bands, (0, 1))
    elif structure == "sparse":
        has_edge = (rng.random((num_states, num_states)) < 0.7) | np.eye(num_states, dtype=bool)
        share = has_edge / has_edge.sum(1, keepdims=True)
        sources, targets = has_edge.nonzero()
        matrix = hf.Sparse(np.log(share[has_edge]), sources.tolist(), targets.tolist(), num_states)
    shape = (num_states, num_mixtures) if kind == "mixture" else (num_states,)
    if kind in ("gaussian", "mixture", "student_t"):
        x = rng.normal(size=(batch, num_steps, dim)) * 10.0 ** rng.integers(-2, 3) + rng.normal() * 100
        if draw(st.booleans()):
            x = np.round(x)
        means = x.reshape(-1, dim)[rng.integers(batch * num_steps, size=shape)] + rng.normal(size=(*shape, dim))
        sizes = {"diag": (*shape, dim), "spherical": shape, "tied_diag": (dim,)}
        spread = x.std() ** 2 + 1.0
        if form in sizes:
            covariances = spread * rng.uniform(0.5, 2.0, size=sizes[form])
        else:
            covariances = spread * np.broadcast_to(np.eye(dim), (dim, dim) if form == "tied" else (*shape, dim, dim))
        prior = None
        if has_prior:
            scale = np.eye(dim) * spread if form in ("full", "tied") else spread
            prior = emissions.GaussianPrior(np.zeros(dim) + x.mean(), 0.5, scale, dim + 1.0)
        floor = 1e-6 * spread
        if kind == "gaussian":
            family = emissions.Gaussian(form, floor, prior)
            own = emissions.GaussianParameters(means, covariances)
        elif kind == "student_t":
            family = emissions.StudentT(form, floor, draw(st.booleans()))
            own = emissions.StudentTParameters(means, covariances, rng.uniform(0.5, 20.0, size=num_states))
        else:
            family = emissions.GaussianMixture(form, floor, prior, 2.0 if has_prior else 1.0)
            own = emissions.MixtureParameters(logs(rng, shape), means, covariances)
    elif kind == "categorical":
        x = rng.integers(dim + 1, size=(batch, num_steps))
        family = emissions.Categorical(1.5 if has_prior else 1.0)
        own = emissions.CategoricalParameters(logs(rng, (num_states, dim + 1)))
    elif kind == "poisson":
        x = rng.poisson(10.0 ** rng.integers(-1, 3), size=(batch, num_steps, dim))
        family = emissions.Poisson(2.0, 0.5) if has_prior else emissions.Poisson()
        own = emissions.PoissonParameters(rng.uniform(0.1, 5.0, size=(num_states, dim)))
    else:
        x = rng.integers(2, size=(batch, num_steps, dim))
        family = emissions.Bernoulli(1.5, 2.0) if has_prior else emissions.Bernoulli()
        own = emissions.BernoulliParameters(rng.uniform(0.1, 0.9, size=(num_states, dim)))
    priors = learning.Priors(1.5, 2.0) if has_prior else learning.Priors()
    weights = rng.integers(1, 4, size=batch).astype(float)
    lengths = rng.integers(1, num_steps + 1, size=batch)
    return Problem(learning.HMMParameters(log_initial, matrix, own), family, x, lengths, weights, priors)


def logs(rng, shape):
    """Log-probabilities along the last axis."""
    return np.log(rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]))


def objective(problem, parameters):
    found = learning.expected_statistics(
        parameters, problem.family, problem.observations, lengths=problem.lengths, weights=problem.weights
    )
    return float(found.log_likelihood) + float(learning.log_prior(parameters, problem.family, problem.priors))


@given(problems(forms=FORMS))
def test_em_never_lowers_likelihood_and_prior(problem):
    parameters, values = problem.parameters, []
    for _ in range(4):
        values.append(objective(problem, parameters))
        parameters, _ = learning.em_step(
            parameters,
            problem.family,
            problem.observations,
            lengths=problem.lengths,
            weights=problem.weights,
            priors=problem.priors,
        )
        for x in parameters.emission:
            assert not np.isnan(x).any()
    values.append(objective(problem, parameters))
    assert np.isfinite(values).all()
    gains, scale = np.diff(values), 1.0 + np.abs(values[1:])
    assert (gains > -1e-9 * scale).all(), values


@given(problems(), st.sampled_from(["em", "viterbi"]))
def test_statistics_of_batches_add_up(problem, method):
    parameters, family, x, lengths, weights, _ = problem
    whole = learning.expected_statistics(parameters, family, x, lengths=lengths, weights=weights, method=method)
    parts = [
        learning.expected_statistics(
            parameters, family, x[i : i + 1], lengths=lengths[i : i + 1], weights=weights[i : i + 1], method=method
        )
        for i in range(len(x))
    ]
    alike(whole, learning.add(*parts), 1e-9)
    frames = (weights * lengths).sum()
    np.testing.assert_allclose(whole.initial.sum(), weights.sum(), rtol=1e-9)
    np.testing.assert_allclose(whole.transitions.sum(), frames - weights.sum(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.emission.counts.sum(), frames, rtol=1e-9)


@given(problems())
def test_torch_learns_what_numpy_learns(problem):
    libraries_agree(torch.from_numpy, problem)


@given(problems(sizes=(2, 2, 2, 3, 6)))  # JAX compiles for every shape
def test_jax_learns_what_numpy_learns(problem):
    libraries_agree(jnp.asarray, problem)


def libraries_agree(library, problem):
    def there(value):
        if isinstance(value, tuple):
            parts = [there(x) for x in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return library(np.array(value)) if isinstance(value, np.ndarray) else value

    def moved(family):
        prior = getattr(family, "prior", None)
        if prior is None:
            return family
        names = ("mean", "scale")
        changed = {name: there(getattr(prior, name)) for name in names}
        return type(family)(**{**vars(family), "prior": type(prior)(**{**vars(prior), **changed})})

    options = {"lengths": problem.lengths, "priors": problem.priors}
    here, value = learning.em_step(problem.parameters, problem.family, problem.observations, **options)
    found, other = learning.em_step(
        there(problem.parameters), moved(problem.family), there(problem.observations), **options
    )
    np.testing.assert_allclose(float(other), float(value), rtol=1e-10, atol=1e-9)
    alike(here, found, 1e-6)


@given(problems(kind="gaussian"))
def test_moments_may_change_their_centre(problem):
    parameters, family, x, _, _, _ = problem
    old = parameters.emission
    new = old._replace(means=old.means + 0.7)
    weights = np.random.default_rng(0).uniform(size=(*x.shape[:2], len(old.means)))
    moved = family.moved(family.statistics(x, weights, old), old, new)
    scale = max(1.0, float(np.abs(x - x.mean()).max()))
    for one, other, power in zip(moved, family.statistics(x, weights, new), (0, 1, 2), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7 * scale**power)


def alike(one, other, tolerance):
    if isinstance(one, tuple):
        for x, y in zip(one, other, strict=True):
            alike(x, y, tolerance)
        return
    x, y = np.asarray(one), np.asarray(other)
    both = np.isfinite(x) & np.isfinite(y)
    assert (np.isfinite(x) == np.isfinite(y)).all()
    scale = max(1.0, float(np.abs(x[both]).max(initial=0.0)))
    np.testing.assert_allclose(y[both], x[both], rtol=tolerance, atol=tolerance * scale)
