"""Numbers of states, matching, and standard errors against their known values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytorch_hmm import CategoricalHMM, GaussianHMM, PoissonHMM, match_states, select_num_states, standard_errors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def truth(num_states=3):
    means = [[6.0 * k] for k in range(num_states)]
    return GaussianHMM(num_states, 1, means=means, topology="ergodic", self_loop=0.8).double()


@pytest.mark.parametrize("criterion", ["cross_validation", "bic"])
def test_the_number_of_states_is_found(criterion):
    _, x = truth().sample(60, batch_size=12, generator=seeded())
    found = select_num_states(
        lambda k: GaussianHMM(k, 1).double(), list(x), range(1, 5), criterion=criterion, generator=seeded()
    )
    assert found.num_states == 3
    assert list(found.scores) == [1, 2, 3, 4]


def test_states_are_matched():
    model = truth()
    _, x = model.sample(60, batch_size=4, generator=seeded())
    other = GaussianHMM(3, 1, means=[[12.1], [0.1], [6.1]], topology="ergodic", self_loop=0.8).double()
    order = match_states(other, model, x)
    assert order.tolist() == [1, 2, 0]
    torch.testing.assert_close(other.means[order], model.means, atol=0.2, rtol=0)


def test_errors_of_a_gaussian_are_the_textbook_s():
    x = 3.0 + 2.0 * torch.randn(500, 2, generator=seeded(), dtype=torch.float64)
    model = GaussianHMM(1, 2).double()
    model.fit(x, num_iterations=3, tolerance=0)
    found = standard_errors(model, x)
    variances = model.covariances.detach()
    torch.testing.assert_close(found["means"], (variances / 500).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["covariances"], variances * (2 / 500) ** 0.5, rtol=1e-6, atol=0)
    assert found["transition"].tolist() == [[0.0]]


def test_errors_of_states_that_are_all_but_seen():
    """Far apart, transitions are counted and rates are means: their errors are those of multinomials and Poissons."""
    truth = PoissonHMM(2, rates=[[5.0], [500.0]], transition=[[0.9, 0.1], [0.3, 0.7]]).double()
    states, x = truth.sample(4000, generator=seeded())
    truth.fit(x, init="keep", num_iterations=200, tolerance=1e-10)
    found = standard_errors(truth, x)
    counts = torch.bincount(states[:-1], minlength=2).double()
    p = truth.log_transition.exp().detach()
    torch.testing.assert_close(found["transition"], (p * (1 - p) / counts[:, None]).sqrt(), rtol=1e-3, atol=0)
    rates = truth.rates.detach()
    torch.testing.assert_close(found["rates"][:, 0], (rates[:, 0] / torch.bincount(states)).sqrt(), rtol=2e-3, atol=0)


def test_errors_cover_the_truth():
    """Estimates of repeated samples scatter as their standard errors say."""
    truth = CategoricalHMM(2, 2, probs=[[0.9, 0.1], [0.2, 0.8]], transition=[[0.9, 0.1], [0.1, 0.9]]).double()
    pulls = []
    for seed in range(25):
        _, x = truth.sample(60, batch_size=30, generator=seeded(seed))
        model = CategoricalHMM(2, 2, probs=[[0.9, 0.1], [0.2, 0.8]], transition=[[0.9, 0.1], [0.1, 0.9]]).double()
        model.fit(x, init="keep", num_iterations=500, tolerance=1e-8)
        error = standard_errors(model, x)["probs"]
        pulls.append(((model.log_probs.exp() - truth.log_probs.exp()) / error)[:, 0].detach())
    spread = torch.stack(pulls).square().mean().sqrt().item()
    assert 0.75 < spread < 1.3


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="candidates: expected at least one"):
        select_num_states(lambda k: GaussianHMM(k, 1), [torch.zeros(3, 1)] * 2, [])
    with pytest.raises(ValueError, match="sequences: expected at least two"):
        select_num_states(lambda k: GaussianHMM(k, 1), [torch.zeros(3, 1)], [1])
    with pytest.raises(ValueError, match="criterion: expected"):
        select_num_states(lambda k: GaussianHMM(k, 1), [torch.zeros(3, 1)] * 2, [1], criterion="magic")
    with pytest.raises(ValueError, match="expected 2 states as the reference has, got 3"):
        match_states(truth(3), truth(2), torch.zeros(3, 1).double())
    with pytest.raises(ValueError, match="expected a maximum of the likelihood"):
        standard_errors(GaussianHMM(1, 1, means=[[50.0]]), torch.from_numpy(np.zeros((5, 1))))


def test_what_is_fixed_has_no_error():
    """The other entries' errors are those of fewer parameters: of a mean beside a known variance, the same."""
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)).double()
    model = GaussianHMM(1, 1, means=[[0.0]]).double().fix("covariances")
    model.fit(x, init="keep", num_iterations=5, tolerance=0)
    errors = standard_errors(model, x)
    assert errors["covariances"].item() == 0.0
    assert errors["means"].item() == pytest.approx(400**-0.5)
