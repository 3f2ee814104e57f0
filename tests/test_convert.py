"""Models of other libraries and ours score the same after conversion, both ways.

dynamax and pomegranate may be absent; stand-ins with their names, scored by enumeration of paths, are read always.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from itertools import pairwise, product
from types import SimpleNamespace

import hmmlearn.hmm
import numpy as np
import pytest
import torch
from scipy import stats

from pytorch_hmm import (
    BernoulliHMM,
    CategoricalHMM,
    GaussianHMM,
    MixtureGaussianHMM,
    PoissonHMM,
    StudentTHMM,
    from_dynamax,
    from_hmmlearn,
    from_pomegranate,
    to_dynamax,
    to_hmmlearn,
    to_pomegranate,
)


def cases():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) * 2
    for form in ("diag", "full", "spherical", "tied"):
        yield f"gaussian {form}", hmmlearn.hmm.GaussianHMM(2, form, n_iter=3, random_state=0).fit(x), x
    for form in ("diag", "full", "spherical"):
        model = hmmlearn.hmm.GMMHMM(2, 2, covariance_type=form, n_iter=2, random_state=0).fit(x)
        yield f"mixture {form}", model, x
    symbols = rng.integers(4, size=(60, 1))
    yield "categorical", hmmlearn.hmm.CategoricalHMM(2, n_iter=3, random_state=0).fit(symbols), symbols
    counts = rng.poisson(3.0, size=(60, 2))
    yield "poisson", hmmlearn.hmm.PoissonHMM(2, n_iter=3, random_state=0).fit(counts), counts


CASES = list(cases())


@pytest.mark.parametrize(("model", "x"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_scores_survive_both_ways(model, x):
    found = from_hmmlearn(model)
    data = torch.from_numpy(x[:, 0] if isinstance(found, CategoricalHMM) else x)
    assert found(data).item() == pytest.approx(model.score(x), abs=1e-8)
    again = to_hmmlearn(found)
    assert type(again) is type(model)
    assert again.score(x) == pytest.approx(model.score(x), abs=1e-8)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_what_has_no_other_form_is_said():
    with pytest.raises(TypeError, match="got BernoulliHMM"):
        to_hmmlearn(BernoulliHMM(2))
    with pytest.raises(ValueError, match="got 'tied_diag'"):
        to_hmmlearn(GaussianHMM(2, 1, "tied_diag"))
    with pytest.raises(ValueError, match="got 'tied'"):
        to_hmmlearn(MixtureGaussianHMM(2, 1, 2, "tied"))
    with pytest.raises(TypeError, match="expected hmmlearn's GaussianHMM"):
        from_hmmlearn(PoissonHMM(2))
    with pytest.raises(ValueError, match="ties in each state"):
        from_hmmlearn(hmmlearn.hmm.GMMHMM(2, 2, covariance_type="tied"))
    negative = to_hmmlearn(PoissonHMM(2))
    negative.startprob_ = np.array([1.5, -0.5])
    with pytest.raises(ValueError, match="initial: expected probabilities"):
        from_hmmlearn(negative)


# --- modules to each peer, scored by the peer, and back


def matrices(rng, *shape):
    factor = rng.normal(size=(*shape, shape[-1]))
    return factor @ factor.swapaxes(-1, -2) + np.eye(shape[-1])


def modules():
    """Models of K = 3 states, D = 2, M = 2, V = 4, a zero among the transitions, and 20 frames of each."""
    rng = np.random.default_rng(1)
    chain = {"initial": rng.dirichlet(np.ones(3)), "transition": rng.dirichlet(np.ones(3), 3)}
    chain["transition"][2] = [0.0, 0.25, 0.75]
    x = rng.normal(size=(20, 2))
    spreads = {"diag": rng.gamma(4.0, size=(3, 2)), "spherical": rng.gamma(4.0, size=3), "full": matrices(rng, 3, 2)}
    for form, covariances in {**spreads, "tied": matrices(rng, 2)}.items():
        options = {"means": rng.normal(size=(3, 2)), "covariances": covariances, **chain}
        yield f"gaussian {form}", GaussianHMM(3, 2, form, **options), x
    spreads = {"diag": rng.gamma(4.0, size=(3, 2, 2)), "spherical": rng.gamma(4.0, size=(3, 2))}
    for form, covariances in {**spreads, "full": matrices(rng, 3, 2, 2)}.items():
        options = {"means": rng.normal(size=(3, 2, 2)), "covariances": covariances, **chain}
        options["weights"] = [[0.5, 0.5], [0.125, 0.875], [1.0, 0.0]]
        yield f"mixture {form}", MixtureGaussianHMM(3, 2, 2, form, **options), x
    symbols = rng.integers(4, size=(20, 1))
    yield "categorical", CategoricalHMM(3, 4, probs=rng.dirichlet(np.ones(4), 3), **chain), symbols
    yield "poisson", PoissonHMM(3, 2, rates=rng.gamma(3.0, size=(3, 2)), **chain), rng.poisson(3.0, (20, 2)) * 1.0
    yield "bernoulli", BernoulliHMM(3, 2, probs=rng.random((3, 2)), **chain), rng.integers(2, size=(20, 2)) * 1.0


MODULES = {name: (model.double(), x) for name, model, x in modules()}


def score(model, x):
    x = torch.as_tensor(x)
    return model(x[:, 0].long() if isinstance(model, CategoricalHMM) else x).item()


def assert_same(found, model):
    assert type(found) is type(model)
    assert found.extra_repr() == model.extra_repr()
    for name in ("log_initial", "log_transition", "means", "covariances", "log_weights", "log_probs", "rates", "probs"):
        if hasattr(model, name):
            wanted = getattr(model, name).detach()
            assert getattr(found, name).dtype == torch.float64
            torch.testing.assert_close(getattr(found, name).detach(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "mixture spherical"])
def test_dynamax_scores_and_gives_back(name):
    peer = pytest.importorskip("dynamax.hidden_markov_model")
    model, x = MODULES[name]
    found, params = to_dynamax(model)
    assert isinstance(found, peer.HMM)
    assert float(found.marginal_log_prob(params, x)) == pytest.approx(score(model, x), abs=1e-8)
    assert_same(from_dynamax(params), model)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "gaussian tied"])
def test_pomegranate_scores_and_gives_back(name):
    peer = pytest.importorskip("pomegranate.hmm")
    model, x = MODULES[name]
    found = to_pomegranate(model)
    assert isinstance(found, peer.DenseHMM)
    assert found.log_probability(torch.as_tensor(x)[None]).item() == pytest.approx(score(model, x), abs=1e-8)
    assert_same(from_pomegranate(found), model)


def test_pomegranate_sparse_edges_and_ends_that_were_not_given():
    peer = pytest.importorskip("pomegranate.hmm")
    from pomegranate.distributions import Normal, Poisson

    rng = np.random.default_rng(2)
    counts = rng.poisson(3.0, (1, 20, 1))
    states = [Poisson([1.0]), Poisson([6.0]), Poisson([3.0])]
    moves = [[0.25, 0.75, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
    edges = [(states[i], states[j], moves[i][j]) for i, j in product(range(3), repeat=2) if moves[i][j]]
    # ends of ones leave p(x) as it is; float32 throughout
    sparse = peer.SparseHMM(states, edges, [0.5, 0.25, 0.25], [1.0, 1.0, 1.0])
    found = from_pomegranate(sparse)
    torch.testing.assert_close(found.log_transition.exp().tolist(), moves, rtol=1e-6, atol=0.0)
    assert score(found, counts[0]) == pytest.approx(sparse.log_probability(counts).item(), rel=1e-5)
    # those not given are 1/K each
    x = rng.normal(size=(1, 20, 2)).astype(np.float32)
    normals = [Normal([0.0, 1.0], [[2.0, 0.5], [0.5, 1.0]]), Normal([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])]
    dense = peer.DenseHMM(normals, [[0.75, 0.25], [0.5, 0.5]])
    assert from_pomegranate(dense).log_initial.exp().tolist() == [0.5, 0.5]
    assert score(from_pomegranate(dense), x[0]) == pytest.approx(dense.log_probability(x).item() + np.log(2), rel=1e-5)


@pytest.mark.parametrize("name", ["gaussian full", "gaussian spherical", "poisson", "bernoulli"])
def test_pomegranate_that_was_fitted_has_ends(name):
    pytest.importorskip("pomegranate")
    model, x = MODULES[name]
    peer = to_pomegranate(model)
    peer.max_iter = 2
    batch = torch.as_tensor(x).reshape(4, 5, 2)
    peer.fit(batch)
    with pytest.raises(ValueError, match="drop_ends=True takes the model without it"):
        from_pomegranate(peer)
    found = from_pomegranate(peer, drop_ends=True)
    with torch.no_grad():  # the peer without its ends
        peer.edges[:] -= peer.edges.logsumexp(1, keepdim=True)
        peer.ends[:] = 0.0
    wanted = peer.log_probability(batch).tolist()
    assert [score(found, one) for one in batch] == pytest.approx(wanted, abs=1e-8)


# --- stand-ins of dynamax and pomegranate, scored by enumeration

INITIAL, MOVES = np.array([0.75, 0.25]), np.array([[0.5, 0.5], [0.125, 0.875]])
MEANS, COVS = np.array([[0.0, 1.0], [2.0, -1.0]]), np.array([[[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.25], [-0.25, 4.0]]])
SCALES, PROBS = np.array([[0.5, 2.0], [1.5, 3.0]]), np.array([[0.125, 0.5], [0.75, 0.25]])
X = np.array([[0.5, 1.0], [1.5, -0.5], [3.0, 0.25], [0.0, 0.0]])
SYMBOLS, BITS, COUNTS = (
    np.array([[0], [2], [1], [2]]),
    np.array([[0, 1], [1, 1], [1, 0], [0, 0]]),
    np.array([[0], [4], [2]]),
)
ROWS = np.array([[0.5, 0.25, 0.25], [0.0, 0.125, 0.875]])
WEIGHTS = np.array([[0.25, 0.75], [0.5, 0.5]])
MIX = np.stack([MEANS, MEANS + 1.5])


def normal(means, cov):
    return stats.multivariate_normal.pdf(X, means, cov)


def enumerated(densities):
    """log p(x) from densities (K, T), over all paths."""
    densities = np.asarray(densities)
    total = 0.0
    for path in product(range(len(densities)), repeat=densities.shape[1]):
        chances = [INITIAL[path[0]], *(MOVES[a, b] for a, b in pairwise(path))]
        total += np.prod(chances) * np.prod([densities[z, t] for t, z in enumerate(path)])
    return np.log(total)


DIAGONAL = [normal(m, np.diag(s**2)) for m, s in zip(MEANS, SCALES, strict=True)]
FULL = [normal(m, c) for m, c in zip(MEANS, COVS, strict=True)]
POISSON = [stats.poisson.pmf(COUNTS[:, 0], rate) for rate in (1.0, 3.5)]
BERNOULLI = [stats.bernoulli.pmf(BITS, p).prod(1) for p in PROBS]
MIXED = [sum(w * normal(m, c) for w, m, c in zip(WEIGHTS[k], MIX[k], COVS, strict=True)) for k in range(2)]
MIXED_DIAGONAL = [
    sum(w * normal(m, np.diag(s**2)) for w, m, s in zip(WEIGHTS[k], MIX[k], SCALES, strict=True)) for k in range(2)
]


def named(name, **values):
    return namedtuple(name, values)(**values)


def dynamax_params(kind, initial=INITIAL, moves=MOVES, **emissions):
    return named(
        f"Params{kind}",
        initial=named("ParamsStandardHMMInitialState", probs=initial),
        transitions=named("ParamsStandardHMMTransitions", transition_matrix=moves),
        emissions=named(f"Params{kind}Emissions", **emissions),
    )


DYNAMAX = {
    "GaussianHMM": ({"means": MEANS, "covs": COVS}, X, FULL),
    "DiagonalGaussianHMM": ({"means": MEANS, "scale_diags": SCALES}, X, DIAGONAL),
    "SphericalGaussianHMM": (
        {"means": MEANS, "scales": np.array([0.5, 2.0])},
        X,
        [normal(MEANS[0], 0.25 * np.eye(2)), normal(MEANS[1], 4.0 * np.eye(2))],
    ),
    "SharedCovarianceGaussianHMM": ({"means": MEANS, "cov": COVS[0]}, X, [normal(m, COVS[0]) for m in MEANS]),
    "GaussianMixtureHMM": ({"weights": WEIGHTS, "means": MIX, "covs": np.stack([COVS, COVS])}, X, MIXED),
    "DiagonalGaussianMixtureHMM": (
        {"weights": WEIGHTS, "means": MIX, "scale_diags": np.stack([SCALES, SCALES])},
        X,
        MIXED_DIAGONAL,
    ),
    "CategoricalHMM": ({"probs": ROWS[:, None]}, SYMBOLS, ROWS[:, SYMBOLS[:, 0]]),
    "PoissonHMM": ({"rates": np.array([[1.0], [3.5]])}, COUNTS, POISSON),
    "BernoulliHMM": ({"probs": PROBS}, BITS, BERNOULLI),
}


@pytest.mark.parametrize("library", ["numpy", "jax"])
@pytest.mark.parametrize("kind", DYNAMAX)
def test_dynamax_parameters_are_read(kind, library):
    emissions, x, densities = DYNAMAX[kind]
    if library == "jax":
        jnp = pytest.importorskip("jax.numpy")
        emissions = {name: jnp.asarray(value) for name, value in emissions.items()}
    found = from_dynamax(dynamax_params(kind, **emissions))
    assert score(found, x) == pytest.approx(enumerated(densities), abs=1e-12)


def test_dynamax_rounding_of_float32_is_taken():
    covs = COVS.astype(np.float32)
    covs[0] = [[2.0, 1e-8], [-3e-8, 1.0]]  # no multiple of each other, nothing beside the variances
    found = from_dynamax(
        dynamax_params("GaussianHMM", INITIAL, np.float32([[0.3, 0.7], [0.1, 0.9]]), means=MEANS, covs=covs)
    )
    assert found.log_transition.exp().sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-15)
    np.testing.assert_allclose(found.covariances[0].tolist(), [[2.0, -1e-8], [-1e-8, 1.0]], rtol=1e-6, atol=0.0)
    covs[0, 0, 1] = 0.01
    with pytest.raises(ValueError, match="symmetric"):
        from_dynamax(dynamax_params("GaussianHMM", means=MEANS, covs=covs))


def normals(form, covs, means=MEANS):
    cases = zip(means, covs, strict=True)
    return [standing("Normal", means=m, covs=c, covariance_type=form) for m, c in cases]


def standing(kind, **values):
    """An object of a class named `kind`, its arrays torch's in float32."""
    values = {name: torch.tensor(x, dtype=torch.float32) if name in _NUMBERS else x for name, x in values.items()}
    return type(kind, (SimpleNamespace,), {})(**values)


_NUMBERS = ("means", "covs", "probs", "lambdas", "priors")


def dense(states, edges=MOVES, starts=INITIAL, ends=(1.0, 1.0)):
    with np.errstate(divide="ignore"):
        starts, edges, ends = (None if x is None else torch.tensor(x).log() for x in (starts, edges, ends))
    return standing("DenseHMM", distributions=states, edges=edges, starts=starts, ends=ends)


def mixtures(form, covs):
    cases = zip(WEIGHTS, MIX, strict=True)
    return [standing("GeneralMixtureModel", priors=w, distributions=normals(form, covs, m)) for w, m in cases]


UNEVEN = np.array([[0.5, 2.0], [1.0, 1.0]])
POMEGRANATE = {
    "full": (normals("full", COVS), X, FULL, "full"),
    "diag": (normals("diag", SCALES**2), X, DIAGONAL, "diag"),
    "sphere, D given": (
        normals("sphere", [[0.5, 0.5], [2.0, 2.0]]),
        X,
        [normal(MEANS[0], 0.5 * np.eye(2)), normal(MEANS[1], 2.0 * np.eye(2))],
        "spherical",
    ),
    "sphere, fitted": (
        normals("sphere", [0.5, 2.0]),
        X,
        [normal(MEANS[0], 0.5 * np.eye(2)), normal(MEANS[1], 2.0 * np.eye(2))],
        "spherical",
    ),
    "sphere, uneven": (
        normals("sphere", UNEVEN),
        X,
        [normal(m, np.diag(v)) for m, v in zip(MEANS, UNEVEN, strict=True)],
        "diag",
    ),
    "mixture full": (mixtures("full", COVS), X, MIXED, "full"),
    "mixture diag": (mixtures("diag", SCALES**2), X, MIXED_DIAGONAL, "diag"),
    "categorical": ([standing("Categorical", probs=row[None]) for row in ROWS], SYMBOLS, ROWS[:, SYMBOLS[:, 0]], None),
    "poisson": ([standing("Poisson", lambdas=[rate]) for rate in (1.0, 3.5)], COUNTS, POISSON, None),
    "bernoulli": ([standing("Bernoulli", probs=p) for p in PROBS], BITS, BERNOULLI, None),
}


@pytest.mark.parametrize("name", POMEGRANATE)
def test_pomegranate_models_are_read(name):
    states, x, densities, form = POMEGRANATE[name]
    found = from_pomegranate(dense(states))
    assert getattr(found, "covariance_type", None) == form
    assert score(found, x) == pytest.approx(enumerated(densities), abs=1e-12)  # the numbers are whole in float32


def poissons(*rates):
    return [standing("Poisson", lambdas=[rate]) for rate in rates]


def test_pomegranate_edges_one_by_one():
    model = dense(poissons(1.0, 3.5), edges=None)
    model = type("SparseHMM", (SimpleNamespace,), {})(**vars(model))
    with pytest.raises(ValueError, match="edges that SparseHMM was given"):
        from_pomegranate(model)
    # 0 -> 1 twice: its forward pass adds them
    model._edge_idx_starts, model._edge_idx_ends = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 0, 1, 0, 1])
    model._edge_log_probs = torch.tensor([0.25, 0.5, 0.25, 0.125, 0.875]).double().log()
    assert score(from_pomegranate(model), COUNTS) == pytest.approx(enumerated(POISSON), abs=1e-12)


def test_pomegranate_what_was_not_given_is_uniform():
    found = from_pomegranate(dense(poissons(1.0, 3.5), None, None, None))
    assert found.log_initial.exp().tolist() == pytest.approx([0.5, 0.5])
    assert found.log_transition.exp().flatten().tolist() == pytest.approx([0.5] * 4)


def test_pomegranate_ends():
    states = poissons(1.0, 3.5)
    for ends in ([0.0, 0.0], [0.25, 0.25], None):
        assert score(from_pomegranate(dense(states, ends=ends)), COUNTS) == pytest.approx(enumerated(POISSON))
    share = np.array([[0.5], [0.25]])
    ended = dense(states, MOVES * share, ends=1 - share[:, 0])
    with pytest.raises(ValueError, match=r"no END state.* sums \[0.5 +0.25\] and ends \[0.5 +0.75\]; drop_ends=True"):
        from_pomegranate(ended)
    assert score(from_pomegranate(ended, drop_ends=True), COUNTS) == pytest.approx(enumerated(POISSON))
    with pytest.raises(ValueError, match="no END state"):  # a factor that depends on the path, though rows sum to 1
        from_pomegranate(dense(states, ends=[0.5, 0.25]))
    alike = dense(states, MOVES * 0.5, ends=[0.5, 0.5])  # a factor that depends on the length
    with pytest.raises(ValueError, match="no END state"):
        from_pomegranate(alike)
    for wrong in (dense(states, MOVES * 0.5), dense(states, [[0.5, 0.5], [0.0, 0.0]], ends=[0.0, 1.0])):
        with pytest.raises(ValueError, match="expected probabilities that sum to 1"):
            from_pomegranate(wrong, drop_ends=True)


def test_dynamax_says_what_it_cannot_take():
    with pytest.raises(TypeError, match="the parameters of a dynamax HMM, got int"):
        from_dynamax(3)
    for kind, emissions in (
        ("GammaHMM", {"concentration": INITIAL, "rate": INITIAL}),
        ("MultinomialHMM", {"probs": ROWS[:, None]}),
        ("LowRankGaussianHMM", {"means": MEANS, "cov_diag_factors": SCALES, "cov_low_rank_factors": SCALES[..., None]}),
        ("LinearRegressionHMM", {"weights": COVS, "biases": MEANS, "covs": COVS}),
        ("TiedMixtureHMM", {"weights": WEIGHTS, "means": MIX, "cov": COVS[0]}),
    ):
        with pytest.raises(TypeError, match=f"got Params{kind}"):
            from_dynamax(dynamax_params(kind, **emissions))
    for message, params in (
        (r"probs: .*got shape \(2, 2, 3\)", dynamax_params("CategoricalHMM", probs=np.stack([ROWS, ROWS], 1))),
        (r"means: expected an array of 2 axes, got shape \(2,\)", dynamax_params("A", means=INITIAL, covs=COVS)),
        (r"covariances: expected shape", dynamax_params("GaussianHMM", means=MEANS, covs=COVS[..., :1])),
        (r"covariances: expected variances", dynamax_params("A", means=MEANS, scale_diags=0 * SCALES)),
        (
            r"initial: expected probabilities in \[0, 1\], got -0.5",
            dynamax_params("A", [1.5, -0.5], rates=MEANS[:, :1]),
        ),
        (r"log_transition: expected probabilities that sum to 1", dynamax_params("A", moves=MOVES / 2, rates=SCALES)),
        (r"log_initial: expected shape", dynamax_params("A", [1.0], rates=SCALES)),
        (r"weights: expected probabilities", dynamax_params("A", weights=-WEIGHTS, means=MIX, covs=COVS[None])),
        (r"rates: expected an array of numbers", dynamax_params("A", rates="trainable")),
    ):
        with pytest.raises(ValueError, match=message):
            from_dynamax(params)


def test_pomegranate_says_what_it_cannot_take():
    poisson, gaussian = poissons(1.0), normals("full", COVS)
    for message, model in (
        ("DenseHMM or SparseHMM, got PoissonHMM", PoissonHMM(2)),
        ("states of one class, got Normal, Poisson", dense([*poisson, *gaussian[:1]])),
        ("states of one class, got none", dense([])),
        ("states of Normal, .*got Gamma", dense([standing("Gamma"), standing("Gamma")])),
        (
            "mixtures of Normal, got Poisson",
            dense([standing("GeneralMixtureModel", priors=[1.0], distributions=poisson)]),
        ),
    ):
        with pytest.raises(TypeError, match=message):
            from_pomegranate(model)
    unset = type("Poisson", (SimpleNamespace,), {})(lambdas=None)
    for message, model in (
        ("lambdas: expected numbers in every state, got None; fit", dense([*poisson, unset])),
        ("one covariance_type, got diag, full", dense([gaussian[0], *normals("diag", SCALES)[1:]])),
        ("lambdas of one shape", dense([*poisson, standing("Poisson", lambdas=[1.0, 2.0])])),
        (r"probs: .*got shape \(2, 3\)", dense([standing("Categorical", probs=ROWS)] * 2)),
        (r"log_initial: expected probabilities that sum to 1", dense(poissons(1.0, 2.0), starts=[0.5, 0.25])),
        (r"log_transition: expected shape", dense(poissons(1.0, 2.0), edges=[[1.0]], ends=[1.0])),
    ):
        with pytest.raises(ValueError, match=message):
            from_pomegranate(model)


def test_modules_without_a_counterpart():
    pytest.importorskip("dynamax")
    pytest.importorskip("pomegranate")
    for convert, wrong in (
        (to_dynamax, [GaussianHMM(2, 1, "tied_diag"), MixtureGaussianHMM(2, 1, 2, "spherical")]),
        (to_pomegranate, [GaussianHMM(2, 1, "tied"), MixtureGaussianHMM(2, 1, 2, "tied_diag")]),
    ):
        with pytest.raises(TypeError, match="got StudentTHMM"):
            convert(StudentTHMM(2, 1))
        for model in wrong:
            with pytest.raises(ValueError, match=f"has a form for, got '{model.covariance_type}'"):
                convert(model)


@pytest.mark.parametrize(("convert", "library"), [(to_dynamax, "dynamax"), (to_pomegranate, "pomegranate")])
def test_a_peer_that_is_absent(convert, library, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=library):
        convert(PoissonHMM(2))
