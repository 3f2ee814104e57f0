"""Series of the literature and their published fits.

EM estimates the initial distribution; where the publication has the chain start in its stationary distribution, the
module's parameters climb that likelihood instead.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import hmm_functional as hf
from pytorch_hmm import BernoulliHMM, GaussianHMM, PoissonHMM

EARTHQUAKES = [
    *(13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21, 21, 14, 8, 11, 14, 23, 18, 17, 19),
    *(20, 22, 19, 13, 26, 13, 14, 22, 24, 21, 22, 26, 21, 23, 24, 27, 41, 31, 27, 35, 26, 28, 36, 39, 21, 17),
    *(22, 17, 19, 15, 34, 10, 15, 22, 18, 15, 20, 15, 22, 19, 16, 30, 27, 29, 23, 20, 16, 21, 21, 25, 16, 18),
    *(15, 18, 14, 10, 15, 8, 15, 6, 11, 8, 7, 18, 16, 13, 12, 13, 20, 15, 16, 12, 18, 15, 16, 13, 15, 16, 11, 11),
]
"""Major earthquakes (magnitude 7 or more) a year, 1900 to 2006; Zucchini and MacDonald 2009, table 1.1."""

GEYSER = (
    "1011101101010110101101010101111101010101010101010101010111110101010110101110111110111010101010101010"
    "1010101010110101010101110111111101111101111111010101010101111110101010111010101101011110101010111010"
    "101101101110101010110111111101010111101101110110101110101111101110101011010111111110101010101010110"
)
"""Eruptions of Old Faithful, 1 to 15 August 1985, Azzalini and Bowman 1990: whether they took 3 minutes or more.

From `duration` of `geyser` in R's MASS, which has 2, 3 and 4 for those that were noted at night as short, medium (two)
and long. Medium counts as long: the published log-likelihood is that of these 194 ones, not of 193 or 192.
"""

FED_FUNDS = [
    *(1.03, 0.99, 1.34, 1.5, 1.94, 2.36, 2.48, 2.69, 2.81, 2.93, 2.93, 3.0, 3.23, 3.25, 1.86, 0.94, 1.32, 2.16),
    *(2.57, 3.08, 3.58, 3.99, 3.93, 3.7, 2.94, 2.3, 2.0, 1.73, 1.68, 2.4, 2.46, 2.61, 2.85, 2.92, 2.97, 2.96),
    *(3.33, 3.45, 3.46, 3.49, 3.46, 3.58, 3.97, 4.08, 4.07, 4.17, 4.56, 4.91, 5.41, 5.56, 4.82, 3.99, 3.89, 4.17),
    *(4.79, 5.98, 5.94, 5.92, 6.57, 8.33, 8.98, 8.94, 8.57, 7.88, 6.7, 5.57, 3.86, 4.56, 5.47, 4.75, 3.54, 4.3),
    *(4.74, 5.14, 6.54, 7.82, 10.56, 10.0, 9.32, 11.25, 12.09, 9.35, 6.3, 5.42, 6.16, 5.41, 4.83, 5.2, 5.28, 4.87),
    *(4.66, 5.16, 5.82, 6.51, 6.76, 7.28, 8.1, 9.58, 10.07, 10.18, 10.95, 13.58, 15.05, 12.69, 9.84, 15.85, 16.57),
    *(17.78, 17.58, 13.59, 14.23, 14.51, 11.01, 9.29, 8.65, 8.8, 9.46, 9.43, 9.69, 10.56, 11.39, 9.27, 8.48, 7.92),
    *(7.9, 8.1, 7.83, 6.92, 6.21, 6.27, 6.22, 6.65, 6.84, 6.92, 6.66, 7.16, 7.98, 8.47, 9.44, 9.73, 9.08, 8.61),
    *(8.25, 8.24, 8.16, 7.74, 6.43, 5.86, 5.64, 4.82, 4.02, 3.77, 3.26, 3.04, 3.04, 3.0, 3.06, 2.99, 3.21, 3.94),
    *(4.49, 5.17, 5.81, 6.02, 5.8, 5.72, 5.36, 5.24, 5.31, 5.28, 5.28, 5.52, 5.53, 5.51, 5.52, 5.5, 5.53, 4.86),
    *(4.73, 4.75, 5.09, 5.31, 5.68, 6.27, 6.52, 6.47, 5.59, 4.33, 3.5, 2.13, 1.73, 1.75, 1.74, 1.44, 1.25, 1.25),
    *(1.02, 1.0, 1.0, 1.01, 1.43, 1.95, 2.47, 2.94, 3.46, 3.98, 4.46, 4.91, 5.25, 5.25, 5.26, 5.25, 5.07, 4.5),
    *(3.18, 2.09, 1.94, 0.51, 0.18, 0.18, 0.16, 0.12, 0.13, 0.19, 0.19, 0.19),
]
"""Federal funds rate, percent a year, by quarters from 1954q3 to 2010q4: `usmacro` of the Stata 14 manual, from the
tests of statsmodels."""


def climb_from_stationary(model, x):
    """Maximise the likelihood of a chain that starts in its stationary distribution, which becomes the model's."""
    exact = {"tolerance_grad": 1e-8, "tolerance_change": 1e-13, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=500, **exact)

    def loss():
        optimiser.zero_grad()
        moves = model.log_transition
        value = -hf.log_likelihood(hf.stationary(moves), moves, model.emission_log_prob(x))
        value.backward()
        return value

    optimiser.step(loss)
    model.log_initial = hf.stationary(model.log_transition.detach())


def geyser_maximum(is_stationary):
    """Greatest log-likelihood of two states, and p12, p21, P(long in 1), P(long in 2): scipy over probabilities."""

    def loss(p):
        transition = np.array([[1 - p[0], p[0]], [p[1], 1 - p[1]]])
        message = np.array([p[1], p[0]]) / (p[0] + p[1]) if is_stationary else np.array([1 - p[4], p[4]])
        total = 0.0
        for symbol in GEYSER:
            message = message * (p[2:4] if symbol == "1" else 1 - p[2:4])
            total += np.log(message.sum())
            message = message / message.sum() @ transition
        return -total

    found = minimize(loss, [0.9, 0.7, 0.3, 0.9, 0.5], method="L-BFGS-B", bounds=[(1e-6, 1 - 1e-9)] * 5, tol=1e-12)
    return -found.fun, found.x[:4]


@pytest.mark.parametrize(
    ("num_states", "best", "rates", "transition"),
    [
        (2, -341.8787, [15.421, 26.018], [[0.9284, 0.0716], [0.1190, 0.8810]]),
        (
            3,
            -328.5275,
            [13.134, 19.713, 29.710],
            [[0.9393, 0.0321, 0.0286], [0.0404, 0.9064, 0.0532], [0.0000, 0.1903, 0.8097]],
        ),
    ],
)
def test_the_earthquakes_have_their_published_fit(num_states, best, rates, transition):
    """Zucchini and MacDonald 2009, section 4.4 (EM, initial distribution estimated)."""
    torch.manual_seed(0)
    model = PoissonHMM(num_states).double()
    x = torch.tensor(EARTHQUAKES)[:, None]
    report = model.fit(x, num_restarts=5, num_iterations=2000, tolerance=1e-9)
    assert report.converged
    assert report.log_likelihood == pytest.approx(best, abs=2e-4)
    order = model.rates[:, 0].argsort()
    np.testing.assert_allclose(model.rates[order, 0].detach(), rates, atol=2e-3)
    np.testing.assert_allclose(model.log_transition.exp()[order][:, order].detach(), transition, atol=2e-4)


def test_the_geyser_has_its_published_fit():
    """Zucchini and MacDonald 2009, chapter 10, quoted at second hand: scipy's maximum stands beside it.

    -127.31 is that of a stationary chain; a free initial distribution reaches -126.71.
    """
    torch.manual_seed(0)
    model = BernoulliHMM(2).double()
    x = torch.tensor([[int(symbol)] for symbol in GEYSER])
    report = model.fit(x, num_restarts=5, num_iterations=2000, tolerance=1e-9)
    assert report.converged
    assert report.log_likelihood == pytest.approx(geyser_maximum(is_stationary=False)[0], abs=1e-5)
    climb_from_stationary(model, x)
    best, peer = geyser_maximum(is_stationary=True)
    order = model.probs[:, 0].argsort()
    moves = model.log_transition.exp()[order][:, order]
    found = torch.stack([moves[0, 1], moves[1, 0], *model.probs[order, 0]]).detach()
    assert model.log_prob(x).item() == pytest.approx(best, abs=1e-5)
    np.testing.assert_allclose(found, peer, rtol=0, atol=1e-4)
    assert model.log_prob(x).item() == pytest.approx(-127.31, abs=5e-3)
    np.testing.assert_allclose(found, [1.000, 0.827, 0.225, 1.000], rtol=0, atol=5e-4)


def test_the_federal_funds_rate_has_its_published_fit():
    """Stata 14 time-series manual, mswitch, example 1: two means, one variance; and its smoothed probabilities."""
    x = torch.tensor(FED_FUNDS, dtype=torch.float64)[:, None]
    model = GaussianHMM(2, 1, "tied").double()
    model.initialize_from_data(x, generator=torch.Generator().manual_seed(0))
    climb_from_stationary(model, x)
    order = model.means[:, 0].argsort()
    posteriors, log_likelihood = model.forward_backward(x)
    assert log_likelihood.item() == pytest.approx(-508.63592, abs=5e-6)
    np.testing.assert_allclose(model.means[order, 0].detach(), [3.70877, 9.556793], rtol=0, atol=1e-6)
    assert model.covariances.sqrt().item() == pytest.approx(2.107562, abs=1e-6)
    to_low = model.log_transition.exp()[order, order[0]].detach()
    np.testing.assert_allclose(to_low, [0.9820939, 0.0503587], rtol=0, atol=1e-6)
    low = {58: 0.4413242, 64: 0.4809731, 74: 0.5537605, 82: 0.5556827, 94: 0.3820007, 146: 0.543765}
    np.testing.assert_allclose(posteriors[list(low), order[0]].detach(), list(low.values()), rtol=0, atol=1e-6)
