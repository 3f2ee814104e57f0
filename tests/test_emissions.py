"""Emission densities against torch.distributions and mpmath, on every array library."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from torch import distributions

import hmm_functional as hf
from tests.helpers.backends import LIBRARIES

TYPES = ("diag", "spherical", "full", "tied", "tied_diag")


def covariances_of(kind: str, num: tuple[int, ...], dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "diag":
        return rng.uniform(0.5, 2.0, (*num, dim))
    if kind == "spherical":
        return rng.uniform(0.5, 2.0, num)
    if kind == "tied_diag":
        return rng.uniform(0.5, 2.0, dim)
    root = rng.normal(size=(*(() if kind == "tied" else num), dim, dim))
    return root @ np.swapaxes(root, -1, -2) / dim + 0.5 * np.eye(dim)


def full_covariances(kind: str, covariances: np.ndarray, num: tuple[int, ...], dim: int) -> np.ndarray:
    if kind in ("diag", "tied_diag"):
        return np.broadcast_to(covariances[..., None] * np.eye(dim), (*num, dim, dim))
    if kind == "spherical":
        return covariances[..., None, None] * np.eye(dim)
    return np.broadcast_to(covariances, (*num, dim, dim))


def oracle(x: np.ndarray, log_weights: np.ndarray, means: np.ndarray, full: np.ndarray) -> np.ndarray:
    """torch.distributions in float64."""
    arrays = [torch.as_tensor(np.array(a, np.float64)) for a in (x, log_weights, means, full)]
    density = distributions.MultivariateNormal(arrays[2], arrays[3])
    return torch.logsumexp(density.log_prob(arrays[0][..., None, None, :]) + arrays[1], -1).numpy()


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("kind", TYPES)
def test_densities(name, kind):
    library, rng = LIBRARIES[name], np.random.default_rng(1)
    x, means = rng.normal(size=(2, 5, 3)), rng.normal(size=(4, 2, 3))
    weights = np.log(rng.dirichlet(np.ones(2), 4))
    covariances = covariances_of(kind, (4, 2), 3)
    expected = oracle(x, weights, means, full_covariances(kind, covariances, (4, 2), 3))
    found = hf.gmm_log_likelihood(*map(library.array, (x, weights, means, covariances)), covariance_type=kind)
    np.testing.assert_allclose(library.numpy(found), expected, rtol=1e-12)
    single = covariances if kind.startswith("tied") else covariances[:, 0]
    expected = oracle(x, np.zeros((4, 1)), means[:, :1], full_covariances(kind, covariances, (4, 2), 3)[:, :1])
    found = hf.gaussian_log_prob(*map(library.array, (x, means[:, 0], single)), covariance_type=kind)
    np.testing.assert_allclose(library.numpy(found), expected, rtol=1e-12)


def by_frame(kind, batch, num_steps, rng):
    """Covariances for means of each frame: of each frame, of each state, or of all."""
    if batch is None:
        return covariances_of(kind, (4,), 3)
    return rng.uniform(0.5, 2.0, (*batch, num_steps, *((4, 3) if kind == "diag" else (4,))))


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("density", ["gaussian", "student_t"])
@pytest.mark.parametrize(("kind", "batch"), [*((kind, None) for kind in TYPES), ("diag", (2,)), ("spherical", (1,))])
@pytest.mark.parametrize("num_means", [1, 5])
def test_means_of_each_frame(name, density, kind, batch, num_means):
    if name == "strict" and density == "student_t":
        pytest.skip("no log gamma in the standard")
    library, rng = LIBRARIES[name], np.random.default_rng(1)
    x, means = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, num_means, 4, 3))
    covariances = by_frame(kind, batch, num_means, rng)
    degrees = rng.uniform(1, 9, 4)
    extra = (degrees,) if density == "student_t" else ()
    function = hf.student_t_log_prob if density == "student_t" else hf.gaussian_log_prob
    found = library.numpy(function(*map(library.array, (x, means, covariances, *extra)), covariance_type=kind))
    if batch is None:
        full = np.broadcast_to(full_covariances(kind, covariances, (4,), 3), (2, 5, 4, 3, 3))
    else:
        wide = covariances if kind == "diag" else covariances[..., None]
        full = np.broadcast_to(wide, (2, 5, 4, 3))[..., None] * np.eye(3)
    assert found.shape == (2, 5, 4)
    for b, t, k in np.ndindex(2, 5, 4):
        mean = means[b, t if num_means > 1 else 0, k]
        law = scipy.stats.multivariate_normal(mean, full[b, t, k])
        if density == "student_t":
            law = scipy.stats.multivariate_t(mean, full[b, t, k], df=degrees[k])
        np.testing.assert_allclose(found[b, t, k], law.logpdf(x[b, t]), rtol=1e-10)


def test_means_of_each_frame_that_do_not_fit():
    x, means, ones = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4, 3), torch.ones(4, 3)
    for given, message in (
        ((x, means[:, :2], ones), r"means: expected shape \(\.\.\., T or 1, K, D\) with T = 5 as in observations"),
        ((x, means[:1, :, :3], ones), r"covariances: expected shape \(K, D\) = \(3, 3\)"),
        ((x, means, torch.ones(2, 3, 4, 3)), r"covariances: expected shape \(\.\.\., T or 1, K, D\) with T = 5"),
        ((x, means.expand(3, 2, 5, 4, 3)[:, :1].expand(3, 4, 5, 4, 3), ones), "batch axes must broadcast"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.gaussian_log_prob(*given)
    with pytest.raises(ValueError, match="missing: expected 'propagate' with means of each frame"):
        hf.gaussian_log_prob(x, means, ones, missing="marginalize")


def test_one_density_by_hand():
    with mpmath.workdps(50):
        x, mean, variance = mpmath.mpf("0.3"), mpmath.mpf("-1.2"), mpmath.mpf("0.07")
        expected = -((x - mean) ** 2) / (2 * variance) - mpmath.log(2 * mpmath.pi * variance) / 2
    found = hf.gaussian_log_prob(np.array([[0.3]]), np.array([[-1.2]]), np.array([[0.07]]))
    assert abs(found.item() - float(expected)) < 1e-14 * abs(float(expected))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["torch", "jax", "numpy"])
def test_an_offset_of_1000_in_float32(name, kind):
    library, rng = LIBRARIES[name], np.random.default_rng(2)
    dim, num = 80, (20, 1)
    x = (rng.normal(size=(100, dim)) + 1000).astype(np.float32)
    means = (rng.normal(size=(*num, dim)) + 1000).astype(np.float32)
    covariances = covariances_of(kind, num, dim).astype(np.float32)
    wide = covariances.astype(np.float64)
    expected = oracle(x, np.zeros(num), means, full_covariances(kind, wide, num, dim))
    given = (x, np.zeros(num, np.float32), means, covariances)
    found = library.numpy(hf.gmm_log_likelihood(*map(library.array, given), covariance_type=kind))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4


@pytest.mark.parametrize("kind", TYPES)
def test_gradients(kind):
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=(3, 2)), np.log(rng.dirichlet(np.ones(2), 2)), rng.normal(size=(2, 2, 2))]
    x, weights, means = (torch.tensor(a, requires_grad=True) for a in arrays)
    covariances = torch.tensor(covariances_of(kind, (2, 2), 2), requires_grad=True)

    def score(x, weights, means, covariances):
        if covariances.shape[-1:] == covariances.shape[-2:-1] and kind in ("full", "tied"):
            covariances = (covariances + covariances.mT) / 2
        return hf.gmm_log_likelihood(x, weights, means, covariances, covariance_type=kind)

    inputs = (x, weights, means, covariances)
    assert torch.autograd.gradcheck(score, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(score, inputs)
    by_jax = jax.grad(lambda *a: hf.gmm_log_likelihood(*a, covariance_type=kind).sum(), argnums=(0, 1, 2))
    score(*inputs).sum().backward()
    found = jax.jit(by_jax)(*(jnp.asarray(a.detach().numpy()) for a in inputs))
    for ours, theirs in zip(inputs, found, strict=False):
        np.testing.assert_allclose(ours.grad.numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_transforms():
    x, means, variances = torch.randn(4, 5, 2), torch.randn(3, 2), torch.rand(3, 2) + 0.5
    score = lambda x: hf.gaussian_log_prob(x, means, variances)  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(score)(x), score(x))  # traced: a matrix product, else compiled
    torch.testing.assert_close(torch.compile(score, fullgraph=True)(x), score(x))
    each = torch.func.vmap(torch.func.grad(lambda x: score(x).sum()))(x)
    torch.testing.assert_close(each, torch.func.grad(lambda x: score(x).sum())(x))


def test_components_that_are_off():
    weights = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]], requires_grad=True)
    means = torch.zeros(2, 2, 1, requires_grad=True)
    found = hf.gmm_log_likelihood(torch.zeros(1, 1), weights, means, torch.ones(2, 2, 1))
    assert found[0, 0].item() == pytest.approx(-0.9189385, rel=1e-6)
    assert found[0, 1].item() == -torch.inf
    found[0, 0].backward()
    assert torch.isfinite(weights.grad).all()
    assert torch.isfinite(means.grad).all()


@pytest.mark.parametrize("kind", TYPES)
def test_states_far_apart_keep_their_precision(kind):
    """One mean a million standard deviations away, in float32, must not blur the others."""
    means = torch.tensor([[1e6, 0.0], [0.0, 0.0], [0.5, 0.0]])
    covariances = torch.as_tensor(full_covariances("spherical", np.ones(3), (3,), 2)).float()
    given = {
        "diag": torch.ones(3, 2),
        "spherical": torch.ones(3),
        "full": covariances,
        "tied": torch.eye(2),
        "tied_diag": torch.ones(2),
    }
    x = torch.tensor([[0.5, 0.25]])
    found = hf.gaussian_log_prob(x, means, given[kind], covariance_type=kind)
    exact = -0.5 * ((x.double()[:, None] - means.double()) ** 2).sum(-1) - np.log(2 * np.pi)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    huge = hf.gaussian_log_prob(x, means * 1e20, given[kind], covariance_type=kind)
    assert not torch.isnan(huge).any()


def test_nan_touches_its_own_frame():
    for kind in TYPES:
        x = torch.zeros(3, 2)
        x[1, 0] = torch.nan
        covariances = torch.as_tensor(covariances_of(kind, (2,), 2)).float()
        found = hf.gaussian_log_prob(x, torch.zeros(2, 2), covariances, covariance_type=kind)
        assert torch.isnan(found).all(-1).tolist() == [False, True, False]


def test_half_precision_computes_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        found = hf.gaussian_log_prob(*(a.to(dtype) for a in (torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2))))
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(-2.8378770, rel=1e-6)


@pytest.mark.parametrize("name", LIBRARIES)
def test_categorical(name):
    library = LIBRARIES[name]
    log_probs = np.log([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    symbols = np.array([[0, 2], [1, 1]])
    found = hf.categorical_log_prob(library.array(symbols), library.array(log_probs))
    np.testing.assert_array_equal(library.numpy(found), np.moveaxis(log_probs[:, symbols], 0, -1))


def test_errors():
    x, means = torch.zeros(5, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"observations.*D = 3.*\(5, 4\)"):
        hf.gaussian_log_prob(torch.zeros(5, 4), means, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"means.*\(K, D\).*\(3,\)"):
        hf.gaussian_log_prob(x, torch.zeros(3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"covariances.*\(2, 3, 3\).*'full'.*\(2, 3\)"):
        hf.gaussian_log_prob(x, means, torch.ones(2, 3), covariance_type="full")
    with pytest.raises(ValueError, match=r"covariance_type.*'diag'.*'banana'"):
        hf.gaussian_log_prob(x, means, torch.ones(2, 3), covariance_type="banana")
    with pytest.raises(ValueError, match=r"log_weights.*\(K, M\)"):
        hf.gmm_log_likelihood(x, torch.zeros(2, 4), torch.zeros(2, 1, 3), torch.ones(2, 1, 3))
    with pytest.raises(TypeError, match="means"):
        hf.gaussian_log_prob(x, means.numpy(), torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"observations.*int64"):
        hf.gaussian_log_prob(x.long(), means, torch.ones(2, 3))
    log_probs = torch.zeros(2, 4)
    with pytest.raises(TypeError, match=r"observations.*float32"):
        hf.categorical_log_prob(torch.zeros(3), log_probs)
    for bad in (-1, 4):
        with pytest.raises(ValueError, match=rf"observations.*0\.\.3.*{bad}"):
            hf.categorical_log_prob(torch.tensor([0, bad]), log_probs)


@pytest.mark.parametrize("kind", TYPES)
def test_memory_of_a_large_mixture(kind):
    """T = 10,000, D = 80, K = 50, M = 8 in float64 within 2 GB, importing torch included."""
    shape = {"diag": "K, M, D", "spherical": "K, M", "full": "K, M, D, D", "tied": "D, D", "tied_diag": "D"}[kind]
    code = f"""
        import torch, hmm_functional as hf
        from tests.helpers.memory import peak
        torch.set_num_threads(1)
        T, K, M, D = 10_000, 50, 8, 80
        covariances = torch.ones(({shape},), dtype=torch.float64) if {kind!r} not in ("full", "tied") else (
            torch.eye(D, dtype=torch.float64).expand(({shape},)))
        x, means = torch.randn(T, D, dtype=torch.float64), torch.randn(K, M, D, dtype=torch.float64)
        found = hf.gmm_log_likelihood(x, torch.zeros(K, M).double(), means, covariances, covariance_type={kind!r})
        assert found.shape == (T, K)
        print(peak())
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 2e9


@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "full", "tied", "tied_diag"])
@pytest.mark.parametrize("library", ["torch", "numpy", "jax"])
def test_student_t_is_scipy_s(library, covariance_type):
    rng = np.random.default_rng(0)
    x, means = rng.normal(size=(2, 7, 3)) * 5, rng.normal(size=(2, 3))
    degrees = np.array([1.0, 12.0])
    factor = rng.normal(size=(2, 3, 3))
    full = factor @ factor.swapaxes(-1, -2) + np.eye(3)
    given = {
        "diag": np.einsum("kdd->kd", full),
        "spherical": full[:, 0, 0],
        "full": full,
        "tied": full[0],
        "tied_diag": np.diag(full[0]).copy(),
    }[covariance_type]
    matrices = {
        "diag": [np.diag(c) for c in given] if given.ndim == 2 else None,
        "spherical": [c * np.eye(3) for c in np.atleast_1d(full[:, 0, 0])],
        "full": full,
        "tied": [full[0]] * 2,
        "tied_diag": [np.diag(np.diag(full[0]))] * 2,
    }[covariance_type]
    expected = np.stack(
        [
            scipy.stats.multivariate_t(m, c, v).logpdf(x.reshape(-1, 3)).reshape(2, 7)
            for m, c, v in zip(means, matrices, degrees, strict=True)
        ],
        -1,
    )
    move = {"torch": torch.from_numpy, "numpy": np.asarray, "jax": jnp.asarray}[library]
    found = hf.student_t_log_prob(*(move(a) for a in (x, means, given, degrees)), covariance_type=covariance_type)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-10)


@pytest.mark.parametrize("library", ["torch", "numpy", "jax"])
def test_counts_and_bits_are_scipy_s(library):
    rng = np.random.default_rng(0)
    move = {"torch": torch.from_numpy, "numpy": np.asarray, "jax": jnp.asarray}[library]
    x, rates = rng.poisson(3.0, size=(2, 9, 3)), rng.uniform(0.5, 6.0, size=(4, 3))
    rates[0, 1] = 0.0
    expected = scipy.stats.poisson.logpmf(x[..., None, :], rates).sum(-1)
    np.testing.assert_allclose(np.asarray(hf.poisson_log_prob(move(x), move(rates))), expected, rtol=1e-12)
    bits, probs = rng.integers(2, size=(2, 9, 3)), rng.uniform(size=(4, 3))
    probs[0, 1], probs[1, 2] = 0.0, 1.0
    expected = scipy.stats.bernoulli.logpmf(bits[..., None, :], probs).sum(-1)
    np.testing.assert_allclose(np.asarray(hf.bernoulli_log_prob(move(bits), move(probs))), expected, rtol=1e-12)


def test_gradients_of_counts_bits_and_student_t():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    means, logs = (torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    degrees = torch.rand(3, generator=generator, dtype=torch.float64).add(1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, c, v: hf.student_t_log_prob(x, m, c.exp(), v), (means, logs, degrees))
    counts, bits = torch.tensor([[0, 3], [2, 1]]), torch.tensor([[0, 1], [1, 1]])
    assert torch.autograd.gradcheck(lambda r: hf.poisson_log_prob(counts, r.exp()), (logs,))
    assert torch.autograd.gradcheck(lambda p: hf.bernoulli_log_prob(bits, p.sigmoid()), (logs,))
