"""Learning against hmmlearn and against plain EM written out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import hmmlearn.hmm as hmmlearn
import jax
import numpy as np
import pytest
import scipy.stats
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import hmm_functional as hf
import pytorch_hmm
from hmm_functional import emissions, learning
from hmm_functional.emissions import GaussianPrior
from hmm_functional.learning import Priors
from pytorch_hmm import CategoricalHMM, GaussianHMM, MixtureGaussianHMM, NotConverged, PoissonHMM, StudentTHMM

ROOT = Path(__file__).parents[1]
K = 3
LENGTHS = [140, 30, 100]


def chain(rng):
    return rng.dirichlet(np.ones(K)), rng.dirichlet(np.ones(K), size=K)


def clusters(rng, dim=2):
    parts = [rng.normal(size=(n, dim)) * s + m for n, s, m in ((90, 0.5, -3), (100, 1.0, 0), (80, 2.0, 4))]
    return np.concatenate(parts)[rng.permutation(270)]


def pieces(x):
    ends = np.cumsum(LENGTHS)
    return [torch.from_numpy(x[end - n : end]) for n, end in zip(LENGTHS, ends, strict=True)]


def steps(model, x, iterations):
    """Plain EM steps from the parameters at hand."""
    options = {"init": "keep", "num_iterations": iterations, "tolerance": 0, "variance_floor": 0.0}
    return model.double().fit(pieces(x), **options)


def assert_same_chain(model, peer):
    close = {"rtol": 0, "atol": 1e-8}
    np.testing.assert_allclose(model.log_initial.exp().detach(), peer.startprob_, **close)
    np.testing.assert_allclose(model.log_transition.exp().detach(), peer.transmat_, **close)


@pytest.mark.parametrize("iterations", [1, 5, 20])
@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "full", "tied"])
def test_gaussian_em_is_that_of_hmmlearn(covariance_type, iterations):
    rng = np.random.default_rng(1)
    initial, transition = chain(rng)
    x, means = clusters(rng), rng.normal(size=(K, 2)) * 3
    covariances = {"diag": np.ones((K, 2)), "spherical": np.ones(K), "full": np.stack([np.eye(2)] * K)}
    covariances = covariances.get(covariance_type, np.eye(2))
    peer = hmmlearn.GaussianHMM(
        K, covariance_type, n_iter=iterations, tol=-np.inf, init_params="", min_covar=0, covars_prior=0, covars_weight=1
    )
    if covariance_type in ("full", "tied"):
        peer.covars_weight = 0  # added to the counts as it is; for the others less one
    peer.startprob_, peer.transmat_, peer.means_, peer.covars_ = initial, transition, means, covariances
    peer.fit(x, LENGTHS)
    model = GaussianHMM(K, 2, covariance_type).double()
    model.log_initial, model.log_transition = np.log(initial), np.log(transition)
    model.means, model.covariances = means, covariances
    report = steps(model, x, iterations)
    assert_same_chain(model, peer)
    np.testing.assert_allclose(model.means.detach(), peer.means_, rtol=0, atol=1e-8)
    expected = peer._covars_[:, 0] if covariance_type == "spherical" else peer._covars_
    np.testing.assert_allclose(model.covariances.detach(), expected, rtol=1e-8, atol=1e-8)
    assert report.history[-1] == pytest.approx(peer.score(x, LENGTHS), abs=1e-6)
    assert len(report.history) == iterations + 1


@pytest.mark.parametrize("iterations", [1, 5, 20])
def test_categorical_em_is_that_of_hmmlearn(iterations):
    rng = np.random.default_rng(2)
    (initial, transition), probs = chain(rng), rng.dirichlet(np.ones(5), size=K)
    x = rng.integers(5, size=270)
    peer = hmmlearn.CategoricalHMM(K, n_iter=iterations, tol=-np.inf, init_params="")
    peer.startprob_, peer.transmat_, peer.emissionprob_ = initial, transition, probs
    peer.fit(x[:, None], LENGTHS)
    model = CategoricalHMM(K, 5).double()
    model.log_initial, model.log_transition, model.log_probs = np.log(initial), np.log(transition), np.log(probs)
    steps(model, x, iterations)
    assert_same_chain(model, peer)
    np.testing.assert_allclose(model.log_probs.exp().detach(), peer.emissionprob_, rtol=0, atol=1e-8)


@pytest.mark.parametrize("iterations", [1, 5, 20])
def test_poisson_em_is_that_of_hmmlearn(iterations):
    rng = np.random.default_rng(3)
    (initial, transition), rates = chain(rng), np.array([[1.0, 9.0], [4.0, 4.0], [9.0, 2.0]])
    x = rng.poisson(rates[rng.integers(K, size=270)])
    peer = hmmlearn.PoissonHMM(K, n_iter=iterations, tol=-np.inf, init_params="")
    peer.startprob_, peer.transmat_, peer.lambdas_ = initial, transition, rates + 1
    peer.fit(x, LENGTHS)
    model = PoissonHMM(K, 2, rates=rates + 1).double()
    model.log_initial, model.log_transition, model.rates = np.log(initial), np.log(transition), rates + 1
    steps(model, x, iterations)
    assert_same_chain(model, peer)
    np.testing.assert_allclose(model.rates.detach(), peer.lambdas_, rtol=0, atol=1e-8)


def plain_mixture_em(x, log_initial, log_transition, weights, means, covariances):
    """One EM step of a mixture of full Gaussians a state, state by state and frame by frame, in NumPy."""
    num_states, num_mixtures = weights.shape
    first, moves = np.zeros(num_states), np.zeros((num_states, num_states))
    responsibilities = []
    total = 0.0
    for sequence in x:
        joint = np.stack(
            [
                [
                    np.log(weights[k, m]) + multivariate_normal.logpdf(sequence, means[k, m], covariances[k, m])
                    for m in range(num_mixtures)
                ]
                for k in range(num_states)
            ]
        )  # (K, M, T)
        emission = logsumexp(joint, axis=1).T
        ahead, behind = np.zeros_like(emission), np.zeros_like(emission)
        ahead[0] = log_initial + emission[0]
        for t in range(1, len(sequence)):
            ahead[t] = logsumexp(ahead[t - 1][:, None] + log_transition, axis=0) + emission[t]
        for t in range(len(sequence) - 2, -1, -1):
            behind[t] = logsumexp(log_transition + emission[t + 1] + behind[t + 1], axis=1)
        likelihood = logsumexp(ahead[-1])
        total += likelihood
        posterior = np.exp(ahead + behind - likelihood)
        first += posterior[0]
        for t in range(1, len(sequence)):
            moves += np.exp(ahead[t - 1][:, None] + log_transition + emission[t] + behind[t] - likelihood)
        responsibilities.append(np.exp(joint - emission.T[:, None]) * posterior.T[:, None])
    shares, frames = np.concatenate(responsibilities, -1), np.concatenate(x)
    counts = shares.sum(-1)
    means = np.einsum("kmt,td->kmd", shares, frames) / counts[..., None]
    gaps = frames[None, None] - means[:, :, None]
    covariances = np.einsum("kmt,kmtd,kmte->kmde", shares, gaps, gaps) / counts[..., None, None]
    chain = np.log(first / first.sum()), np.log(moves / moves.sum(-1, keepdims=True))
    return total, (*chain, counts / counts.sum(-1, keepdims=True), means, covariances)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical", "tied", "tied_diag"])
def test_mixture_em_is_plain_em(covariance_type):
    rng = np.random.default_rng(4)
    (initial, transition), x = chain(rng), clusters(rng)
    weights, means = rng.dirichlet(np.ones(2), size=K), rng.normal(size=(K, 2, 2)) * 3
    model = MixtureGaussianHMM(K, 2, 2, covariance_type).double()
    model.log_initial, model.log_transition = np.log(initial), np.log(transition)
    model.log_weights, model.means = np.log(weights), means
    report = steps(model, x, 1)
    ones = np.broadcast_to(np.eye(2), (K, 2, 2, 2))
    parameters = (np.log(initial), np.log(transition), weights, means, ones)
    total, expected = plain_mixture_em([p.numpy() for p in pieces(x)], *parameters)
    assert report.history[0] == pytest.approx(total, abs=1e-8)
    found = (model.log_initial, model.log_transition, model.log_weights.exp(), model.means)
    for one, other in zip(found, expected[:4], strict=True):
        np.testing.assert_allclose(one.detach(), other, rtol=0, atol=1e-8)
    full, counts = expected[4], expected[2] * _occupied(x, parameters)[:, None]
    whole = np.einsum("km,kmde->de", counts, full) / counts.sum()
    reduced = {
        "full": full,
        "diag": np.einsum("kmdd->kmd", full),
        "spherical": np.einsum("kmdd->km", full) / 2,
        "tied": whole,
        "tied_diag": np.diag(whole),
    }
    np.testing.assert_allclose(model.covariances.detach(), reduced[covariance_type], rtol=1e-7, atol=1e-8)


def _occupied(x, parameters):
    """Expected frames of each state."""
    model = MixtureGaussianHMM(K, 2, 2).double()
    model.log_initial, model.log_transition = parameters[:2]
    model.log_weights, model.means = np.log(parameters[2]), parameters[3]
    return sum(model.forward_backward(p)[0].sum(0).detach().numpy() for p in pieces(x))


def test_student_t_learns_what_scipy_fits():
    """One state: the maximum-likelihood location, scale and degrees of freedom."""
    rng = np.random.default_rng(5)
    x = 3.0 + 2.0 * rng.standard_t(4.0, size=4000)
    model = StudentTHMM(1, 1).double()
    report = model.fit(torch.from_numpy(x)[:, None], num_iterations=1000, tolerance=1e-9)
    degrees, location, scale = scipy.stats.t.fit(x)
    best = scipy.stats.t.logpdf(x, degrees, location, scale).sum()
    assert report.log_likelihood == pytest.approx(best, abs=1e-3)
    assert model.means.item() == pytest.approx(location, abs=1e-2)
    assert model.covariances.item() ** 0.5 == pytest.approx(scale, rel=1e-2)
    assert model.degrees_of_freedom.item() == pytest.approx(degrees, rel=2e-2)


def test_outliers_move_a_student_t_little():
    _, data = small()
    robust = StudentTHMM(K, 2).double()
    robust.initialize_from_data(torch.cat(data))
    before = robust.means.detach().clone()
    spoiled = [x.clone() for x in data]
    spoiled[0][3] = 1e4
    robust.fit(spoiled, init="keep", num_iterations=50, tolerance=0)
    assert (robust.means - before).abs().max() < 3.0


def test_samples_of_a_student_t_have_its_tails():
    model = StudentTHMM(1, 2, means=[[1.0, -1.0]], degrees_of_freedom=[3.0]).double()
    _, x = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert scipy.stats.kstest(x[:, 0].numpy() - 1.0, scipy.stats.t(3.0).cdf).pvalue > 1e-3


def test_gradients_climb_to_the_mode_under_priors():
    model, data = small()
    priors = Priors(2.0, 3.0, GaussianPrior(mean=torch.zeros(2).double(), mean_weight=50.0, scale=3.0, degrees=5.0))
    options = {"init": "keep", "priors": priors}
    best = model.fit(data, num_iterations=500, tolerance=1e-9, **options)
    kept = model.means.detach().clone()
    report = model.fit(data, method="gradient", num_iterations=60, tolerance=0, learning_rate=1e-3, **options)
    assert report.log_likelihood == pytest.approx(best.log_likelihood, abs=0.05)
    torch.testing.assert_close(model.means, kept, rtol=0, atol=0.03)


# What is learned from


def small(seed=0, **options):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = GaussianHMM(K, 2, **options).double()
    model.initialize_from_data(torch.from_numpy(clusters(rng)))
    return model, pieces(clusters(rng))


def same(one, other, tolerance=1e-10):
    for (name, x), (_, y) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def fitted(data, lengths=None, **options):
    model, _ = small()
    model.fit(data, lengths, init="keep", num_iterations=4, tolerance=0, **options)
    return model


def test_a_list_a_padded_tensor_and_batches_are_the_same_data():
    _, data = small()
    expected = fitted(data)
    padded = torch.nn.utils.rnn.pad_sequence(data, batch_first=True, padding_value=torch.nan)
    ends = torch.tensor(LENGTHS)
    same(expected, fitted(padded, ends))
    loader = torch.utils.data.DataLoader([(x[None], [len(x)]) for x in data], batch_size=None)
    same(expected, fitted(loader))
    same(expected, fitted([x.float().double() * 0 + x for x in data]))


def test_a_sequence_of_weight_two_counts_as_two():
    _, data = small()
    same(fitted(data, sample_weights=[2.0, 1.0, 0.0]), fitted([data[0], data[0], data[1]]))


def test_labels_fix_states():
    model, data = small()
    labels = [torch.full((len(x),), -1) for x in data]
    same(fitted(data), fitted(data, labels=labels))
    labels[1][:] = 2
    model.fit(data[1:2], labels=labels[1:2], init="keep", num_iterations=1, tolerance=0)
    torch.testing.assert_close(model.means[2], data[1].mean(0))
    torch.testing.assert_close(model.covariances[2], data[1].var(0, correction=0))
    assert model.log_initial.exp().tolist() == [0.0, 0.0, 1.0]


def test_unobserved_frames_enter_no_statistic():
    model, data = small(missing="nan")
    holes = [x.clone() for x in data]
    holes[0][40:60] = torch.nan
    report = model.fit(holes, init="keep", num_iterations=3, tolerance=0)
    assert np.all(np.diff(report.history) > 0)
    # one state: the mean is that of what was seen
    one = GaussianHMM(1, 2, missing="nan").double()
    one.fit(holes, num_iterations=1, tolerance=0)
    torch.testing.assert_close(one.means[0], torch.cat([holes[0][:40], holes[0][60:], *holes[1:]]).mean(0))


def test_structural_zeros_and_a_fixed_chain_stay():
    _, data = small()
    model = GaussianHMM(K, 2, topology="left_to_right").double()
    zeros = model.log_transition.exp() == 0
    model.fit(data, num_iterations=5, tolerance=0)
    assert torch.equal(model.log_transition.exp() == 0, zeros)
    fixed = GaussianHMM(K, 2, learnable=False).double()
    before = fixed.log_transition.clone()
    fixed.fit(data, num_iterations=5, tolerance=0)
    assert torch.equal(fixed.log_transition, before)


def test_dead_states_are_reported_and_keep_their_parameters():
    model, data = small()
    means = model.means.detach().clone()
    means[1] = 1e4
    model.means = means
    report = model.fit(data, init="keep", num_iterations=5, tolerance=0)
    assert report.dead_states == [1]
    torch.testing.assert_close(model.means[1], means[1])
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("covariance_type", ["diag", "full", "spherical", "tied", "tied_diag"])
def test_components_that_collapse_stop_at_the_floor(covariance_type):
    """Two points, each seen often, and one state for each: no variance is left."""
    x = torch.tensor([[0.0, 1.0], [3.0, 3.0]]).double()[[0, 0, 1, 1, 0, 1, 1, 1, 0, 0]]
    model = GaussianHMM(2, 2, covariance_type).double()
    report = model.fit(x, num_iterations=20, tolerance=0, generator=torch.Generator().manual_seed(0))
    assert np.isfinite(report.history).all()
    assert np.all(np.diff(report.history) >= -1e-9 * np.abs(report.history[1:]))
    model.fit(x, init="keep", num_iterations=1, tolerance=0, variance_floor=0.5)
    variances = model.covariances
    variances = torch.linalg.eigvalsh(variances) if covariance_type in ("full", "tied") else variances
    torch.testing.assert_close(variances.min(), torch.tensor(0.5).double(), rtol=1e-4, atol=0)


def test_what_the_report_says():
    model, data = small()
    told = []
    report = model.fit(data, init="keep", callbacks=[told.append])
    assert report.converged
    assert report.stopped == "converged"
    assert [p.iteration for p in told] == list(range(len(report.history) - 1))
    assert [p.log_likelihood for p in told] == report.history[:-1]
    assert report.history[-1] - report.history[-2] < 1e-2
    assert report.log_likelihood == pytest.approx(sum(model(x).item() for x in data))
    assert report.seconds > 0
    assert model.fit(data, init="keep", callbacks=[lambda p: p.iteration < 1], tolerance=0).stopped == "callback"
    with pytest.warns(NotConverged, match="after 1 iterations"):
        small()[0].fit(data, init="keep", num_iterations=1)


def test_restarts_keep_the_best():
    _, data = small()
    model = GaussianHMM(K, 2).double()
    generator = torch.Generator().manual_seed(3)
    report = model.fit(data, init="random", num_restarts=4, num_iterations=5, tolerance=0, generator=generator)
    assert len(report.restarts) == 4
    assert len(set(report.restarts)) > 1
    assert report.log_likelihood == max(report.restarts)
    assert sum(model(x).item() for x in data) == pytest.approx(report.log_likelihood)


def test_stepwise_with_one_batch_is_em():
    model, data = small()
    padded = torch.nn.utils.rnn.pad_sequence(data, batch_first=True)
    model.fit(padded, LENGTHS, init="keep", num_iterations=4, tolerance=0, method="stepwise")
    same(fitted(padded, LENGTHS), model)


def test_stepwise_over_batches_comes_near_em():
    model, data = small()
    batches = [(x[None], [len(x)]) for x in data for x in x.split(50)]
    report = model.fit(batches_of(batches), init="keep", num_iterations=30, tolerance=0, method="stepwise")
    expected, _ = small()
    best = expected.fit(batches_of(batches), init="keep", num_iterations=100, tolerance=1e-6)
    assert report.log_likelihood == pytest.approx(best.log_likelihood, rel=0.01)


def batches_of(items):
    return torch.utils.data.DataLoader(items, batch_size=None)


def test_gradient_and_em_agree_at_the_optimum():
    model, data = small()
    em = model.fit(data, init="keep", num_iterations=500, tolerance=1e-9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.fit(data, init="keep", method="gradient", num_iterations=50, tolerance=0, learning_rate=1e-3)
    assert report.log_likelihood == pytest.approx(em.log_likelihood, abs=0.05)
    for name, value in model.state_dict().items():
        if name in ("emission.location.values", "emission.covariance.factor"):
            torch.testing.assert_close(value, before[name], rtol=0.02, atol=0.02)


def test_gradient_training_gains():
    model, data = small()
    report = model.fit(data, init="keep", method="gradient", num_iterations=30, tolerance=0)
    assert report.history[-1] > report.history[0]


def test_viterbi_training_gains_along_the_best_path():
    model, data = small()
    report = model.fit(data, init="keep", method="viterbi", num_iterations=10, tolerance=0)
    assert np.all(np.diff(report.history) >= -1e-9)
    assert report.log_likelihood == pytest.approx(sum(model.viterbi_decode(x)[1].item() for x in data))


def test_priors_draw_parameters_to_themselves():
    _, data = small()
    strong = Priors(emission=GaussianPrior(mean=torch.tensor([7.0, -7.0]).double(), mean_weight=1e9))
    model = fitted(data, priors=strong)
    torch.testing.assert_close(model.means, torch.tensor([[7.0, -7.0]] * K).double(), rtol=1e-5, atol=1e-5)
    sticky = Priors(transition=1.0 + 1e6 * torch.eye(K).double())
    assert fitted(data, priors=sticky).log_transition.exp().diagonal().min() > 0.999


@pytest.mark.parametrize("covariance_type", ["diag", "full", "spherical", "tied", "tied_diag"])
def test_the_mode_under_priors_is_a_mode(covariance_type):
    """MAP-EM never lowers likelihood plus prior, and where it stops the objective has no slope."""
    model, data = small(covariance_type=covariance_type)
    scale = torch.eye(2).double() * 3 if covariance_type in ("full", "tied") else 3.0
    mean = torch.tensor([1.0, 0.5]).double()
    prior = GaussianPrior(mean=mean, mean_weight=2.0, scale=scale, degrees=5.0)
    priors = Priors(2.0, 1.0 + torch.eye(K).double(), prior)
    options = {"init": "keep", "priors": priors, "variance_floor": 0.0}
    report = model.fit(data, num_iterations=2000, tolerance=1e-11, **options)
    assert np.all(np.diff(report.history) >= -1e-9)
    found = [model.means.detach().clone(), model.covariances.detach().clone()]

    def objective(means, covariances):
        model.means, model.covariances = means, covariances
        family = model._family(0.0, prior)
        value = sum(model(x) for x in data) + family.log_prior(model.emission.values())
        return float(value.detach())

    best = objective(*found)
    rng = torch.Generator().manual_seed(0)
    for _ in range(6):
        noise = [1e-3 * torch.randn(x.shape, generator=rng, dtype=x.dtype) for x in found]
        if covariance_type in ("full", "tied"):
            noise[1] = noise[1] + noise[1].mT
        assert objective(*(x + n for x, n in zip(found, noise, strict=True))) < best


@pytest.mark.parametrize("method", ["em", "gradient", "stepwise", "viterbi"])
@pytest.mark.parametrize("name", ["means", "covariances", "log_initial", "log_transition"])
def test_what_is_frozen_stays_bit_for_bit(name, method):
    model, data = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    padded = torch.nn.utils.rnn.pad_sequence(data, batch_first=True)
    model.fit(padded, LENGTHS, init="keep", num_iterations=3, tolerance=0, method=method, frozen=[name])
    held = {
        "means": "emission.location.values",
        "covariances": "emission.covariance.factor",
        "log_initial": "initial_distribution.logits",
    }
    held = held.get(name, "transition_distribution.logits")
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert held not in changed
    assert len(changed) >= 2


def test_training_resumes_from_a_file(tmp_path):
    """EM keeps nothing but the parameters: three steps, a file, three more are six."""
    model, data = small()
    whole, _ = small()
    model.fit(data, init="keep", num_iterations=3, tolerance=0)
    model.save(tmp_path / "model")
    again = GaussianHMM.load(tmp_path / "model")
    again.fit(data, init="keep", num_iterations=3, tolerance=0)
    whole.fit(data, init="keep", num_iterations=6, tolerance=0)
    same(whole, again)


def test_partial_fit_starts_as_em_and_comes_near_it():
    model, data = small()
    value = model.partial_fit(data)
    expected, _ = small()
    history = expected.fit(data, init="keep", num_iterations=1, tolerance=0).history
    assert value == pytest.approx(history[0])
    same(expected, model)
    truth = GaussianHMM(2, 1, means=[[0.0], [4.0]], topology="ergodic", self_loop=0.9).double()
    _, x = truth.sample(100, batch_size=200, generator=seeded(0))
    online = GaussianHMM(2, 1, means=[[1.0], [2.0]]).double()
    for batch in x.split(5):
        online.partial_fit(batch)
    torch.testing.assert_close(online.means, truth.means, rtol=0, atol=0.1)
    torch.testing.assert_close(online.log_transition.exp(), truth.log_transition.exp(), rtol=0, atol=0.03)
    online.means = online.means + 100.0  # by hand, between: the statistics stay about what they were made from
    online.means = online.means - 100.0
    online.partial_fit(x[:5])
    torch.testing.assert_close(online.means, truth.means, rtol=0, atol=0.2)
    with pytest.raises(ValueError, match="power: expected a number above"):
        online.partial_fit(x[:5], power=0.3)


# Where others break


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def rises(history, slack=1e-9):
    return np.all(np.diff(history) >= -slack * np.abs(history[1:]))


@pytest.mark.parametrize("covariance_type", ["diag", "full", "spherical", "tied", "tied_diag"])
def test_features_of_any_scale_and_constant_ones(covariance_type):
    returns = torch.randn(400, generator=seeded(0)) * 0.005 + 0.02 * (torch.arange(400) // 50 % 2)
    volume = 1e6 * (1 + 0.3 * torch.randn(400, generator=seeded(1)))
    for other in (volume, torch.full((400,), 7.0)):
        x = torch.stack([returns, other], 1).double()
        report = GaussianHMM(2, 2, covariance_type).double().fit(x, generator=seeded(0))
        assert rises(report.history)


def test_a_floor_above_the_start_is_no_loss():
    x = torch.randn(400, 1, generator=seeded(0))
    model = GaussianHMM(2, 1).double()
    assert rises(model.fit(x, variance_floor=10.0, generator=seeded(0)).history)
    torch.testing.assert_close(model.covariances, torch.full((2, 1), 10.0).double())


@pytest.mark.parametrize("x", [torch.full((20, 2), 3.0), torch.randn(1, 2, generator=seeded(0))])
def test_constant_data_and_single_frames(x):
    assert np.isfinite(GaussianHMM(2, 2).fit(x).history).all()


def test_what_is_frozen_is_not_started_anew():
    x = torch.randn(100, 1, generator=seeded(0))
    model = GaussianHMM(2, 1, means=[[0.0], [10.0]], transition=[[0.99, 0.01], [0.01, 0.99]])
    before = model.log_transition.clone()
    model.fit(x, frozen=["means", "log_transition"], num_iterations=5, tolerance=0)
    assert model.means.flatten().tolist() == [0.0, 10.0]
    assert torch.equal(model.log_transition, before)


@pytest.mark.parametrize("seed", range(4))
def test_some_labels_name_the_states_of_the_start(seed):
    truth = torch.arange(200) // 25 % 2
    x = truth[:, None] * 3.0 + torch.randn(200, 1, generator=seeded(seed))
    labels = torch.where(torch.arange(200) % 20 == 7, truth, -1)
    model = GaussianHMM(2, 1)
    model.fit(x, labels=labels, generator=seeded(seed))
    assert (model.viterbi_decode(x)[0] == truth).double().mean() > 0.95


@pytest.mark.parametrize("seed", [0, 2])
def test_symbols_leave_the_plateau(seed):
    probs = [[0.3, 0.3, 0.25, 0.05, 0.05, 0.05], [0.05, 0.05, 0.05, 0.25, 0.3, 0.3]]
    truth = CategoricalHMM(2, 6, probs=probs, transition=[[0.95, 0.05], [0.05, 0.95]])
    _, x = truth.sample(1000, generator=seeded(seed))
    assert CategoricalHMM(2, 6).fit(x, generator=seeded(seed)).log_likelihood > truth(x).item()


def test_gradients_keep_the_best_and_do_not_take_a_fall_for_the_end():
    x = torch.randn(600, 1, generator=seeded(0))
    model = GaussianHMM(2, 1)
    report = model.fit(x, method="gradient", generator=seeded(0), learning_rate=0.5, num_iterations=40, tolerance=0)
    assert not rises(report.history)
    assert report.log_likelihood == pytest.approx(max(report.history), rel=1e-6)
    assert report.log_likelihood == pytest.approx(model(x).item(), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_nearly_singular_covariances_in_float32(seed):
    x = torch.randn(60, 2, generator=seeded(seed))
    GaussianHMM(6, 3, "full").fit(torch.cat([x, x.sum(1, keepdim=True)], 1), generator=seeded(seed))
    GaussianHMM(5, 10, "full").fit(torch.randn(200, 10, generator=seeded(seed)), generator=seeded(seed))
    MixtureGaussianHMM(2, 10, 3, "tied").fit(torch.randn(9, 10, generator=seeded(seed)), generator=seeded(seed))


def test_the_report_is_about_the_model_that_is_left():
    x = torch.randn(300, 1, generator=seeded(0)) + 1e6
    model = GaussianHMM(2, 1)
    report = model.fit(x, generator=seeded(0))
    assert report.log_likelihood == pytest.approx(model.double()(x.double()).item(), rel=1e-7)


def test_small_integers_are_data():
    x = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    assert CategoricalHMM(2, 4)(x).isfinite()
    assert PoissonHMM(2)(x[:, None]).isfinite()
    assert pytorch_hmm.BernoulliHMM(2)(x[:, None] > 1).isfinite()


def test_functions_do_not_collapse_either():
    half = np.log(np.full((2, 2), 0.5))
    start = emissions.GaussianParameters(np.array([[0.0], [1.0]]), np.ones((2, 1)))
    parameters = learning.HMMParameters(half[0], half, start)
    for _ in range(4):
        parameters, value = learning.em_step(parameters, emissions.Gaussian(), np.array([[0.3]]))
    assert np.isfinite(value)


def test_a_family_of_one_s_own_never_sees_what_is_not_read():
    class Mean(NamedTuple):
        means: np.ndarray

    class Sums(NamedTuple):
        counts: np.ndarray
        sums: np.ndarray

    class Unit:
        def log_prob(self, x, parameters):
            return -0.5 * (x[..., None] - parameters.means) ** 2

        def statistics(self, x, posteriors, parameters):
            assert np.isfinite(x).all()
            return Sums(posteriors.sum((0, 1)), (posteriors * x[..., None]).sum((0, 1)))

        def m_step(self, statistics, parameters):
            return Mean(statistics.sums / statistics.counts)

        def log_prior(self, parameters):
            return 0.0

    half = np.log(np.full((2, 2), 0.5))
    x = np.array([[0.0, 1.0, 5.0, np.nan], [np.nan, 1.0, np.inf, np.inf]])
    is_observed = np.array([[True] * 4, [False, True, True, True]])
    parameters = learning.HMMParameters(half[0], half, Mean(np.array([0.0, 4.0])))
    found, value = learning.em_step(parameters, Unit(), x, lengths=[3, 2], is_observed=is_observed)
    assert np.isfinite(value)
    assert np.isfinite(found.emission.means).all()


@pytest.mark.parametrize("floor", [0.0, 1e-3, np.array([0.0, 0.1])])
@pytest.mark.parametrize("covariance_type", ["diag", "full", "tied"])
def test_a_step_under_jit_is_the_step_without(covariance_type, floor):
    jnp = jax.numpy
    g = np.random.default_rng(0)
    shape = {"diag": np.ones((2, 2)), "full": np.stack([np.eye(2)] * 2), "tied": np.eye(2)}[covariance_type]
    own = emissions.GaussianParameters(jnp.asarray(g.normal(size=(2, 2))), jnp.asarray(shape))
    half = jnp.log(jnp.full((2, 2), 0.5))
    parameters, x = learning.HMMParameters(half[0], half, own), jnp.asarray(g.normal(size=(30, 2)))
    family = emissions.Gaussian(covariance_type, jnp.asarray(floor) if isinstance(floor, np.ndarray) else floor)

    def step(parameters, x):
        return learning.em_step(parameters, family, x)[0].emission.covariances

    found = jax.jit(step)(parameters, x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, step(parameters, x), rtol=1e-5 if found.dtype == "float32" else 1e-12)


DISTRIBUTED = """
import sys, torch
from tests.test_learning import small
rank, path, method = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://" + path + "/meet", rank=rank, world_size=2)
model, data = small()
if rank == 1:  # what the first process has is taken
    model.means = model.means + 1.0
report = model.fit([data[:1], data[1:]][rank], init="keep", num_iterations=5, tolerance=0, method=method)
torch.save((model.state_dict(), report.history), f"{path}/{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("method", ["em", "gradient"])
def test_two_processes_learn_what_one_learns(tmp_path, method):
    running = [
        subprocess.Popen([sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path), method], cwd=ROOT)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    model, data = small()
    history = model.fit(data, init="keep", num_iterations=5, tolerance=0, method=method).history
    for rank in range(2):
        state, found = torch.load(tmp_path / f"{rank}.pt")
        np.testing.assert_allclose(found, history, rtol=1e-12)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10)


PARALLEL = """
import sys, torch
from tests.test_learning import descend, small
rank, path, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://" + path + "/meet", rank=rank, world_size=2)
model, data = small(covariance_type=kind)
wrapped = torch.nn.parallel.DistributedDataParallel(model)
descend(model, lambda: -sum(wrapped(x).sum() for x in [data[:1], data[1:]][rank][:1]))
torch.save(model.state_dict(), f"{path}/{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def descend(model, loss):
    """A few steps of a loop of the user's own, some entries fixed."""
    model.fix("means", [[True, False], *[[False, False]] * (K - 1)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(4):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


@pytest.mark.parametrize("kind", ["diag", "full"])
def test_gradient_training_under_distributed_data_parallel(tmp_path, kind):
    """Two processes with a sequence each take the steps of one with both: gradients are means over processes."""
    running = [
        subprocess.Popen([sys.executable, "-c", PARALLEL, str(rank), str(tmp_path), kind], cwd=ROOT)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    model, data = small(covariance_type=kind)
    before = model.means.detach().clone()
    descend(model, lambda: -0.5 * sum(model(x).sum() for x in data[:2]))
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10, equal_nan=True)
    assert torch.equal(model.means == before, torch.tensor([[True, False], *[[False, False]] * (K - 1)]))


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method: expected one of 'em'"),
        ({"init": "best"}, "init: expected one of 'kmeans'"),
        ({"tolerance": -1.0}, "tolerance: expected a number of at least 0"),
        ({"num_restarts": 0}, "num_restarts: expected an integer of at least 1"),
        ({"num_restarts": 2, "init": "keep"}, "num_restarts: expected 1 with init='keep'"),
        ({"sample_weights": [1.0]}, "sample_weights: expected one a sequence"),
        ({"sample_weights": [1.0, -1.0, 1.0]}, "sample_weights: expected numbers from 0"),
        ({"labels": [torch.zeros(3)]}, "labels: expected one tensor of states for each sequence"),
        ({"frozen": ["mean"]}, "frozen: expected some of 'log_initial'"),
        ({"sample_weights": [0.0, 0.0, 0.0]}, "expected one above 0"),
        ({"priors": Priors(transition=0.5)}, "priors.transition: expected numbers of at least 1"),
        ({"priors": Priors(initial=torch.ones(2))}, r"priors.initial: expected a number or shape \(3,\), got \(2,\)"),
        ({"lengths": [1, 2, 3]}, "lengths: expected None with a list"),
    ],
)
def test_unusable_arguments_are_named(options, message):
    model, data = small()
    with pytest.raises(ValueError, match=message):
        model.fit(data, **options)


def test_unusable_data_are_named():
    model, _ = small()
    with pytest.raises(ValueError, match="at least one sequence"):
        model.fit([])
    with pytest.raises(TypeError, match="data: expected a tensor, a list of tensors or batches, got int"):
        model.fit(3)
    with pytest.raises(TypeError, match="got an iterator"):
        model.fit(iter([torch.zeros(1, 3, 2)]))
    with pytest.raises(ValueError, match=r"data\[1\]: expected shape"):
        model.fit([torch.zeros(4, 2), torch.zeros(4, 3)])
    with pytest.raises(ValueError, match=r"lengths: expected one a sequence, shape \(\), got \(2,\)"):
        model.fit(torch.zeros(9, 2), [4, 5])
    with pytest.raises(TypeError, match=r"priors.initial: expected a number or an array, got list"):
        model.fit(torch.zeros(9, 2), priors=Priors(initial=[1.0] * 3))
    with pytest.raises(ValueError, match="at least one batch"):
        model.fit(batches_of([]), init="keep")


def test_an_impossible_sequence_is_an_error_that_changes_nothing():
    model = CategoricalHMM(2, 3, probs=[[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="impossible under the model"):
        model.fit(torch.tensor([0, 1, 2]), init="keep")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_modules_have_a_fit():
    for model, x in (
        (pytorch_hmm.PoissonHMM(2), torch.tensor([0, 1, 9, 8, 1])[:, None]),
        (pytorch_hmm.BernoulliHMM(2), torch.tensor([0, 0, 1, 1, 1])[:, None]),
        (pytorch_hmm.CategoricalHMM(2, 3), torch.tensor([0, 1, 2, 2, 1])),
        (pytorch_hmm.MixtureGaussianHMM(2, 1, 2), torch.randn(30, 1)),
        (pytorch_hmm.StudentTHMM(2, 1), torch.randn(30, 1)),
    ):
        report = model.fit(x, num_iterations=3, tolerance=0, generator=torch.Generator().manual_seed(0))
        assert np.all(np.diff(report.history) >= -1e-6)


@pytest.mark.parametrize("method", ["em", "viterbi"])
@pytest.mark.parametrize("form", ["banded", "sparse"])
def test_semi_markov_models_learn_structured_transitions(form, method):
    from hmm_functional import durations

    rng = np.random.default_rng(0)
    x, size = rng.normal(size=(3, 20, 1)), 4
    offsets, sources, targets = (1, 2, -1), [0, 0, 1, 2, 3, 1], [1, 2, 2, 3, 0, 0]
    if form == "banded":
        structured = hf.Banded(np.log(rng.uniform(0.1, 0.3, size=(3, size))), offsets)
        dense = np.full((size, size), -np.inf)
        for o, offset in enumerate(offsets):
            for k in range(size):
                if 0 <= k + offset < size:
                    dense[k, k + offset] = structured.log_bands[o, k]
    else:
        structured = hf.Sparse(np.log(rng.uniform(0.1, 0.3, size=6)), sources, targets, size)
        dense = np.full((size, size), -np.inf)
        dense[sources, targets] = structured.log_weights
    own = emissions.GaussianParameters(rng.normal(size=(size, 1)), np.ones((size, 1)))
    law = durations.Poisson(5)
    found = []
    for transition in (dense, structured):
        parameters = learning.HMMParameters(
            np.log(np.full(size, 1 / size)), transition, own, durations.PoissonParameters(np.full(size, 2.0))
        )
        found.append(learning.em_step(parameters, emissions.Gaussian("diag"), x, duration=law, method=method)[0])
    plain, ours = found
    if form == "banded":
        for o, offset in enumerate(offsets):
            for k in range(size):
                if 0 <= k + offset < size:
                    np.testing.assert_allclose(ours.log_transition.log_bands[o, k], plain.log_transition[k, k + offset])
    else:
        np.testing.assert_allclose(ours.log_transition.log_weights, plain.log_transition[sources, targets])
    np.testing.assert_allclose(ours.duration.rates, plain.duration.rates)


def test_semi_markov_models_learn_one_at_a_time():
    from hmm_functional import durations

    half = np.log(np.full((2, 2), 0.5))
    own, law = emissions.GaussianParameters(np.zeros((2, 1)), np.ones((2, 1))), durations.PoissonParameters(np.ones(2))
    model = learning.HMMParameters(half[0], half, own, law)
    assert learning.together([model]) is model
    with pytest.raises(ValueError, match="models: expected plain chains"):
        learning.together([model, model])
