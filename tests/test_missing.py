"""Missing features of Gaussian emissions against scipy's marginals and EM written out by hand."""

from __future__ import annotations

from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

import hmm_functional as hf
from hmm_functional import emissions, learning
from hmm_functional.emissions import density, missing
from pytorch_hmm import (
    CategoricalEmission,
    EmissionHMM,
    GaussianEmission,
    GaussianHMM,
    MixtureGaussianHMM,
    PoissonEmission,
    ProductEmission,
)
from tests.helpers.backends import LIBRARIES
from tests.test_emissions import TYPES, covariances_of, full_covariances
from tests.test_operation_counts import Launches


def with_gaps(rng: np.random.Generator, x: np.ndarray, share: float = 0.4) -> np.ndarray:
    """Some features NaN; the first frame whole, the second all missing, and some that miss the same."""
    gone = rng.random(x.shape) < share
    gone[..., 0, :], gone[..., 1, :] = False, True
    gone[..., -1, :] = gone[..., -2, :]
    return np.where(gone, np.nan, x)


def marginal(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """log-density of the features that are there."""
    seen = ~np.isnan(x)
    if not seen.any():
        return 0.0
    return float(scipy.stats.multivariate_normal.logpdf(x[seen], mean[seen], covariance[np.ix_(seen, seen)]))


def oracle(x: np.ndarray, log_weights: np.ndarray, means: np.ndarray, full: np.ndarray) -> np.ndarray:
    each = [
        [[marginal(f, *g) for g in zip(m, c, strict=True)] for m, c in zip(means, full, strict=True)]
        for f in x.reshape(-1, x.shape[-1])
    ]
    return np.logaddexp.reduce(np.array(each) + log_weights, -1).reshape(*x.shape[:-1], -1)


def problem(kind: str, dim: int = 4) -> tuple[np.ndarray, ...]:
    """Frames (2, 7, D), log weights (3, 2) not normalised, means (3, 2, D), covariances and the same as matrices."""
    rng = np.random.default_rng(5)
    x, means = with_gaps(rng, rng.normal(size=(2, 7, dim))), rng.normal(size=(3, 2, dim))
    covariances = covariances_of(kind, (3, 2), dim)
    return x, rng.normal(size=(3, 2)), means, covariances, full_covariances(kind, covariances, (3, 2), dim)


@pytest.mark.parametrize("is_small", [False, True], ids=["whole", "in blocks"])
@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("kind", TYPES)
def test_densities_are_scipys_marginals(name, kind, is_small, monkeypatch):
    if is_small:
        monkeypatch.setattr(density, "WORKSPACE", 300)
    library = LIBRARIES[name]
    x, weights, means, covariances, full = problem(kind)
    options = {"covariance_type": kind, "missing": "marginalize"}
    found = hf.gmm_log_likelihood(*map(library.array, (x, weights, means, covariances)), **options)
    np.testing.assert_allclose(library.numpy(found), oracle(x, weights, means, full), rtol=1e-12)
    np.testing.assert_allclose(library.numpy(found)[:, 1], np.logaddexp.reduce(weights, -1)[None].repeat(2, 0))
    single = covariances if kind.startswith("tied") else covariances[:, 0]
    found = hf.gaussian_log_prob(*map(library.array, (x, means[:, 0], single)), **options)
    expected = oracle(x, np.zeros((3, 1)), means[:, :1], full[:, :1])
    np.testing.assert_allclose(library.numpy(found), expected, rtol=1e-12)
    assert (library.numpy(found)[:, 1] == 0).all()


@pytest.mark.parametrize("kind", TYPES)
def test_an_offset_of_1000_in_float32(kind):
    rng = np.random.default_rng(2)
    x, means = (rng.normal(size=(*n, 20)).astype(np.float32) + 1000 for n in ((30,), (5, 1)))
    x = with_gaps(rng, x).astype(np.float32)
    covariances = covariances_of(kind, (5, 1), 20).astype(np.float32)
    expected = oracle(x, np.zeros((5, 1)), means, full_covariances(kind, covariances.astype(float), (5, 1), 20))
    given = map(torch.from_numpy, (x, np.zeros((5, 1), np.float32), means, covariances))
    found = hf.gmm_log_likelihood(*given, covariance_type=kind, missing="marginalize").numpy()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4


def tensors(kind: str) -> list[torch.Tensor]:
    """Frames without gaps, log weights, means, covariances, which want gradients."""
    arrays = problem(kind, 3)[:4]
    return [torch.tensor(np.nan_to_num(a[:1, :4] if i == 0 else a)).requires_grad_() for i, a in enumerate(arrays)]


def score_of(kind: str):
    gone = torch.from_numpy(np.isnan(problem(kind, 3)[0][:1, :4]))

    def score(x, weights, means, covariances):
        x = torch.where(gone, torch.nan, x)
        if kind in ("full", "tied"):
            covariances = (covariances + covariances.mT) / 2
        return hf.gmm_log_likelihood(x, weights, means, covariances, covariance_type=kind, missing="marginalize")

    return score


@pytest.mark.parametrize("kind", TYPES)
def test_gradients(kind):
    inputs, score = tensors(kind), score_of(kind)
    assert torch.autograd.gradcheck(score, inputs, check_forward_ad=True)
    if kind in ("diag", "tied"):
        assert torch.autograd.gradgradcheck(score, inputs)
    score(*inputs).sum().backward()
    x = np.where(np.isnan(problem(kind, 3)[0][:1, :4]), np.nan, inputs[0].detach().numpy())
    assert np.isnan(x).any()
    given = [jnp.asarray(x), *(jnp.asarray(a.detach().numpy()) for a in inputs[1:])]

    def total(x, weights, means, covariances):
        if kind in ("full", "tied"):
            covariances = (covariances + jnp.matrix_transpose(covariances)) / 2
        options = {"covariance_type": kind, "missing": "marginalize"}
        return hf.gmm_log_likelihood(x, weights, means, covariances, **options).sum()

    by_jax = jax.grad(total, argnums=(0, 1, 2, 3))
    for found in (by_jax(*given), jax.jit(by_jax)(*given)):
        for ours, theirs in zip(inputs, found, strict=True):
            assert np.isfinite(theirs).all()
            np.testing.assert_allclose(ours.grad.numpy(), theirs, rtol=1e-9, atol=1e-12)
    (of_parameters,) = jax.grad(total, argnums=(2,))(*given)  # the frames can be read, the means not
    np.testing.assert_allclose(inputs[2].grad.numpy(), of_parameters, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_in_blocks(kind, monkeypatch):
    inputs, score = tensors(kind), score_of(kind)
    expected = torch.autograd.grad(score(*inputs).sum(), inputs)
    monkeypatch.setattr(density, "WORKSPACE", 1)
    for one, other in zip(torch.autograd.grad(score(*inputs).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", TYPES)
def test_transforms(kind):
    given = problem(kind)[:4]
    x, *parameters = map(torch.from_numpy, given)
    score = lambda x: hf.gmm_log_likelihood(x, *parameters, covariance_type=kind, missing="marginalize")  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(score)(x), score(x))
    each = torch.func.vmap(torch.func.grad(lambda x: score(x).sum()))(x)
    plain = x.clone().requires_grad_()
    score(plain).sum().backward()
    torch.testing.assert_close(each, plain.grad)
    assert each.isfinite().all()
    by_jax = jax.jit(lambda *a: hf.gmm_log_likelihood(*a, covariance_type=kind, missing="marginalize"))
    np.testing.assert_allclose(by_jax(*map(jnp.asarray, given)), score(x).numpy(), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch._prims_common.check`:FutureWarning")  # torch's own
@pytest.mark.parametrize("kind", ["diag", "full"])
def test_compiled(kind):
    x, *parameters = map(torch.from_numpy, problem(kind)[:4])
    score = lambda x: hf.gmm_log_likelihood(x, *parameters, covariance_type=kind, missing="marginalize")  # noqa: E731
    torch.testing.assert_close(torch.compile(score, fullgraph=True)(x), score(x))


def seen_by_marginal(monkeypatch) -> list[int]:
    """How many frames each call of `Marginal.log_prob` gets from now on."""
    counts, log_prob = [], missing.Marginal.log_prob

    def spied(self, frames, *parameters):
        counts.append(frames.shape[0])
        return log_prob(self, frames, *parameters)

    monkeypatch.setattr(missing.Marginal, "log_prob", spied)
    return counts


@pytest.mark.parametrize("kind", TYPES)
def test_complete_frames_take_the_way_of_complete_data(kind, monkeypatch):
    _, weights, means, covariances = map(torch.from_numpy, problem(kind)[:4])
    x = torch.randn(100, 4, dtype=torch.float64)
    counts = seen_by_marginal(monkeypatch)
    plain = hf.gmm_log_likelihood(x, weights, means, covariances, covariance_type=kind)
    found = hf.gmm_log_likelihood(x, weights, means, covariances, covariance_type=kind, missing="marginalize")
    assert torch.equal(found, plain)
    assert counts == []
    launched = []
    for way in ("propagate", "marginalize"):
        with Launches() as launches:
            hf.gmm_log_likelihood(x, weights, means, covariances, covariance_type=kind, missing=way)
        launched.append(launches.count)
    assert launched[1] - launched[0] <= 3  # isnan, any, and reading that
    gone = torch.tensor([7, 40])
    x[gone, 1] = torch.nan
    found = hf.gmm_log_likelihood(x, weights, means, covariances, covariance_type=kind, missing="marginalize")
    assert counts == [2]
    plain[gone] = found[gone]
    torch.testing.assert_close(found, plain, rtol=1e-14, atol=0)


def test_equal_gaps_are_factorised_once(monkeypatch):
    sizes, factors = [], missing.Marginal._factors

    def spied(self, patterns, covariances):
        sizes.append(patterns.shape[0])
        return factors(self, patterns, covariances)

    monkeypatch.setattr(missing.Marginal, "_factors", spied)
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[::2, 0], x[::3, 1:] = np.nan, np.nan
    hf.gaussian_log_prob(x, np.zeros((2, 3)), np.eye(3), covariance_type="tied", missing="marginalize")
    assert sizes == [3]


def test_one_gaussian_learns_by_the_textbook():
    """Little and Rubin 2002, section 11.2.1, row by row."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    x = rng.normal(size=(50, 4)) @ root + 3.0
    x[rng.random(x.shape) < 0.3] = np.nan
    x = x[~np.isnan(x).all(1)]
    mean, covariance = np.zeros(4), np.eye(4) * 5
    family = emissions.Gaussian("full", 0.0, missing="marginalize")
    own = emissions.GaussianParameters(mean[None], covariance[None])
    model = learning.HMMParameters(np.zeros(1), np.zeros((1, 1)), own)
    for _ in range(4):
        total, squares = np.zeros(4), np.zeros((4, 4))
        for row in x:
            o, m = ~np.isnan(row), np.isnan(row)
            filled, added = row.copy(), np.zeros((4, 4))
            if m.any():
                slope = np.linalg.solve(covariance[np.ix_(o, o)], covariance[np.ix_(o, m)]).T
                filled[m] = mean[m] + slope @ (row[o] - mean[o])
                added[np.ix_(m, m)] = covariance[np.ix_(m, m)] - slope @ covariance[np.ix_(o, m)]
            total += filled
            squares += np.outer(filled, filled) + added
        expected = sum(marginal(row, mean, covariance) for row in x)
        mean = total / len(x)
        covariance = squares / len(x) - np.outer(mean, mean)
        model, value = learning.em_step(model, family, x)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        np.testing.assert_allclose(model.emission.means[0], mean, rtol=1e-9)
        np.testing.assert_allclose(model.emission.covariances[0], covariance, rtol=1e-9, atol=1e-9)


def enumerated_step(kind, x, initial, transition, shares, means, full):
    """EM over all paths of states and components: initial, transition, shares, means, covariances."""
    num_states, num_mixtures, dim = means.shape
    sources = list(product(range(num_states), range(num_mixtures)))
    paths, weights = list(product(sources, repeat=len(x))), []
    for path in paths:
        p = initial[path[0][0]] * np.prod([transition[a[0], b[0]] for a, b in pairwise(path)])
        for f, s in zip(x, path, strict=True):
            p = p * shares[s] * np.exp(marginal(f, means[s], full[s]))
        weights.append(p)
    likelihood = np.log(np.sum(weights))
    weights = np.array(weights) / np.sum(weights)
    first, pairs, counts = np.zeros(num_states), np.zeros((num_states,) * 2), np.zeros(shares.shape)
    sums, squares = np.zeros(means.shape), np.zeros(full.shape)
    for path, w in zip(paths, weights, strict=True):
        first[path[0][0]] += w
        for a, b in pairwise(path):
            pairs[a[0], b[0]] += w
        for f, s in zip(x, path, strict=True):
            o = ~np.isnan(f)
            if not o.any():
                continue  # a frame of which nothing is known says nothing about emissions
            mean, covariance, rest = means[s].copy(), full[s], np.zeros((dim, dim))
            slope = covariance[:, o] @ np.linalg.inv(covariance[np.ix_(o, o)])
            mean = mean + slope @ (f[o] - mean[o])
            rest = covariance - slope @ covariance[o, :]
            counts[s] += w
            sums[s] += w * mean
            squares[s] += w * (np.outer(mean, mean) + rest)
    new = sums / counts[..., None]
    scatter = squares - counts[..., None, None] * new[..., :, None] * new[..., None, :]
    diagonal = np.diagonal(scatter, axis1=-2, axis2=-1)
    spread = {
        "full": lambda: scatter / counts[..., None, None],
        "tied": lambda: scatter.sum((0, 1)) / counts.sum(),
        "diag": lambda: diagonal / counts[..., None],
        "tied_diag": lambda: diagonal.sum((0, 1)) / counts.sum(),
        "spherical": lambda: diagonal.sum(-1) / counts / dim,
    }[kind]()
    return (
        likelihood,
        first,
        pairs / pairs.sum(1, keepdims=True),
        counts / counts.sum(1, keepdims=True),
        new,
        spread,
    )


@pytest.mark.parametrize(
    ("name", "kind", "is_small"),
    [
        *product(("numpy", "torch"), TYPES, (False, True)),
        *product(("jax jit",), TYPES, (False,)),
        ("jax jit", "full", True),
    ],
)
def test_a_chain_learns_by_enumeration(name, kind, is_small, monkeypatch):
    if is_small:
        for module in (density, missing, emissions.mixture):
            monkeypatch.setattr(module, "WORKSPACE", 1)
    library, rng = LIBRARIES[name.split()[0]], np.random.default_rng(3)
    x = rng.normal(size=(6, 3))
    x[1, :2], x[2, 1], x[3, :], x[4, 0], x[5, 0] = np.nan, np.nan, np.nan, np.nan, np.nan
    for num_mixtures in (1, 2):
        if num_mixtures == 2:
            x = x[:5]
        initial, transition = rng.dirichlet([1, 1]), rng.dirichlet([1, 1], 2)
        shares, means = rng.dirichlet([2] * num_mixtures, 2), rng.normal(size=(2, num_mixtures, 3))
        covariances = covariances_of(kind, (2, num_mixtures), 3)
        full = full_covariances(kind, covariances, (2, num_mixtures), 3)
        expected = enumerated_step(kind, x, initial, transition, shares, means, full)
        if num_mixtures == 1:
            single = covariances if kind.startswith("tied") else covariances[:, 0]
            family = emissions.Gaussian(kind, missing="marginalize")
            own = emissions.GaussianParameters(*map(library.array, (means[:, 0], single)))
        else:
            family = emissions.GaussianMixture(kind, missing="marginalize")
            own = emissions.MixtureParameters(*map(library.array, (np.log(shares), means, covariances)))
        model = learning.HMMParameters(library.array(np.log(initial)), library.array(np.log(transition)), own)
        step = lambda model, x, family=family: learning.em_step(model, family, x)  # noqa: E731
        found, value = (jax.jit(step) if name == "jax jit" else step)(model, library.array(x))
        np.testing.assert_allclose(float(value), expected[0], rtol=1e-10)
        logs = [found.log_initial, found.log_transition, *([] if num_mixtures == 1 else [found.emission.log_weights])]
        ours = [*(np.exp(library.numpy(a)) for a in logs), *(library.numpy(a) for a in found.emission[-2:])]
        theirs = [expected[i] for i in ((1, 2, 4, 5) if num_mixtures == 1 else (1, 2, 3, 4, 5))]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other.reshape(one.shape), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("has_gaps", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_what_is_not_read_may_be_anything(kind, has_gaps):
    x, weights, means, covariances, _ = problem(kind)
    x = x if has_gaps else np.nan_to_num(x)
    posteriors = np.random.default_rng(1).uniform(size=(2, 7, 3))
    posteriors[0, 3:5] = posteriors[1, 0] = 0.0
    single = covariances if kind.startswith("tied") else covariances[:, 0]
    for family, own in (
        (emissions.Gaussian(kind, missing="marginalize"), emissions.GaussianParameters(means[:, 0], single)),
        (
            emissions.GaussianMixture(kind, missing="marginalize"),
            emissions.MixtureParameters(weights, means, covariances),
        ),
    ):
        expected = family.statistics(x, posteriors, own)
        for rows in ([np.nan] * 4, [np.inf] * 4, [np.nan, 1.0, np.inf, np.nan]):
            other = x.copy()
            other[0, 3:5] = other[1, 0] = rows
            for one, two in zip(family.statistics(other, posteriors, own), expected, strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)
        traced = jax.jit(family.statistics)(
            jnp.asarray(other), jnp.asarray(posteriors), type(own)(*map(jnp.asarray, own))
        )
        for one, two in zip(traced, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9)


def test_padding_and_unobserved_frames_are_not_read():
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([[[0.5, nan], [1.0, 2.0], [nan, 1.0]], [[0.0, 1.0], [nan, inf], [inf, nan]]])
    family = emissions.Gaussian("full", missing="marginalize")
    own = emissions.GaussianParameters(
        torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.stack([torch.eye(2), 2 * torch.eye(2)])
    )
    half = torch.full((2, 2), 0.5).log()
    model = learning.HMMParameters(half[0], half, own)
    options = {"lengths": [3, 2], "is_observed": torch.tensor([[True] * 3, [True, False, True]])}
    found, value = learning.em_step(model, family, x, **options)
    x[1, 1:] = 0.0
    expected, other = learning.em_step(model, family, x, **options)
    assert value == other
    for one, two in zip(found.emission, expected.emission, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, two)


def test_errors():
    x, means = torch.zeros(5, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"missing.*'propagate'.*'marginalize'.*'nan'"):
        hf.gaussian_log_prob(x, means, torch.ones(2, 3), missing="nan")
    with pytest.raises(ValueError, match=r"missing.*None"):
        hf.gmm_log_likelihood(x, torch.zeros(2, 1), means[:, None], torch.ones(2, 1, 3), missing=None)
    with pytest.raises(ValueError, match=r"missing.*'no'"):
        emissions.Gaussian(missing="no").statistics(
            x, torch.ones(5, 2), emissions.GaussianParameters(means, torch.ones(2, 3))
        )


MODULES = {
    "diag": lambda **o: GaussianHMM(2, 3, **o),
    "full": lambda **o: GaussianHMM(2, 3, "full", **o),
    "mixture": lambda **o: MixtureGaussianHMM(2, 3, 2, **o),
    "product": lambda **o: EmissionHMM(
        2,
        ProductEmission([GaussianEmission(2, 3, "full"), CategoricalEmission(2, 4), PoissonEmission(2, 2)]),
        **o,
    ),
}


def with_holes(kind, share=0.2):
    torch.manual_seed(0)
    x = MODULES[kind]().double().sample(40, 3)[1].double()
    torch.manual_seed(1)
    holes = torch.rand(x.shape) < share
    holes[0, 5] = True
    return x, x.masked_fill(holes, torch.nan), holes


@pytest.mark.parametrize("kind", MODULES)
def test_modules_integrate_missing_features_out(kind):
    """A frame that misses all scores 0, a whole one what it did; errors stay errors."""
    torch.manual_seed(2)
    model = MODULES[kind](missing="nan").double()
    x, seen, holes = with_holes(kind)
    scores = model.emission_log_prob(seen)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[0, 5], torch.zeros(2).double())
    whole = ~holes.any(-1)
    torch.testing.assert_close(scores[whole], model.emission_log_prob(x)[whole])
    for other, values in ((MODULES[kind](), seen.float()), (model, seen.masked_fill(holes, torch.inf))):
        with pytest.raises(ValueError, match=r"x\[.*expected"):
            other(values)


def test_a_part_of_a_product_that_misses_a_feature_is_unobserved_or_marginal():
    torch.manual_seed(2)
    model = MODULES["product"](missing="nan").double()
    gaussian, symbols, counts = model.emission.parts
    x = torch.tensor([[0.5, torch.nan, 1.0, 2.0, 3.0, torch.nan], [torch.nan] * 3 + [torch.nan, 1.0, 2.0]]).double()
    means, covariances = gaussian.means.detach(), gaussian.covariances.detach()
    marginal = [
        scipy.stats.multivariate_normal(means[k, [0, 2]], covariances[k][[0, 2]][:, [0, 2]]).logpdf([0.5, 1.0])
        for k in range(2)
    ]
    expected = torch.stack(
        [
            torch.tensor(marginal) + symbols.log_prob(torch.tensor([2])).detach()[0],
            counts.log_prob(x[1:, 4:]).detach()[0],
        ]
    )
    torch.testing.assert_close(model.emission_log_prob(x).detach(), expected)


@pytest.mark.parametrize("kind", MODULES)
def test_modules_learn_from_what_is_there(kind):
    _, seen, _ = with_holes(kind)
    torch.manual_seed(2)
    model = MODULES[kind](missing="nan").double()
    rng = torch.Generator().manual_seed(0)
    report = model.fit(seen, num_iterations=30, tolerance=0, generator=rng)
    gains = np.diff(report.history)
    assert (gains > -1e-8).all()
    assert report.history[-1] > report.history[0] + 1
    assert report.log_likelihood == pytest.approx(model(seen).sum().item())
    gradient = model.fit(seen, init="keep", method="gradient", num_iterations=3, tolerance=0, learning_rate=1e-4)
    assert gradient.log_likelihood > report.log_likelihood - 1e-3
    assert all(p.isfinite().all() for p in model.parameters())


def test_labels_and_missing_features_have_a_closed_form():
    """States known, diagonal: with features missing at random the mean of each is that of what was seen."""
    torch.manual_seed(0)
    x, labels = torch.randn(200, 2).double(), torch.randint(2, (200,))
    seen = x.masked_fill(torch.rand(200, 2) < 0.3, torch.nan)
    model = GaussianHMM(2, 2, missing="nan").double()
    model.fit(seen, labels=labels, num_iterations=200, tolerance=0, generator=torch.Generator().manual_seed(0))
    for k in range(2):
        own = seen[labels == k]
        torch.testing.assert_close(model.means[k].detach(), own.nanmean(0))
        torch.testing.assert_close(model.covariances[k].detach(), (own - own.nanmean(0)).square().nanmean(0))
