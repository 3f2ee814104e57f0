"""Missing features: EM climbs the likelihood of what was observed, on all array libraries alike."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hmm_functional as hf
from hmm_functional import learning
from property_tests.strategies import seeds
from property_tests.test_laws_learning import FORMS, alike, libraries_agree, objective, problems


@st.composite
def gapped(draw, **options):
    """A problem of Gaussians or mixtures, some features of which are missing."""
    problem = draw(problems(kind=draw(st.sampled_from(["gaussian", "mixture"])), **options))
    rng = np.random.default_rng(draw(seeds))
    x = problem.observations
    gone = rng.random(x.shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    if draw(st.booleans()):
        gone[..., 0] = True  # a feature that nobody saw
    family = replace(problem.family, missing="marginalize")
    return problem._replace(observations=np.where(gone, np.nan, x), family=family)


@given(gapped(forms=FORMS))
def test_em_never_lowers_the_likelihood_of_what_was_observed(problem):
    parameters, values = problem.parameters, []
    options = {"lengths": problem.lengths, "weights": problem.weights, "priors": problem.priors}
    for _ in range(4):
        values.append(objective(problem, parameters))
        parameters, _ = learning.em_step(parameters, problem.family, problem.observations, **options)
        for x in parameters.emission:
            assert not np.isnan(x).any()
    values.append(objective(problem, parameters))
    assert np.isfinite(values).all()
    gains, scale = np.diff(values), 1.0 + np.abs(values[1:])
    assert (gains > -1e-9 * scale).all(), values


@given(gapped())
def test_torch_learns_what_numpy_learns(problem):
    libraries_agree(torch.from_numpy, problem)


@settings(max_examples=min(50, settings.default.max_examples))  # JAX compiles most of them
@given(gapped(sizes=(2, 2, 2, 1, 5)))
def test_jax_learns_what_numpy_learns(problem):
    libraries_agree(jnp.asarray, problem)


@given(gapped(), seeds)
def test_a_frame_without_features_was_not_observed(problem, seed):
    parameters, family, x, lengths, _, priors = problem
    is_observed = np.random.default_rng(seed).random(x.shape[:2]) < 0.5
    blank = np.where(is_observed[..., None], x, np.nan)
    masked = hf.mask_emission(family.log_prob(x, parameters.emission), is_observed)
    np.testing.assert_allclose(family.log_prob(blank, parameters.emission), masked, rtol=1e-9, atol=1e-9)
    found, value = learning.em_step(parameters, family, blank, lengths=lengths, priors=priors)
    expected, other = learning.em_step(parameters, family, x, lengths=lengths, priors=priors, is_observed=is_observed)
    np.testing.assert_allclose(value, other, rtol=1e-9, atol=1e-9)
    alike(expected, found, 1e-7)


@given(gapped())
def test_where_nothing_is_missing_nothing_changes(problem):
    parameters, family, x, _, _, _ = problem
    x, plain = np.nan_to_num(x), replace(family, missing="propagate")
    expected = plain.log_prob(x, parameters.emission)
    np.testing.assert_array_equal(family.log_prob(x, parameters.emission), expected)
    posteriors = np.random.default_rng(0).uniform(size=expected.shape)
    for one, other in zip(
        family.statistics(x, posteriors, parameters.emission),
        plain.statistics(x, posteriors, parameters.emission),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@given(gapped())
def test_gaps_change_only_their_frames(problem):
    parameters, family, x, _, _, _ = problem
    has_gaps = np.isnan(x).any(-1)
    found = family.log_prob(x, parameters.emission)
    plain = replace(family, missing="propagate").log_prob(x, parameters.emission)
    assert np.isfinite(found).all()
    assert (np.isnan(plain).all(-1) == has_gaps).all()
    np.testing.assert_allclose(found[~has_gaps], plain[~has_gaps], rtol=1e-9, atol=1e-9)
