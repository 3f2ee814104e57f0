"""Linear regression and autoregression emissions, against scipy, NumPy's least squares, and dynamax."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

import hmm_functional as hf
from hmm_functional.emissions import LinearRegression, RegressionParameters, density, lagged, regression
from hmm_functional.learning import HMMParameters, em_step
from tests.helpers.backends import LIBRARIES
from tests.helpers.enumeration import Enumeration

TYPES = ("diag", "spherical", "full", "tied", "tied_diag")


def reduced(kind, full):
    """Matrices (K, D, D) as covariances of a type."""
    return {
        "diag": np.einsum("kdd->kd", full).copy(),
        "spherical": np.einsum("kdd->k", full) / full.shape[-1],
        "full": full,
        "tied": full.mean(0),
        "tied_diag": np.diag(full.mean(0)).copy(),
    }[kind]


def matrices(kind, covariances, num_states, dim):
    """Covariances of a type as matrices (K, D, D)."""
    if kind == "spherical":
        return covariances[:, None, None] * np.eye(dim)
    if kind in ("diag", "tied_diag"):
        covariances = covariances[..., None] * np.eye(dim)
    return np.broadcast_to(covariances, (num_states, dim, dim))


def model(rng, kind, num_states, dim, num_regressors):
    root = rng.normal(size=(num_states, dim, dim))
    full = root @ root.swapaxes(-1, -2) / dim + 0.5 * np.eye(dim)
    weights, biases = rng.normal(size=(num_states, dim, num_regressors)), rng.normal(size=(num_states, dim))
    return RegressionParameters(weights, biases, reduced(kind, full))


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("num_regressors", [0, 1, 4])
def test_density_is_scipy_s(name, kind, num_regressors):
    library, rng = LIBRARIES[name], np.random.default_rng(0)
    y, z = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, num_regressors))
    weights, biases, covariances = model(rng, kind, 2, 3, num_regressors)
    expected = np.empty((2, 5, 2))
    for k, matrix in enumerate(matrices(kind, covariances, 2, 3)):
        for place in np.ndindex(2, 5):
            mean = weights[k] @ z[place] + biases[k]
            expected[(*place, k)] = scipy.stats.multivariate_normal.logpdf(y[place], mean, matrix)
    given = map(library.array, (y, z, weights, biases, covariances))
    found = hf.linear_regression_log_prob(*given, covariance_type=kind)
    np.testing.assert_allclose(library.numpy(found), expected, rtol=1e-12)


def test_regressors_may_be_shared_by_the_batch():
    rng = np.random.default_rng(0)
    y, z, parameters = rng.normal(size=(2, 5, 3)), rng.normal(size=(5, 4)), model(rng, "full", 2, 3, 4)
    found = hf.linear_regression_log_prob(y, z, *parameters)
    for one, other in zip(found, y, strict=True):
        np.testing.assert_allclose(one, hf.linear_regression_log_prob(other, z, *parameters), rtol=1e-12)


X = np.array([[1.0, -0.5], [0.25, 2.0], [-1.5, 0.75], [0.5, 0.5], [2.0, -1.0], [1.25, 0.0]])
START = np.array([[10.0, 20.0], [30.0, 40.0]])


@pytest.mark.parametrize("name", LIBRARIES)
def test_lags_are_dynamax_s(name):
    """What compute_inputs of dynamax 1.0.3's LinearAutoregressiveHMM(num_lags=2) returns: the last frame first."""
    library = LIBRARIES[name]
    rest = [[0.25, 2.0, 1.0, -0.5], [-1.5, 0.75, 0.25, 2.0], [0.5, 0.5, -1.5, 0.75], [2.0, -1.0, 0.5, 0.5]]
    found = library.numpy(lagged(library.array(X), 2))
    np.testing.assert_array_equal(found, [[0.0, 0.0, 0.0, 0.0], [1.0, -0.5, 0.0, 0.0], *rest])
    found = library.numpy(lagged(library.array(X), 2, library.array(START)))
    np.testing.assert_array_equal(found, [[30.0, 40.0, 10.0, 20.0], [1.0, -0.5, 30.0, 40.0], *rest])
    assert lagged(library.array(X), 0).shape == (6, 0)
    long = library.numpy(lagged(library.array(X[:2]), 3))
    np.testing.assert_array_equal(long, [[0.0] * 6, [1.0, -0.5, *[0.0] * 4]])


@pytest.mark.parametrize(("start", "expected"), [(None, -19.80486694306943), (START, -439.9817053790771)])
def test_log_likelihood_is_dynamax_s(start, expected):
    """marginal_log_prob of dynamax 1.0.3's LinearAutoregressiveHMM in float64."""
    weights = np.array(
        [[[0.5, -0.25, 0.125, 0.0], [0.25, 0.75, 0.0, -0.5]], [[-0.5, 0.0, 0.25, 0.5], [0.0, -0.25, 0.5, 0.125]]]
    )
    biases = np.array([[0.1, -0.2], [0.5, 0.25]])
    covariances = np.array([[[1.0, 0.25], [0.25, 0.5]], [[2.0, -0.5], [-0.5, 1.5]]])
    emission = hf.linear_regression_log_prob(X, lagged(X, 2, start), weights, biases, covariances)
    found = hf.log_likelihood(np.log([0.75, 0.25]), np.log([[0.875, 0.125], [0.25, 0.75]]), emission)
    assert found == pytest.approx(expected, rel=1e-14)


def one_state(parameters):
    return HMMParameters(np.zeros(1), np.zeros((1, 1)), parameters)


@pytest.mark.parametrize("kind", TYPES)
def test_one_state_is_least_squares(kind):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 20, 5)).cumsum(1)
    family = LinearRegression(kind, num_lags=2, input_dim=2)
    found, _ = em_step(one_state(model(rng, kind, 1, 3, 8)), family, x)
    rows = [
        [
            np.concatenate(
                [s[t - 1, :3] if t > 0 else np.zeros(3), s[t - 2, :3] if t > 1 else np.zeros(3), s[t, 3:], [1]]
            )
        ]
        for s in x
        for t in range(20)
    ]
    design, y = np.concatenate(rows), x.reshape(-1, 5)[:, :3]
    best = np.linalg.lstsq(design, y, rcond=None)[0].T
    gaps = y - design @ best.T
    np.testing.assert_allclose(found.emission.weights[0], best[:, :-1], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.emission.biases[0], best[:, -1], rtol=1e-9, atol=1e-9)
    expected = reduced(kind, (gaps.T @ gaps / len(y))[None])
    np.testing.assert_allclose(found.emission.covariances, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", TYPES)
def test_em_is_plain_em(kind):
    """Posteriors from all paths, weighted least squares by NumPy, moments of what is left, twice."""
    rng = np.random.default_rng(2)
    x, initial = rng.normal(size=(2, 9, 2)), np.log([0.25, 0.75])
    transition, own = np.log([[0.75, 0.25], [0.5, 0.5]]), model(rng, kind, 2, 2, 2)
    found = HMMParameters(initial, transition, own)
    for _ in range(2):
        found, value = em_step(found, LinearRegression(kind, num_lags=1), x)
    z = np.concatenate([np.zeros((2, 1, 2)), x[:, :-1]], axis=1)
    weights, biases, covariances = own
    for _ in range(2):
        full = matrices(kind, covariances, 2, 2)
        posteriors, total, moves = [], 0.0, np.zeros((2, 2))
        for y, before in zip(x, z, strict=True):
            emission = np.stack(
                [
                    [
                        scipy.stats.multivariate_normal.logpdf(y[t], weights[k] @ before[t] + biases[k], full[k])
                        for k in range(2)
                    ]
                    for t in range(9)
                ]
            )
            exact = Enumeration(initial, transition, emission)
            share = np.exp(exact.weights - exact.log_likelihood)
            posteriors.append([[share[exact.paths[:, t] == k].sum() for k in range(2)] for t in range(9)])
            for t in range(8):
                for i, j in np.ndindex(2, 2):
                    moves[i, j] += share[(exact.paths[:, t] == i) & (exact.paths[:, t + 1] == j)].sum()
            total += exact.log_likelihood
        posteriors = np.array(posteriors, float)
        initial = np.log(posteriors[:, 0].sum(0) / 2)
        transition = np.log(moves / moves.sum(1, keepdims=True))
        y, design = x.reshape(-1, 2), np.concatenate([z.reshape(-1, 2), np.ones((18, 1))], axis=1)
        weights, biases, scatter, counts = np.empty((2, 2, 2)), np.empty((2, 2)), [], []
        for k in range(2):
            root = np.sqrt(posteriors[..., k].reshape(-1, 1))
            best = np.linalg.lstsq(root * design, root * y, rcond=None)[0].T
            weights[k], biases[k] = best[:, :2], best[:, 2]
            gaps = root * (y - design @ best.T)
            scatter.append(gaps.T @ gaps)
            counts.append((root**2).sum())
        scatter, counts = np.array(scatter), np.array(counts)
        whole = scatter.sum(0) / counts.sum()
        full = scatter / counts[:, None, None]
        covariances = whole if kind == "tied" else np.diag(whole) if kind == "tied_diag" else reduced(kind, full)
    assert value == pytest.approx(float(total), rel=1e-10)
    expected = HMMParameters(initial, transition, RegressionParameters(weights, biases, covariances))
    for one, other in zip((*found[:2], *found.emission), (*expected[:2], *expected.emission), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", TYPES)
def test_gradients(kind):
    rng = np.random.default_rng(3)
    own = model(rng, kind, 2, 2, 3)
    x, *arrays = (torch.tensor(a, requires_grad=True) for a in (rng.normal(size=(4, 3)), *own))

    def score(x, weights, biases, covariances):
        if kind in ("full", "tied"):
            covariances = (covariances + covariances.mT) / 2
        return LinearRegression(kind, num_lags=1, input_dim=1).log_prob(
            x, RegressionParameters(weights, biases, covariances)
        )

    assert torch.autograd.gradcheck(score, (x, *arrays), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(score, (x, *arrays))


def test_conditioning_on_the_first_frames_by_hand():
    family = LinearRegression("spherical", num_lags=2, history="condition")
    parameters = RegressionParameters(np.array([[[2.0, -1.0]]]), np.array([[0.5]]), np.array([4.0]))
    x = np.array([[3.0], [1.0], [0.0], [5.0]])
    # means: 2 * 1 - 3 + 0.5 = -0.5, then 2 * 0 - 1 + 0.5 = -0.5
    peak = -np.log(2 * np.sqrt(2 * np.pi))
    expected = [[0.0], [0.0], [peak - 0.5**2 / 8], [peak - 5.5**2 / 8]]
    np.testing.assert_allclose(family.log_prob(x, parameters), expected, rtol=1e-14)
    counts, sums, squares = family.statistics(x, np.array([[7.0], [7.0], [1.0], [2.0]]), parameters)
    np.testing.assert_allclose(counts, [3.0])
    first, second = np.array([0.5, 1.0, 3.0]), np.array([5.5, 0.0, 1.0])  # residual, newest lag, older lag
    np.testing.assert_allclose(sums, [first + 2 * second], rtol=1e-14)
    np.testing.assert_allclose(squares, [np.outer(first, first) + 2 * np.outer(second, second)], rtol=1e-14)
    from_zeros = LinearRegression("spherical", num_lags=2).log_prob(x, parameters)
    expected[:2] = [peak - 2.5**2 / 8], [peak - (1.0 - 2 * 3.0 - 0.5) ** 2 / 8]
    np.testing.assert_allclose(from_zeros, expected, rtol=1e-14)


@pytest.mark.parametrize("kind", TYPES)
def test_fixed_entries_keep_their_bits_and_the_rest_is_least_squares(kind):
    """Weights and biases against a whitened design of the free entries alone, features and regressors as one system."""
    rng = np.random.default_rng(4)
    x, (num_states, dim, count) = rng.normal(size=(30, 5)), (2, 3, 2)
    own, family = model(rng, kind, num_states, dim, count), LinearRegression(kind, input_dim=2)
    posteriors = rng.uniform(size=(30, num_states))
    statistics = family.statistics(x, posteriors, own)
    masks = [
        RegressionParameters(rng.random((2, 3, 2)) < 0.4, rng.random((2, 3)) < 0.4, None),
        RegressionParameters(rng.random((2, 3, 2)) < 0.4, False, False),
        RegressionParameters(rng.random((2, 3, 2)) < 0.4, True, True),
        RegressionParameters(True, rng.random((2, 3)) < 0.4, None),
        RegressionParameters(False, np.array(True), None),
        RegressionParameters(True, False, None),
        RegressionParameters(True, True, True),
    ]
    for fixed in masks:
        found = family.m_step(statistics, own, fixed)
        keeps_weights = np.broadcast_to(fixed.weights, own.weights.shape)
        keeps_biases = np.broadcast_to(fixed.biases, own.biases.shape)
        assert (found.weights == own.weights)[keeps_weights].all()
        assert (found.biases == own.biases)[keeps_biases].all()
        assert (found.covariances == own.covariances).all() == bool(fixed.covariances)
        for k, matrix in enumerate(matrices(kind, own.covariances, num_states, dim)):
            whiten = np.linalg.inv(np.linalg.cholesky(matrix))
            free = ~np.concatenate([keeps_weights[k], keeps_biases[k][:, None]], axis=1).ravel()
            entries = np.concatenate([own.weights[k], own.biases[k][:, None]], axis=1).ravel()
            z = np.concatenate([x[:, dim:], np.ones((30, 1))], axis=1)
            design = np.stack([np.kron(np.eye(dim), row) for row in z])
            roots = np.sqrt(posteriors[:, k])[:, None]
            left = roots * ((x[:, :dim] - design[:, :, ~free] @ entries[~free]) @ whiten.T)
            columns = roots[..., None] * (whiten @ design[:, :, free])
            entries[free] = np.linalg.lstsq(columns.reshape(left.size, free.sum()), left.ravel(), rcond=None)[0]
            expected = entries.reshape(dim, count + 1)
            np.testing.assert_allclose(found.weights[k], expected[:, :count], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(found.biases[k], expected[:, count], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", TYPES)
def test_fixed_covariances_keep_their_bits(kind):
    rng = np.random.default_rng(5)
    x, own, family = rng.normal(size=(30, 3)), model(rng, kind, 2, 2, 1), LinearRegression(kind, input_dim=1)
    statistics = family.statistics(x, rng.uniform(size=(30, 2)), own)
    mask = np.zeros(own.covariances.shape, bool)
    if kind != "tied":
        mask[0] = True
    free = family.m_step(statistics, own).covariances
    found = family.m_step(statistics, own, RegressionParameters(None, None, mask)).covariances
    np.testing.assert_array_equal(found, np.where(mask, own.covariances, free))
    if kind in ("full", "tied"):
        mask[..., 0, 0] = ~mask[..., 0, 0]
        with pytest.raises(ValueError, match=r"fixed\.covariances.*whole"):
            family.m_step(statistics, own, RegressionParameters(None, None, mask))


def test_a_state_without_frames_keeps_everything():
    rng = np.random.default_rng(6)
    for kind in ("full", "diag", "spherical"):
        own, family = model(rng, kind, 2, 2, 2), LinearRegression(kind, num_lags=1)
        posteriors = np.zeros((30, 2))
        posteriors[:, 0] = 1.0
        found = family.m_step(family.statistics(rng.normal(size=(30, 2)), posteriors, own), own)
        for one, other in zip(found, own, strict=True):
            np.testing.assert_array_equal(one[1], other[1])
            assert (one[0] != other[0]).any()


def test_weights_of_what_does_not_vary_stay():
    """The second input is constant: the biases alone answer for it."""
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.normal(size=(50, 2)), np.full((50, 1), 1e5)], axis=1)
    own, family = model(rng, "full", 1, 1, 2), LinearRegression(input_dim=2)
    found = family.m_step(family.statistics(x, np.ones((50, 1)), own), own)
    assert found.weights[0, 0, 1] == pytest.approx(own.weights[0, 0, 1], rel=1e-12)
    slope, start = np.polyfit(x[:, 1], x[:, 0], 1)
    assert found.weights[0, 0, 0] == pytest.approx(slope, rel=1e-9)
    assert found.biases[0, 0] + 1e5 * found.weights[0, 0, 1] == pytest.approx(start, abs=1e-9)


def test_a_frame_of_no_weight_gives_no_weights():
    """The second input is on in one frame alone, where the second state has a posterior of 1e-200."""
    rng = np.random.default_rng(11)
    x, own, posteriors = rng.normal(size=(50, 4)), model(rng, "full", 2, 2, 2), rng.uniform(size=(50, 2))
    x[:, 3] = 0.0
    x[7, 3], posteriors[7, 1] = 3.0, 1e-200
    family = LinearRegression(input_dim=2)
    found = family.m_step(family.statistics(x, posteriors, own), own)
    np.testing.assert_array_equal(found.weights[1, :, 1], own.weights[1, :, 1])
    assert (found.weights[0, :, 1] != own.weights[0, :, 1]).all()


def test_data_far_from_zero_keep_their_precision():
    rng = np.random.default_rng(8)
    noise, x = rng.normal(size=(2000, 2)), np.zeros((2000, 2))
    true = np.array([[0.6, 0.3], [-0.2, 0.5]])
    for t in range(1, 2000):
        x[t] = true @ x[t - 1] + noise[t]
    near = np.linalg.lstsq(np.concatenate([x[:-1], np.ones((1999, 1))], axis=1), x[1:], rcond=None)[0].T
    family = LinearRegression(num_lags=1, history="condition")
    parameters = one_state(RegressionParameters(np.zeros((1, 2, 2)), np.zeros((1, 2)), np.eye(2)[None]))
    for _ in range(4):
        parameters, _ = em_step(parameters, family, x + 1e6)
    np.testing.assert_allclose(parameters.emission.weights[0], near[:, :2], rtol=0, atol=1e-6)
    gaps = x[1:] - x[:-1] @ near[:, :2].T - near[:, 2]
    np.testing.assert_allclose(parameters.emission.covariances[0], gaps.T @ gaps / 1999, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_of_frames_are_the_whole(kind, monkeypatch):
    rng = np.random.default_rng(9)
    x, own = torch.from_numpy(rng.normal(size=(2, 50, 2))), model(rng, kind, 3, 2, 2)
    own = RegressionParameters(*(torch.from_numpy(np.array(a)).requires_grad_() for a in own))
    family, posteriors = LinearRegression(kind, num_lags=1), torch.from_numpy(rng.uniform(size=(2, 50, 3)))

    def all_of_it():
        found = family.log_prob(x, own)
        statistics = family.statistics(x, posteriors, own)
        return found, *statistics, *torch.autograd.grad((found * posteriors).sum(), own)

    whole = all_of_it()
    for module in (density, regression):
        monkeypatch.setattr(module, "WORKSPACE", 60)
    for one, other in zip(all_of_it(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_nan_reaches_the_frames_that_look_back_on_it():
    rng = np.random.default_rng(10)
    own, x = model(rng, "full", 2, 1, 2), rng.normal(size=(6, 1))
    x[2] = np.nan
    family = LinearRegression(num_lags=2)
    found = family.log_prob(x, own)
    assert np.isnan(found).all(-1).tolist() == [False, False, True, True, True, False]
    posteriors = np.where(np.isnan(found), 0.0, 1.0)
    assert all(np.isfinite(part).all() for part in family.statistics(x, posteriors, own))


def test_half_precision_computes_in_float32():
    arrays = (torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1), torch.ones(1, 1, 1))
    for dtype in (torch.float16, torch.bfloat16):
        found = hf.linear_regression_log_prob(*(a.to(dtype) for a in arrays))
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(-0.9189385, rel=1e-6)


def test_errors():
    y, z, weights, biases = torch.zeros(5, 3), torch.zeros(5, 2), torch.zeros(4, 3, 2), torch.zeros(4, 3)
    full = torch.eye(3).expand(4, 3, 3)
    score = hf.linear_regression_log_prob
    with pytest.raises(ValueError, match=r"weights.*\(K, D, P\).*\(3, 2\)"):
        score(y, z, weights[0], biases, full)
    with pytest.raises(ValueError, match=r"biases.*\(4, 3\).*\(3,\)"):
        score(y, z, weights, biases[0], full)
    with pytest.raises(ValueError, match=r"observations.*D = 3.*\(5, 4\)"):
        score(torch.zeros(5, 4), z, weights, biases, full)
    for bad in (torch.zeros(5, 3), torch.zeros(4, 2), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"regressors.*\(5, 2\)"):
            score(y, bad, weights, biases, full)
    with pytest.raises(ValueError, match=r"batch.*observations .*2.*regressors .*3"):
        score(y.expand(2, 5, 3), z.expand(3, 5, 2), weights, biases, full)
    with pytest.raises(ValueError, match=r"covariances.*\(4, 3, 3\).*'full'.*\(4, 3\)"):
        score(y, z, weights, biases, biases)
    with pytest.raises(ValueError, match=r"covariance_type.*'diag'.*'banana'"):
        score(y, z, weights, biases, full, covariance_type="banana")
    with pytest.raises(TypeError, match=r"regressors.*int64"):
        score(y, z.long(), weights, biases, full)
    with pytest.raises(TypeError, match="regressors"):
        score(y, z.numpy(), weights, biases, full)
    with pytest.raises(ValueError, match=r"num_lags.*-1"):
        lagged(y, -1)
    with pytest.raises(TypeError, match=r"num_lags.*float"):
        lagged(y, 1.0)
    with pytest.raises(ValueError, match=r"history.*\(2, 3\).*\(1, 3\)"):
        lagged(y, 2, y[:1])
    with pytest.raises(ValueError, match=r"history.*'zeros', 'condition'.*'ones'"):
        LinearRegression(history="ones")
    with pytest.raises(ValueError, match=r"input_dim.*-1"):
        LinearRegression(input_dim=-1)
    own = RegressionParameters(weights, biases, full)
    with pytest.raises(ValueError, match=r"weights.*\(K, 3, 6\).*\(4, 3, 2\)"):
        LinearRegression(num_lags=2).log_prob(y, own)
    with pytest.raises(ValueError, match=r"observations.*\(\.\.\., T, 5\).*\(5, 3\)"):
        LinearRegression(input_dim=2).log_prob(y, own)
    family = LinearRegression(input_dim=2)
    statistics = family.statistics(torch.randn(5, 5), torch.ones(5, 4), own)
    with pytest.raises(TypeError, match=r"fixed\.weights.*booleans.*float32"):
        family.m_step(statistics, own, RegressionParameters(weights, None, None))
    with pytest.raises(ValueError, match=r"fixed\.biases.*\(4, 3\).*\(4,\)"):
        family.m_step(statistics, own, RegressionParameters(None, biases[:, 0] > 0, None))
