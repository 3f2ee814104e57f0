"""Fixed entries, tied states, products, and restarts side by side: what they promise, with maxima from scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

import hmm_functional as hf
from hmm_functional import emissions, learning
from hmm_functional.learning import HMMParameters, Priors
from pytorch_hmm import (
    BernoulliEmission,
    BernoulliHMM,
    CategoricalEmission,
    CategoricalHMM,
    EmissionHMM,
    GaussianEmission,
    GaussianHMM,
    HMMPyTorch,
    LinearRegressionHMM,
    MixtureGaussianHMM,
    PoissonEmission,
    PoissonHMM,
    ProductEmission,
    StudentTHMM,
)

METHODS = ("em", "viterbi", "stepwise", "gradient", "sgd")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def mixed():
    parts = [GaussianEmission(2, 2), CategoricalEmission(2, 3), PoissonEmission(2), BernoulliEmission(2)]
    return EmissionHMM(2, ProductEmission(parts))


MODELS = {
    "gaussian": lambda: GaussianHMM(2, 2),
    "full": lambda: GaussianHMM(2, 3, "full"),
    "tied": lambda: GaussianHMM(2, 3, "tied"),
    "mixture": lambda: MixtureGaussianHMM(2, 2, 2),
    "student_t": lambda: StudentTHMM(2, 2),
    "categorical": lambda: CategoricalHMM(2, 4),
    "poisson": lambda: PoissonHMM(2, 2),
    "bernoulli": lambda: BernoulliHMM(2, 3),
    "regression": lambda: LinearRegressionHMM(2, 2, num_lags=1),
    "mixed": mixed,
    "shared": lambda: GaussianHMM(3, 2, tied_states=[0, 1, 0]),
}


def made(kind, dtype=torch.float64):
    torch.manual_seed(0)
    model = MODELS[kind]().to(dtype)
    torch.manual_seed(1)
    data = [MODELS[kind]().double().sample(n, generator=rng(n))[1] for n in (30, 20, 41)]
    return model, [x if x.dtype == torch.int64 else x.to(dtype) for x in data]


def train(model, data, method):
    if method == "sgd":  # an optimiser of the user's own, whose decay moves what has no gradient
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
        for _ in range(3):
            optimiser.zero_grad()
            (-sum(model(x) for x in data)).backward()
            optimiser.step()
        return
    x = torch.nn.utils.rnn.pad_sequence(data, batch_first=True)
    model.fit(x, [len(y) for y in data], init="keep", num_iterations=3, tolerance=0, method=method)


def read(model, name):
    *path, last = name.split(".")
    owner = model if not path else model.emission.parts[int(path[0])]
    return getattr(owner, last).detach().clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_fixed_entries_stay_bit_for_bit_and_others_move(kind, method, dtype):
    model, data = made(kind, dtype)
    masks, before = {}, {}
    for name, one in model._parametrized().items():
        if name == "log_initial":
            continue
        mask = torch.zeros(one.shape, dtype=torch.bool)
        is_whole = name.endswith("covariances") and getattr(one, "is_matrix", False)
        if is_whole and mask.ndim == 3:
            mask[0] = True
        elif not is_whole:
            mask[..., 0] = True  # of probabilities as of others: one a row
        model.fix(name, mask)
        masks[name], before[name] = mask, read(model, name)
    train(model, data, method)
    assert any(mask.any() for mask in masks.values())
    for name, mask in masks.items():
        after = read(model, name)
        assert torch.equal(after[mask], before[name][mask]), name
        if name.startswith("log_") or ".log_" in name:
            torch.testing.assert_close(after.exp().sum(-1), torch.ones(after.shape[:-1], dtype=dtype))
            continue
        if (~mask).any():
            assert not torch.equal(after[~mask], before[name][~mask]), name
    assert all(p.isfinite().all() for p in model.parameters())


def expected_log_density(family, x, posteriors, parameters):
    scores = family.log_prob(x, parameters)
    return float((posteriors * np.where(posteriors > 0, scores, 0.0)).sum())


@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "full", "tied", "tied_diag"])
def test_with_fixed_means_the_others_are_the_maximum_scipy_finds(covariance_type):
    """Covariances held, the free means of a Gaussian maximise the expected log-density; so do they with the prior."""
    g = np.random.default_rng(0)
    x, posteriors = g.normal(size=(40, 3)) @ g.normal(size=(3, 3)), g.dirichlet(np.ones(2), size=40)
    shapes = {"diag": (2, 3), "spherical": (2,), "tied_diag": (3,)}
    if covariance_type in shapes:
        covariances = g.uniform(0.5, 2.0, size=shapes[covariance_type])
    else:
        root = g.normal(size=(2, 3, 3) if covariance_type == "full" else (3, 3))
        covariances = root @ np.swapaxes(root, -1, -2) + np.eye(3)
    old = emissions.GaussianParameters(g.normal(size=(2, 3)), covariances)
    is_fixed = np.array([[True, False, False], [False, True, True]])
    prior = emissions.GaussianPrior(np.array([0.3, -0.2, 0.5]), 4.0)
    for family in (emissions.Gaussian(covariance_type, 0.0), emissions.Gaussian(covariance_type, 0.0, prior)):
        statistics = family.statistics(x, posteriors, old)
        fixed = emissions.GaussianParameters(is_fixed, True)
        found = family.m_step(statistics, old, fixed)
        assert (found.covariances == old.covariances).all()
        assert (found.means[is_fixed] == old.means[is_fixed]).all()

        def cost(free, family=family):
            means = old.means.copy()
            means[~is_fixed] = free
            given = emissions.GaussianParameters(means, covariances)
            return -expected_log_density(family, x, posteriors, given) - float(family.log_prior(given))

        best = scipy.optimize.minimize(cost, old.means[~is_fixed], tol=1e-12)
        np.testing.assert_allclose(found.means[~is_fixed], best.x, atol=1e-4)


def test_covariances_are_about_the_means_that_were_kept():
    """Frozen means used to leave the covariances about the means EM would have taken."""
    x = torch.tensor([[4.0], [6.0], [5.0]]).double()
    model = GaussianHMM(1, 1, means=[[3.0]]).double()
    model.fit(x, init="keep", num_iterations=1, tolerance=0, frozen=["means"])
    assert model.covariances.item() == pytest.approx((1 + 9 + 4) / 3)
    other = GaussianHMM(1, 1, means=[[3.0]]).double().fix("means")
    other.fit(x, init="keep", num_iterations=1, tolerance=0)
    assert other.covariances.item() == model.covariances.item()


def test_free_probabilities_share_what_the_fixed_leave_in_proportion_to_counts():
    """By hand: p(0) stays 0.4, the other counts are 6 and 2, which share 0.6 as 3 to 1."""
    model = CategoricalHMM(1, 3, probs=[[0.4, 0.3, 0.3]]).double().fix("log_probs", [True, False, False])
    model.fit(torch.tensor([0, 0] + [1] * 6 + [2] * 2), init="keep", num_iterations=1, tolerance=0)
    torch.testing.assert_close(model.log_probs.exp(), torch.tensor([[0.4, 0.45, 0.15]]).double())
    assert model.num_free_parameters() == 1


@pytest.mark.parametrize("form", ["dense", "banded", "sparse"])
def test_fixed_transitions_of_every_structure(form):
    half = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]]).double().log()
    mask = torch.tensor([[True, False, False], [False, True, True], [False, False, False]])
    counts = torch.tensor([[5.0, 2.0, 6.0], [1.0, 2.0, 3.0], [4.0, 4.0, 2.0]]).double()
    sources, targets = [list(column) for column in zip(*[(i, j) for i in range(3) for j in range(3)], strict=True)]
    if form == "dense":
        transition, given, seen = half, mask, counts
    elif form == "sparse":
        transition, given, seen = hf.Sparse(half.flatten(), sources, targets, 3), mask.flatten(), counts.flatten()
    else:

        def bands(x, fill):
            rows = [[x[i, i + o] if 0 <= i + o < 3 else fill for i in range(3)] for o in (-2, -1, 0, 1, 2)]
            return torch.tensor(rows, dtype=x.dtype)

        transition = hf.Banded(bands(half, -torch.inf), (-2, -1, 0, 1, 2))
        given, seen = bands(mask, False), bands(counts, 0.0)
    family = emissions.Poisson()
    own = emissions.PoissonParameters(torch.ones(3, 1).double())
    parameters = HMMParameters(half[0], transition, own)
    zeros = emissions.poisson.PoissonStatistics(torch.zeros(3).double(), torch.zeros(3, 1).double())
    statistics = learning.Statistics(torch.tensor(0.0), torch.ones(3).double(), seen, zeros)
    found = learning.maximize(statistics, parameters, family, fixed=HMMParameters(None, given, None)).log_transition
    expected = torch.tensor([[0.5, 0.5 * 2 / 8, 0.5 * 6 / 8], [0.2, 0.6, 0.2], [0.4, 0.4, 0.2]]).double().log()
    expected[1, 0] = np.log(1 - 0.6 - 0.2)
    if form == "sparse":
        torch.testing.assert_close(found.log_weights.reshape(3, 3), expected)
    elif form == "banded":
        torch.testing.assert_close(found.log_bands, bands(expected, -torch.inf))
    else:
        torch.testing.assert_close(found, expected)


def test_tied_states_are_one_law_fitted_to_all_their_frames():
    """With every state known the law of two states is that of their frames together."""
    model, data = made("shared")
    x = torch.cat(data)
    labels = torch.randint(3, (len(x),), generator=rng())
    model.fit(x, labels=labels, init="keep", num_iterations=1, tolerance=0)
    for law, members in enumerate(([0, 2], [1])):
        own = x[torch.isin(labels, torch.tensor(members))]
        torch.testing.assert_close(model.means[law], own.mean(0))
        torch.testing.assert_close(model.covariances[law], own.var(0, correction=0))
    scores = model.emission_log_prob(x)
    assert torch.equal(scores[:, 0], scores[:, 2])
    assert model.num_free_parameters() == 2 + 6 + 2 * 2 * 2


def test_tied_states_equal_states_whose_parameters_are_copies():
    model, data = made("shared")
    plain = GaussianHMM(3, 2).double()
    plain.log_initial, plain.log_transition = model.log_initial, model.log_transition
    plain.means, plain.covariances = model.means[[0, 1, 0]], model.covariances[[0, 1, 0]]
    for x in data:
        torch.testing.assert_close(model(x), plain(x))
        torch.testing.assert_close(model.forward_backward(x)[0], plain.forward_backward(x)[0])


@pytest.mark.parametrize("tied", [[0, 1], [0, 2, 0], [1, 1, 2], [0, 1, 1.5, 0], [-1, 0, 1]])
def test_unusable_ties(tied):
    with pytest.raises(ValueError, match="tied_states: expected 3 integers"):
        GaussianHMM(3, 1, tied_states=tied)


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("mean", True, "name: expected one of 'log_initial', .*'means'"),
        ("means", [[True, False, True]], r"means: expected booleans that broadcast to \(K, D\) = \(2, 2\)"),
        ("means", [[0, 1], [0, 0]], "means: expected booleans"),
        ("covariances", [[[True, False], [False, True]]] * 2, "covariances: expected whole matrices"),
    ],
)
def test_what_cannot_be_fixed(name, mask, message):
    with pytest.raises(ValueError, match=message):
        GaussianHMM(2, 2, "full").fix(name, mask)


def test_fixing_can_be_undone_and_saved(tmp_path):
    model, data = made("gaussian")
    model.fix("means", [[True, False], [False, False]])
    assert model.num_free_parameters() == 1 + 2 + 3 + 4
    model.save(tmp_path / "model")
    again = GaussianHMM.load(tmp_path / "model")
    before = again.means.detach().clone()
    again.fit(data, init="keep", num_iterations=1, tolerance=0)
    assert torch.equal(again.means == before, torch.tensor([[True, False], [False, False]]))
    again.fix("means", False)
    again.fit(data, init="keep", num_iterations=1, tolerance=0)
    assert not (again.means == before).any()
    assert again.num_free_parameters() == 1 + 2 + 4 + 4


def test_assigning_sets_fixed_entries_and_a_start_keeps_them():
    model, data = made("gaussian")
    model.fix("means", [[True, True], [False, False]])
    model.means = [[7.0, 8.0], [9.0, 10.0]]
    model.fit(data, num_iterations=2, tolerance=0, generator=rng())
    assert model.means[0].tolist() == [7.0, 8.0]
    assert model.means[1].tolist() != [9.0, 10.0]


def test_em_and_gradient_agree_at_the_optimum_beside_fixed_entries():
    model, data = made("gaussian")
    model.fit(data, num_iterations=5, tolerance=0, generator=rng())
    model.fix("means", [[True, False], [False, False]]).fix("log_transition", [[True, False], [False, False]])
    em = model.fit(data, init="keep", num_iterations=3000, tolerance=1e-10)
    report = model.fit(data, init="keep", method="gradient", num_iterations=30, tolerance=0, learning_rate=1e-3)
    assert em.log_likelihood - 1e-6 <= report.log_likelihood <= em.log_likelihood + 0.01


def test_a_product_scores_and_learns_as_its_parts():
    """Independent parts: scores add up, and an M-step is each part's own."""
    model, data = made("mixed")
    gaussian, symbols, counts, bits = model.emission.parts
    x = data[0]
    total = gaussian.log_prob(x[:, :2]) + symbols.log_prob(x[:, 2].long())
    total = total + counts.log_prob(x[:, 3:4]) + bits.log_prob(x[:, 4:5])
    torch.testing.assert_close(model.emission_log_prob(x), total)
    posteriors = model.forward_backward(x)[0].detach()
    model.fit(x, init="keep", num_iterations=1, tolerance=0)
    share = posteriors / posteriors.sum(0)
    torch.testing.assert_close(gaussian.means.detach(), share.mT @ x[:, :2])
    torch.testing.assert_close(counts.rates.detach(), share.mT @ x[:, 3:4])
    torch.testing.assert_close(bits.probs.detach(), share.mT @ x[:, 4:5])
    one_hot = (x[:, 2:3] == torch.arange(3)).double()
    torch.testing.assert_close(symbols.log_probs.exp().detach(), share.mT @ one_hot)


def test_products_refuse_what_a_part_refuses_and_save(tmp_path):
    model, data = made("mixed")
    x = data[0].clone()
    for column, value, message in ((2, 3.0, r"symbols 0..2"), (3, 0.5, "counts from 0"), (4, 2.0, "zeros and ones")):
        bad = x.clone()
        bad[5, column] = value
        with pytest.raises(ValueError, match=message):
            model(bad)
    with pytest.raises(ValueError, match="parts: expected emissions of equally many laws"):
        ProductEmission([GaussianEmission(2, 1), GaussianEmission(3, 1)])
    model.save(tmp_path / "model")
    again = EmissionHMM.load(tmp_path / "model")
    assert torch.equal(again(x), model(x))
    assert [type(part) for part in again.emission.parts] == [type(part) for part in model.emission.parts]


@pytest.mark.parametrize("method", ["em", "viterbi"])
@pytest.mark.parametrize("kind", sorted(set(MODELS) - {"shared"}))
def test_restarts_in_one_batch_are_restarts_one_after_the_other(kind, method):
    """Callbacks make them go one after the other."""
    ends, states = [], []
    for callbacks in ((), [lambda told: None]):
        model, data = made(kind)
        options = {"init": "random", "num_restarts": 4, "num_iterations": 12, "tolerance": 1.0, "generator": rng(3)}
        found = model.fit(data, method=method, callbacks=callbacks, **options)
        ends.append((found.restarts, found.history, found.dead_states))
        states.append(model.state_dict())
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-9)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-9)
    assert ends[0][2] == ends[1][2]
    torch.testing.assert_close(states[0], states[1], rtol=1e-6, atol=1e-8)
    assert ends[0][1][-1] == max(ends[0][0])


def test_a_new_start_forgets_what_was_learned():
    """Zeros that EM found are not structural: another fit of the same module is the fit of a new one."""
    model, data = made("categorical")
    zeros = torch.zeros(30, dtype=torch.int64)
    model.fit(zeros, generator=rng(), num_iterations=50)
    assert (model.log_probs == -torch.inf).any()
    other = made("categorical")[0]
    again, fresh = (one.fit(data, generator=rng(1), num_iterations=20, tolerance=0) for one in (model, other))
    assert again.history == fresh.history


def test_scores_learn_their_chain():
    """Known states, as scores: initial and transition probabilities are shares of counts."""
    states = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])
    scores = torch.where(states[..., None] == torch.arange(2), 0.0, -torch.inf).double()
    model = HMMPyTorch(2).double()
    report = model.fit(scores, num_iterations=3, tolerance=0)
    torch.testing.assert_close(model.log_initial.exp().detach(), torch.tensor([0.5, 0.5]).double())
    expected = torch.tensor([[4 / 5, 1 / 5], [2 / 5, 3 / 5]]).double()
    torch.testing.assert_close(model.log_transition.exp().detach(), expected)
    assert report.log_likelihood == pytest.approx(model(scores).sum().item())
    with pytest.raises(ValueError, match="scores have no parameters"):
        model.fit(scores, priors=Priors(emission=2.0))


def test_weights_of_mixtures_have_a_prior():
    model, data = made("mixture")
    strong = Priors(emission=(None, torch.tensor([[1e6, 1.0], [1.0, 1e6]]).double()))
    model.fit(data, init="keep", priors=strong, num_iterations=3, tolerance=0)
    assert model.log_weights.exp().flatten().tolist() == pytest.approx([1, 0, 0, 1], abs=1e-3)
