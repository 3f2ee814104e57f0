"""The scikit-learn facade: hmmlearn's scripts with another import."""

from __future__ import annotations

import hmmlearn.hmm as theirs
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pytorch_hmm.sklearn as ours

LENGTHS = [60, 1, 39]


def chain(rng, k=3):
    return {"startprob_": rng.dirichlet(np.ones(k)), "transmat_": rng.dirichlet(np.ones(k), size=k)}


def cases():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2)) + rng.integers(3, size=(100, 1)) * 3
    means = rng.normal(size=(3, 2)) * 3
    gaussian = {**chain(rng), "means_": means, "covars_": rng.uniform(0.5, 2, size=(3, 2))}
    mixture = {
        **chain(rng),
        "means_": rng.normal(size=(3, 2, 2)) * 3,
        "covars_": rng.uniform(0.5, 2, size=(3, 2, 2)),
        "weights_": rng.dirichlet(np.ones(2), size=3),
    }
    symbols = {**chain(rng), "emissionprob_": rng.dirichlet(np.ones(4), size=3)}
    counts = {**chain(rng), "lambdas_": rng.uniform(1, 9, size=(3, 2))}
    return {
        "GaussianHMM": ({"covariance_type": "diag"}, gaussian, x),
        "GMMHMM": ({"n_mix": 2}, mixture, x),
        "CategoricalHMM": ({}, symbols, rng.integers(4, size=(100, 1))),
        "PoissonHMM": ({}, counts, rng.poisson(4.0, size=(100, 2))),
    }


def both(name, **options):
    own, attributes, x = cases()[name]
    found = [getattr(module, name)(3, **own, **options) for module in (ours, theirs)]
    for model in found:
        for attribute, value in attributes.items():
            setattr(model, attribute, value.copy())
    if name == "CategoricalHMM":
        found[1].n_features = 4
    return (*found, x)


@pytest.mark.parametrize("name", ["GaussianHMM", "GMMHMM", "CategoricalHMM", "PoissonHMM"])
def test_answers_are_those_of_hmmlearn(name):
    mine, peer, x = both(name)
    assert mine.score(x, lengths=LENGTHS) == pytest.approx(peer.score(x, LENGTHS), abs=1e-8)
    assert mine.decode(x, LENGTHS)[0] == pytest.approx(peer.decode(x, LENGTHS)[0], abs=1e-8)
    if name != "CategoricalHMM":  # where paths tie
        np.testing.assert_array_equal(mine.predict(x, LENGTHS), peer.predict(x, LENGTHS))
    np.testing.assert_allclose(mine.predict_proba(x, LENGTHS), peer.predict_proba(x, LENGTHS), atol=1e-10)
    mapped = mine.decode(x, LENGTHS, algorithm="map"), peer.decode(x, LENGTHS, algorithm="map")
    np.testing.assert_allclose(mapped[0][0], mapped[1][0])
    np.testing.assert_array_equal(mapped[0][1], mapped[1][1])
    np.testing.assert_allclose(mine.get_stationary_distribution(), peer.get_stationary_distribution(), atol=1e-10)


@pytest.mark.parametrize("name", ["GaussianHMM", "CategoricalHMM", "PoissonHMM"])
def test_fits_are_those_of_hmmlearn(name):
    """From given parameters, with every default, hmmlearn's small prior of variances included."""
    mine, peer, x = both(name, init_params="", n_iter=7, tol=-np.inf)
    mine.fit(x, lengths=LENGTHS)
    peer.fit(x, LENGTHS)
    assert len(mine.monitor_.history) == mine.monitor_.iter == 7
    for attribute in cases()[name][1]:
        expected = getattr(peer, attribute)
        np.testing.assert_allclose(getattr(mine, attribute), expected, rtol=1e-7, atol=1e-8)


def test_small_scales_are_no_matter():
    """Regimes of daily returns, whose variances lie far below hmmlearn's min_covar, with which it only starts."""
    rng = np.random.default_rng(0)
    z = np.tile(np.repeat([0, 1], 50), 10)
    x = rng.normal(size=(1000, 1)) * np.where(z, 0.02, 0.005)[:, None]
    model = ours.GaussianHMM(2, n_iter=200, random_state=0).fit(x)
    assert model.score(x) == pytest.approx(theirs.GaussianHMM(2, n_iter=200, random_state=0).fit(x).score(x), abs=0.5)
    assert model.n_features == 1


def test_params_say_what_is_learned():
    mine, peer, x = both("GaussianHMM", init_params="", params="mt", n_iter=3, tol=-np.inf)
    start, covars = mine.startprob_.copy(), mine.covars_.copy()
    mine.fit(x, LENGTHS)
    peer.fit(x, LENGTHS)
    np.testing.assert_array_equal(mine.covars_, covars)
    np.testing.assert_allclose(mine.startprob_, start, rtol=1e-12)
    np.testing.assert_allclose(mine.means_, peer.means_, atol=1e-8)
    np.testing.assert_allclose(mine.transmat_, peer.transmat_, atol=1e-8)


def test_it_is_an_estimator():
    x = cases()["GaussianHMM"][2]
    model = ours.GaussianHMM(2, n_iter=50, random_state=3)
    again = clone(model)
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(model.fit(x).means_, again.fit(x).means_)
    pipeline = make_pipeline(StandardScaler(), clone(model)).fit(x)
    assert pipeline.predict(x).shape == (100,)
    search = GridSearchCV(clone(model), {"n_components": [1, 2, 3]}, cv=2).fit(x)
    assert search.best_params_["n_components"] in (2, 3)
    states, sampled = model.sample(20, random_state=0)[::-1]
    assert states.shape == (20,)
    assert sampled.shape == (20, 2)
    assert model.aic(x) < ours.GaussianHMM(1).fit(x).aic(x)
    assert np.isfinite(model.bic(x))


def test_what_cannot_be_is_said():
    x = cases()["GaussianHMM"][2]
    with pytest.raises(NotFittedError, match="startprob_, transmat_, means_, covars_"):
        ours.GaussianHMM(2).score(x)
    with pytest.raises(ValueError, match="sum to the 100 rows of X"):
        ours.GaussianHMM(2).fit(x, [3, 4])
    with pytest.raises(ValueError, match="X: expected integers of shape"):
        ours.CategoricalHMM(2).fit(x)
    with pytest.warns(ConvergenceWarning, match="after 1 iterations"):
        ours.GaussianHMM(3, n_iter=1, random_state=0).fit(x)


def test_weights_of_mixtures_take_their_prior():
    """A Dirichlet prior of 1e6 and 1 leaves one component; of ones, none."""
    x = np.random.default_rng(0).normal(size=(200, 1))
    for prior, is_one in ((np.array([1e6, 1.0]), True), (1.0, False)):
        found = ours.GMMHMM(1, 2, weights_prior=prior, random_state=0, tol=0).fit(x)
        assert (found.weights_[0, 0] > 0.999) == is_one
