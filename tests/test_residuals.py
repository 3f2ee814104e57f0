"""Pseudo-residuals against enumeration over paths, and against the uniform law they have by construction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from pytorch_hmm import (
    BernoulliEmission,
    BernoulliHMM,
    CategoricalHMM,
    EmissionHMM,
    GaussianEmission,
    GaussianHMM,
    HMMPyTorch,
    LinearRegressionHMM,
    MixtureGaussianHMM,
    PoissonHMM,
    ProductEmission,
    StudentTHMM,
    pseudo_residuals,
)


def by_enumeration(initial, transition, densities, below, others):
    """P(X_t below x_t given the frames `others(t)`), from densities (T, K) and distribution functions (T, K, D)."""
    num_steps, num_states = densities.shape
    found = []
    for t in range(num_steps):
        weights = np.zeros(num_states)
        for path in itertools.product(range(num_states), repeat=num_steps):
            p = initial[path[0]]
            for s in range(1, num_steps):
                p *= transition[path[s - 1], path[s]]
            for s in others(t, num_steps):
                p *= densities[s, path[s]]
            weights[path[t]] += p
        found.append((weights / weights.sum()) @ below[t])
    return np.array(found)


def chain(seed):
    g = np.random.default_rng(seed)
    return g.dirichlet(np.ones(2)), g.dirichlet(np.ones(2), size=2)


CASES = {
    "gaussian": (
        lambda **o: GaussianHMM(2, 1, means=[[0.0], [3.0]], covariances=[[1.0], [4.0]], **o),
        lambda x: scipy.stats.norm([0.0, 3.0], [1.0, 2.0]).cdf(x),
        lambda x: scipy.stats.norm([0.0, 3.0], [1.0, 2.0]).pdf(x),
    ),
    "student_t": (
        lambda **o: StudentTHMM(2, 1, means=[[0.0], [3.0]], degrees_of_freedom=[3.0, 4.0], **o),
        lambda x: scipy.stats.t([3.0, 4.0], [0.0, 3.0]).cdf(x),
        lambda x: scipy.stats.t([3.0, 4.0], [0.0, 3.0]).pdf(x),
    ),
    "mixture": (
        lambda **o: MixtureGaussianHMM(2, 1, 2, weights=[[0.3, 0.7]] * 2, means=[[[0.0], [1.0]], [[3.0], [5.0]]], **o),
        lambda x: 0.3 * scipy.stats.norm([0.0, 3.0]).cdf(x) + 0.7 * scipy.stats.norm([1.0, 5.0]).cdf(x),
        lambda x: 0.3 * scipy.stats.norm([0.0, 3.0]).pdf(x) + 0.7 * scipy.stats.norm([1.0, 5.0]).pdf(x),
    ),
    "poisson": (
        lambda **o: PoissonHMM(2, rates=[[1.0], [4.0]], **o),
        lambda x: scipy.stats.poisson([1.0, 4.0]).cdf(x),
        lambda x: scipy.stats.poisson([1.0, 4.0]).pmf(x),
    ),
    "bernoulli": (
        lambda **o: BernoulliHMM(2, probs=[[0.2], [0.7]], **o),
        lambda x: scipy.stats.bernoulli([0.2, 0.7]).cdf(x),
        lambda x: scipy.stats.bernoulli([0.2, 0.7]).pmf(x),
    ),
}


@pytest.mark.parametrize("kind", ["ordinary", "forecast"])
@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_enumeration(name, kind):
    make, cdf, density = CASES[name]
    initial, transition = chain(0)
    model = make(initial=initial, transition=transition).double()
    x = {"poisson": [0, 7, 1, 3], "bernoulli": [0, 1, 1, 0]}.get(name, [0.5, -2.0, 4.0, 3.3])
    others = (lambda t, n: set(range(n)) - {t}) if kind == "ordinary" else (lambda t, n: range(t))
    observed = np.array(x, float)[:, None]
    densities = density(observed)
    padded = torch.tensor([[[v] for v in x], [[v] for v in [*x[:3], 1]]]).double()
    found = pseudo_residuals(model, padded, [4, 3], kind=kind)
    for row, length in ((0, 4), (1, 3)):
        for part, shift in ((found.lower, 1 if name in ("poisson", "bernoulli") else 0), (found.upper, 0)):
            below = cdf(observed[:length] - shift)[:, :, None]
            expected = by_enumeration(initial, transition, densities[:length], below, others)
            with np.errstate(divide="ignore"):
                expected = scipy.stats.norm.ppf(np.clip(expected, 0.0, 1.0))
            # parameters began in float32
            np.testing.assert_allclose(part[row, :length], expected, rtol=1e-6, atol=1e-6)
    assert found.lower[1, 3].isnan().all()


def test_symbols_count_as_ordered():
    """One state: the distribution function itself."""
    model = CategoricalHMM(1, 3, probs=[[0.2, 0.5, 0.3]]).double()
    found = pseudo_residuals(model, torch.tensor([0, 1, 2]))
    expected = scipy.stats.norm.ppf([[0.0, 0.2, 0.7], [0.2, 0.7, 1.0]])
    np.testing.assert_allclose(torch.stack([found.lower, found.upper]), expected, atol=1e-7)
    np.testing.assert_allclose(found.values, scipy.stats.norm.ppf([0.1, 0.45, 0.85]), atol=1e-7)


def test_far_out_they_stay_finite():
    """One state: a residual is the observation in standard deviations, on both sides."""
    x = torch.tensor([[-38.0], [-9.0], [-1e-3], [0.0], [8.0], [90.0], [-1e4]]).double()
    found = pseudo_residuals(GaussianHMM(1, 1, means=[[0.0]]).double(), x)
    torch.testing.assert_close(found.values, x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["ordinary", "forecast"])
def test_they_are_standard_normal_under_the_model(kind):
    rng = torch.Generator().manual_seed(0)
    parts = [GaussianEmission(2, 2, "full", means=[[0.0, 1.0], [3.0, -1.0]]), BernoulliEmission(2)]
    models = [
        GaussianHMM(3, 1, means=[[-2.0], [0.0], [5.0]], tied_states=None),
        GaussianHMM(3, 1, means=[[-2.0], [4.0]], tied_states=[0, 1, 0]),
        LinearRegressionHMM(2, 1, num_lags=1, weights=[[[0.9]], [[-0.5]]], covariances=[[[1.0]], [[0.1]]]),
        EmissionHMM(2, ProductEmission(parts)),
    ]
    for model in models:
        if kind == "ordinary" and isinstance(model, LinearRegressionHMM):
            with pytest.raises(NotImplementedError, match="take 'forecast'"):
                pseudo_residuals(model, torch.zeros(3, 1), kind=kind)
            continue
        _, x = model.double().sample(4000, generator=rng)
        values = pseudo_residuals(model, x, kind=kind).values[..., 0].flatten().numpy()
        assert scipy.stats.kstest(values, "norm").pvalue > 1e-4


def test_unobserved_frames_have_none_and_unknown_kinds_are_named():
    model = GaussianHMM(2, 1, missing="nan")
    x = torch.tensor([[0.0], [torch.nan], [1.0]])
    assert pseudo_residuals(model, x).values.isnan().flatten().tolist() == [False, True, False]
    with pytest.raises(ValueError, match="kind: expected 'ordinary' or 'forecast', got 'best'"):
        pseudo_residuals(model, x[:1], kind="best")
    with pytest.raises(NotImplementedError, match="ScoreEmission gives no distribution function"):
        pseudo_residuals(HMMPyTorch(2), torch.zeros(3, 2))
