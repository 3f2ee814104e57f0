"""The modules' known answers: peers' values, hand-computed ones, shapes and the founding guide's promises."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hmmlearn import hmm as hmmlearn

import hmm_functional as hf
import pytorch_hmm
from pytorch_hmm import (
    BaseHMM,
    CategoricalHMM,
    GaussianHMM,
    HMMLayer,
    HMMPyTorch,
    MixtureGaussianHMM,
)

COVARIANCES = ("diag", "spherical", "full", "tied", "tied_diag")
LENGTHS = [9, 4, 1]


def models(num_states=3):
    """One module of every kind, and observations (3, 9, ...) for it."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(3, 9, 2, generator=rng)
    return {
        "scores": (HMMPyTorch(num_states), torch.randn(3, 9, num_states, generator=rng)),
        "gaussian": (GaussianHMM(num_states, 2), features),
        "mixture": (MixtureGaussianHMM(num_states, 2, 2, "full"), features),
        "categorical": (CategoricalHMM(num_states, 4), torch.randint(4, (3, 9), generator=rng)),
    }


kinds = pytest.mark.parametrize("kind", ["scores", "gaussian", "mixture", "categorical"])


def random_chain(rng, num_states):
    return rng.dirichlet(np.ones(num_states)), rng.dirichlet(np.ones(num_states), size=num_states)


def positive_definite(rng, shape, dim):
    roots = rng.standard_normal((*shape, dim, dim))
    return roots @ roots.swapaxes(-1, -2) + 0.5 * np.eye(dim)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "full", "tied"])
def test_gaussian_equals_hmmlearn(covariance_type):
    rng = np.random.default_rng(1)
    num_states, dim = 3, 2
    peer = hmmlearn.GaussianHMM(num_states, covariance_type=covariance_type)
    peer.startprob_, peer.transmat_ = random_chain(rng, num_states)
    peer.means_ = rng.standard_normal((num_states, dim))
    peer.n_features = dim
    peer.covars_ = {
        "diag": rng.uniform(0.5, 2, (num_states, dim)),
        "spherical": rng.uniform(0.5, 2, num_states),
        "full": positive_definite(rng, (num_states,), dim),
        "tied": positive_definite(rng, (), dim),
    }[covariance_type]
    # hmmlearn returns spherical and diagonal ones as matrices: its raw values are in _covars_
    model = GaussianHMM(num_states, dim, covariance_type, initial=peer.startprob_, transition=peer.transmat_).double()
    model.means, model.covariances = peer.means_, peer._covars_
    model.log_initial, model.log_transition = np.log(peer.startprob_), np.log(peer.transmat_)
    x, lengths = 2 * rng.standard_normal((3, 9, dim)), LENGTHS
    flat = np.concatenate([row[:n] for row, n in zip(x, lengths, strict=True)])
    x = torch.from_numpy(x)

    log_likelihood = model(x, lengths)
    assert log_likelihood.sum().item() == pytest.approx(peer.score(flat, lengths), abs=1e-10)
    posteriors, _ = model.forward_backward(x, lengths)
    ours = torch.cat([row[:n] for row, n in zip(posteriors, lengths, strict=True)])
    np.testing.assert_allclose(ours.detach(), peer.predict_proba(flat, lengths), atol=1e-10)
    states, scores = model.viterbi_decode(x, lengths)
    score, path = peer.decode(flat, lengths)
    assert scores.sum().item() == pytest.approx(score, abs=1e-10)
    np.testing.assert_array_equal(torch.cat([row[:n] for row, n in zip(states, lengths, strict=True)]), path)
    assert model.aic(x, lengths).item() == pytest.approx(peer.aic(flat, lengths), abs=1e-9)
    assert model.bic(x, lengths).item() == pytest.approx(peer.bic(flat, lengths), abs=1e-9)


@pytest.mark.parametrize("covariance_type", ["diag", "full"])
def test_mixture_equals_hmmlearn(covariance_type):
    rng = np.random.default_rng(2)
    shape, dim = (3, 2), 2
    peer = hmmlearn.GMMHMM(*shape, covariance_type=covariance_type)
    peer.startprob_, peer.transmat_ = random_chain(rng, shape[0])
    peer.weights_ = rng.dirichlet(np.ones(shape[1]), size=shape[0])
    peer.means_ = rng.standard_normal((*shape, dim))
    peer.n_features = dim
    peer.covars_ = rng.uniform(0.5, 2, (*shape, dim))
    if covariance_type == "full":
        peer.covars_ = positive_definite(rng, shape, dim)
    model = MixtureGaussianHMM(*shape[:1], dim, shape[1], covariance_type).double()
    model.log_initial, model.log_transition = np.log(peer.startprob_), np.log(peer.transmat_)
    model.log_weights, model.means, model.covariances = np.log(peer.weights_), peer.means_, peer.covars_
    x = rng.standard_normal((12, dim))
    assert model(torch.from_numpy(x)).item() == pytest.approx(peer.score(x), abs=1e-10)


def test_categorical_equals_hmmlearn():
    rng = np.random.default_rng(3)
    peer = hmmlearn.CategoricalHMM(3)
    peer.startprob_, peer.transmat_ = random_chain(rng, 3)
    peer.emissionprob_ = rng.dirichlet(np.ones(4), size=3)
    peer.n_features = 4
    model = CategoricalHMM(3, 4, initial=peer.startprob_, transition=peer.transmat_, probs=peer.emissionprob_).double()
    model.log_initial, model.log_transition = np.log(peer.startprob_), np.log(peer.transmat_)
    model.log_probs = np.log(peer.emissionprob_)
    x = rng.integers(0, 4, 12)
    assert model(torch.from_numpy(x)).item() == pytest.approx(peer.score(x[:, None]), abs=1e-10)
    assert model.aic(torch.from_numpy(x)).item() == pytest.approx(peer.aic(x[:, None]), abs=1e-9)


def test_umbrella():
    """Russell and Norvig's umbrella world, whose smoothed first day is 0.883."""
    hmm = HMMPyTorch(2, transition=[[0.7, 0.3], [0.3, 0.7]])
    scores = torch.tensor([[0.9, 0.2], [0.9, 0.2]]).log()
    posteriors, log_likelihood = hmm.forward_backward(scores)
    assert posteriors[0, 0].item() == pytest.approx(0.8834, abs=5e-5)
    assert hmm.filter(scores)[0, 0].item() == pytest.approx(0.8182, abs=5e-5)
    assert log_likelihood.exp().item() == pytest.approx(0.3515, abs=5e-5)


@kinds
def test_shapes(kind):
    model, x = models()[kind]
    assert model(x).shape == model.log_prob(x).shape == (3,)
    assert model.emission_log_prob(x).shape == (3, 9, 3)
    posteriors, log_likelihood = model.forward_backward(x, LENGTHS)
    assert (posteriors.shape, log_likelihood.shape) == ((3, 9, 3), (3,))
    states, scores = model.viterbi_decode(x, torch.tensor(LENGTHS))
    assert (states.shape, states.dtype, scores.shape) == ((3, 9), torch.int64, (3,))
    assert scores[0].ndim == 0
    assert model.filter(x, np.array(LENGTHS)).shape == (3, 9, 3)
    assert (states[1, 4:] == -1).all()
    assert (posteriors[1, 4:] == 0).all()
    assert model.aic(x, LENGTHS).shape == model.bic(x, LENGTHS).shape == ()


@kinds
def test_one_sequence_has_no_batch_axis(kind):
    model, x = models()[kind]
    one = x[0]
    assert model(one).shape == ()
    assert model(one, 5).item() == pytest.approx(model(one[:5]).item(), abs=1e-5)
    torch.testing.assert_close(model.forward_backward(one)[0], model.forward_backward(x)[0][0])
    assert model.viterbi_decode(one)[0].shape == (9,)
    torch.testing.assert_close(model(torch.stack([x, x])), torch.stack([model(x)] * 2))


@kinds
def test_sampling(kind):
    model, x = models()[kind]
    drawn = [model.sample(7, batch_size=4, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    states, observations = drawn[0] if kind != "scores" else (drawn[0], None)
    assert (states.shape, states.dtype) == ((4, 7), torch.int64)
    torch.testing.assert_close(drawn[0], drawn[1])
    alone = model.sample(7)
    assert (alone if kind == "scores" else alone[0]).shape == (7,)
    if observations is not None:
        assert observations.shape == (4, 7, *x.shape[2:])
        assert observations.dtype == x.dtype
        assert model(observations).isfinite().all()
        assert not observations.requires_grad


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_samples_have_the_models_moments(covariance_type):
    rng = np.random.default_rng(4)
    model = MixtureGaussianHMM(2, 2, 2, covariance_type, means=5 * rng.standard_normal((2, 2, 2)))
    shape = tuple(model.covariances.shape)
    matrices = covariance_type in ("full", "tied")
    model.covariances = positive_definite(rng, shape[:-2], 2) if matrices else rng.uniform(0.5, 2, shape)
    model.log_weights = torch.tensor([[0.3, 0.7], [1.0, 0.0]]).log()
    states, x = model.sample(5000, 10, torch.Generator().manual_seed(0))
    chosen = x[states == 1]  # one Gaussian: its other weight is zero
    torch.testing.assert_close(chosen.mean(0), model.means[1, 0].detach(), rtol=0, atol=0.05)
    covariances = model.covariances.detach()
    wanted = {
        "diag": lambda: covariances[1, 0].diag(),
        "spherical": lambda: covariances[1, 0] * torch.eye(2),
        "full": lambda: covariances[1, 0],
        "tied": lambda: covariances,
        "tied_diag": lambda: covariances.diag(),
    }[covariance_type]()
    torch.testing.assert_close(chosen.mT.cov(), wanted, rtol=0.05, atol=0.05)
    both = x[states == 0].mean(0)
    expected = (model.log_weights.exp()[0][:, None] * model.means[0]).sum(0).detach()
    torch.testing.assert_close(both, expected, rtol=0, atol=0.2)


def test_parameters_are_counted():
    chain = 2 + 6
    assert HMMPyTorch(3).num_free_parameters() == chain
    assert HMMPyTorch(3, learnable=False).num_free_parameters() == 0
    assert HMMPyTorch(3, topology="left_to_right").num_free_parameters() == 2
    assert GaussianHMM(3, 4, "full").num_free_parameters() == chain + 12 + 30
    assert GaussianHMM(3, 4, "tied").num_free_parameters() == chain + 12 + 10
    assert GaussianHMM(3, 4, "spherical").num_free_parameters() == chain + 12 + 3
    assert GaussianHMM(3, 4, "tied_diag").num_free_parameters() == chain + 12 + 4
    assert MixtureGaussianHMM(3, 4, 2).num_free_parameters() == chain + 24 + 24 + 3
    assert CategoricalHMM(3, 5).num_free_parameters() == chain + 12


def test_topologies():
    model = GaussianHMM(3, 1, topology="left_to_right", self_loop=0.75)
    torch.testing.assert_close(model.log_transition, hf.left_to_right(3, self_loop=0.75))
    torch.testing.assert_close(model.log_initial.exp(), torch.tensor([1.0, 0.0, 0.0]))
    model = GaussianHMM(3, 1, topology="ergodic", initial=[0.5, 0.5, 0.0])
    torch.testing.assert_close(model.log_transition, hf.ergodic(3))
    assert model.log_initial[2] == -torch.inf
    torch.testing.assert_close(HMMPyTorch(4).log_transition, torch.full((4, 4), -math.log(4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_assigned_values_are_read_back(covariance_type, dtype):
    rng = np.random.default_rng(5)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    model = MixtureGaussianHMM(3, 4, 2, covariance_type).to(dtype)
    initial, transition = random_chain(rng, 3)
    transition[1] = [0.0, 1.0, 0.0]
    weights = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    shape = tuple(model.covariances.shape)
    matrices = covariance_type in ("full", "tied")
    covariances = positive_definite(rng, shape[:-2], 4) if matrices else rng.uniform(0.01, 100, shape)
    with np.errstate(divide="ignore"):
        given = {
            "log_initial": np.log(initial),
            "log_transition": np.log(transition),
            "log_weights": np.log(weights),
            "means": rng.standard_normal((3, 2, 4)),
            "covariances": covariances,
        }
    before = {id(p) for p in model.parameters()}
    for name, value in given.items():
        setattr(model, name, torch.from_numpy(value))
        read = getattr(model, name)
        assert read.dtype == dtype
        torch.testing.assert_close(read.detach(), torch.from_numpy(value).to(dtype), **tolerance)
        np.testing.assert_array_equal(read.detach().isneginf(), np.isneginf(value))
    assert {id(p) for p in model.parameters()} == before  # optimisers keep their hold
    model.log_transition = torch.full((3, 3), -math.log(3))  # and a zero can be opened again
    assert model.log_transition.isfinite().all()
    model.means = torch.nn.Parameter(torch.zeros(3, 2, 4))
    assert (model.means == 0).all()


def test_nearly_singular_covariances_survive():
    """In float64 a correlation of 1 - 1e-8 is told from 1; float32 refuses it."""
    matrix = torch.tensor([[1.0, 1 - 1e-8], [1 - 1e-8, 1.0]], dtype=torch.float64)
    model = GaussianHMM(1, 2, "tied").double()
    model.covariances = matrix
    torch.testing.assert_close(model.covariances.detach(), matrix, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="positive definite"):
        GaussianHMM(1, 2, "tied", covariances=matrix)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_nan_frames_are_unobserved(kind):
    model, x = models()[kind]
    model.missing = "nan"
    holed = x.clone()
    holed[1, 3] = torch.nan
    holed[2, :] = torch.nan
    scores = model.emission_log_prob(holed)
    assert (scores[1, 3] == 0).all()
    expected = model.emission_log_prob(x).clone()
    expected[1, 3] = 0
    expected[2] = 0
    value = hf.log_likelihood(model.log_initial, model.log_transition, expected)
    torch.testing.assert_close(model(holed), value)
    torch.testing.assert_close(model(holed)[2].item(), 0.0, rtol=0, atol=1e-5)
    model(holed).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_missing_scores_and_symbols():
    x = torch.tensor([[0.0, 1.0], [torch.nan, 2.0]])
    assert (HMMPyTorch(2, missing="nan").emission_log_prob(x)[1] == 0).all()
    model = CategoricalHMM(2, 3, missing="nan")
    holed = torch.tensor([0.0, torch.nan, 2.0])
    scores = model.emission_log_prob(holed)
    torch.testing.assert_close(scores[[0, 2]], model.emission_log_prob(torch.tensor([0, 2])))
    assert (scores[1] == 0).all()
    torch.testing.assert_close(model(torch.tensor([0, 1, 2])), model(torch.tensor([0.0, 1.0, 2.0])))


@kinds
def test_padding_may_hold_anything(kind):
    model, x = models()[kind]
    clean = model(x, LENGTHS)
    clean.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    padded = x.clone()
    for b, n in enumerate(LENGTHS):
        padded[b, n:] = -1 if kind == "categorical" else (torch.nan, torch.inf, 3e38)[b]
    torch.testing.assert_close(model(padded, LENGTHS), clean)
    assert model.emission_log_prob(padded, LENGTHS).isfinite().all()
    model(padded, LENGTHS).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients)


def test_impossible_sequence():
    model = CategoricalHMM(2, 2, probs=[[1.0, 0.0], [1.0, 0.0]])
    x = torch.tensor([[0, 1, 0], [0, 0, 0]])
    value = model(x)
    assert value[0] == -torch.inf
    assert value[1].item() == pytest.approx(0, abs=1e-7)  # two float32 logs of 1/2, each rounded
    value.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (model.forward_backward(x)[0][0] == 0).all()
    assert (model.viterbi_decode(x)[0][0] == -1).all()


def test_layer_means_of_states():
    """aligned[t] = sum over k of p(k at t) times the mean of the features under p(k at .)."""
    torch.manual_seed(0)
    layer = HMMLayer(3, feature_dim=4).double()
    features = torch.randn(2, 8, 4, dtype=torch.float64)
    aligned, posteriors = layer(features, [8, 5])
    for b, n in enumerate([8, 5]):
        gamma, x = posteriors[b, :n], features[b, :n]
        occupancy = gamma.sum(0)[:, None]
        means = torch.where(occupancy > 0, gamma.mT @ x / occupancy.clamp_min(1e-300), 0)
        torch.testing.assert_close(aligned[b, :n], gamma @ means)
    assert (aligned[1, 5:] == 0).all()
    torch.testing.assert_close(layer(features[1, :5])[0], aligned[1, :5])
    assert (posteriors[:, 0, 1:] == 0).all()  # left to right starts in the first state


def test_layer_flags():
    assert all(not p.requires_grad for p in HMMLayer(3, learnable_transitions=False, feature_dim=2).hmm.parameters())
    assert all(p.requires_grad for p in HMMLayer(3, feature_dim=2).parameters())
    assert HMMLayer(3, feature_dim=2, topology="ergodic").hmm.log_transition.isfinite().all()


def test_a_subclass_gives_one_method():
    class LaplaceHMM(BaseHMM):
        def __init__(self):
            super().__init__(2, (1,), topology="ergodic")
            self.centres = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

        def _emission_log_prob(self, x):
            return -(x - self.centres).abs()

    model = LaplaceHMM()
    assert model.viterbi_decode(torch.tensor([[-1.0], [2.0]]))[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"x\[1\]"):
        model(torch.tensor([[-1.0], [torch.nan]]))


def test_public_names():
    assert set(pytorch_hmm.__all__) <= set(dir(pytorch_hmm))
    assert isinstance(pytorch_hmm.__version__, str)


def test_import_is_light_and_silent():
    code = (
        "import torch, sys; before = set(sys.modules); import pytorch_hmm; new = set(sys.modules) - before; "
        "print(sorted(new & {'jax', 'matplotlib', 'librosa', 'soundfile', 'tqdm', 'scipy'}))"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""
