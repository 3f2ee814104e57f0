"""Laws of durations: against scipy's distributions, at their extremes, and their M-steps against scipy's optimisers."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import torch

from hmm_functional import durations
from tests.helpers.backends import LIBRARIES, PUBLIC_LIBRARIES
from tests.helpers.duration_laws import best_mean, log_law, mean_log_law

K = 3
LIMITS = [(9, 1), (12, 4), ((5, 9, 7), (2, 1, 7)), ((5, 9, 7), 2), (6, (1, 6, 3)), (1, 1)]

FAMILIES = {
    "geometric": durations.Geometric,
    "poisson": durations.Poisson,
    "negative_binomial": durations.NegativeBinomial,
    "gamma": durations.Gamma,
    "gaussian": durations.Gaussian,
}
PARAMETERS = {
    "geometric": durations.GeometricParameters,
    "poisson": durations.PoissonParameters,
    "negative_binomial": durations.NegativeBinomialParameters,
    "gamma": durations.GammaParameters,
    "gaussian": durations.GaussianParameters,
}
RANGES = {
    "geometric": [(0.02, 0.98)],
    "poisson": [(0.05, 12.0)],
    "negative_binomial": [(0.1, 20.0), (0.02, 0.98)],
    "gamma": [(0.1, 20.0), (0.05, 3.0)],
    "gaussian": [(-3.0, 14.0), (0.1, 30.0)],
}
EXTREMES = {
    "geometric": [[0.0, 1e-300, 1.0 - 1e-12]],
    "poisson": [[0.0, 1e-12, 1e6]],
    "negative_binomial": [[1e-12, 1e6, 1e6], [1.0 - 1e-12, 1.0 - 1e-12, 0.0]],
    "gamma": [[1e-6, 1e6, 1e6], [1e6, 1e-9, 1e6]],
    "gaussian": [[-1e6, 1e4, 3.0], [1e-2, 1e8, 1e-2]],
}
# with durations of 1..9: which is certain; None where all are about alike
LIMIT_OF_EXTREMES = {
    "geometric": [1, 1, None],
    "poisson": [1, 1, 9],
    "negative_binomial": ["like 1 / n", 9, 1],
    "gamma": [1, 9, 1],
    "gaussian": [1, None, 3],
}


def law_of(name):
    return getattr(durations, f"{name}_log_duration")


def drawn(name, rng, shape=(K,)):
    return PARAMETERS[name](*(rng.uniform(*ends, size=shape) for ends in RANGES[name]))


def limits_of(most, least, num_states=K):
    return [np.broadcast_to(x, num_states) for x in (most, least)]


def expected_law(name, parameters, most, least):
    """scipy's of parameters (K,), (K, D_max)."""
    tops, bottoms = limits_of(most, least)
    rows = zip(*parameters, strict=True) if parameters else [()] * K
    each = zip(rows, bottoms, tops, strict=True)
    return np.stack([log_law(name, row, low, high, int(np.max(most))) for row, low, high in each])


@pytest.mark.parametrize(
    ("library", "limits"),  # JAX compiles for every shape
    [(name, limits) for name in PUBLIC_LIBRARIES for limits in (LIMITS[:3] if name == "jax" else LIMITS)],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_laws_are_scipys_truncated(library, name, limits):
    one = LIBRARIES[library]
    most, least = limits
    parameters = drawn(name, np.random.default_rng(0), (2, K))
    given = [one.array(x) for x in parameters]
    found = one.numpy(law_of(name)(*given, max_duration=most, min_duration=least))
    expected = np.stack([expected_law(name, [x[b] for x in parameters], most, least) for b in range(2)])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    single = FAMILIES[name](most, least).log_prob(PARAMETERS[name](*(x[0] for x in given)))
    np.testing.assert_allclose(one.numpy(single), found[0], rtol=1e-13)


@pytest.mark.parametrize("library", PUBLIC_LIBRARIES)
@pytest.mark.parametrize("limits", LIMITS)
def test_the_uniform_law(library, limits):
    most, least = limits
    one = LIBRARIES[library]
    like = one.array(np.zeros(K))
    found = durations.uniform_log_duration(K, max_duration=most, min_duration=least, like=like)
    np.testing.assert_allclose(one.numpy(found), expected_law("uniform", (), most, least), rtol=1e-14)
    family = durations.Uniform(most, least).log_prob(durations.UniformParameters(like))
    np.testing.assert_array_equal(one.numpy(family), one.numpy(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_narrow_parameters_give_float32_that_was_computed_wider(name, dtype):
    parameters = [torch.from_numpy(x).to(dtype) for x in drawn(name, np.random.default_rng(1))]
    found = law_of(name)(*parameters, max_duration=12, min_duration=2)
    assert found.dtype == torch.float32
    expected = expected_law(name, [x.double().numpy() for x in parameters], 12, 2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    like = torch.zeros((), dtype=dtype)
    found = durations.uniform_log_duration(K, max_duration=6, like=like)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), -np.log(6.0), rtol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_differences(name):
    given = [torch.from_numpy(x).requires_grad_() for x in drawn(name, np.random.default_rng(2))]

    def value(*parameters):
        found = law_of(name)(*parameters, max_duration=(7, 5, 6), min_duration=(2, 1, 6))
        return found.where(found > -torch.inf, 0.0)

    assert torch.autograd.gradcheck(value, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value, given)


@pytest.mark.parametrize("library", PUBLIC_LIBRARIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_extreme_parameters(name, library):
    one = LIBRARIES[library]
    found = one.numpy(law_of(name)(*(one.array(x) for x in EXTREMES[name]), max_duration=9))
    assert not np.isnan(found).any()
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, rtol=1e-12)
    for row, certain in zip(np.exp(found), LIMIT_OF_EXTREMES[name], strict=True):
        if certain == "like 1 / n":  # C(n + r - 1, n) is r / n for small r
            np.testing.assert_allclose(row[1:] * np.arange(1, 9), 1e-12, rtol=1e-9)
        elif certain is None:
            np.testing.assert_allclose(row, 1 / 9, atol=2e-3)
        else:
            assert row[certain - 1] > 1 - 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_at_extreme_parameters_are_finite(name):
    given = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in EXTREMES[name]]
    found = law_of(name)(*given, max_duration=9)
    (found.exp() * torch.arange(9)).sum().backward()
    assert all(x.grad.isfinite().all() for x in given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shapes": np.ones((2, 3))}, ValueError, r"rates: expected shape \(2, 3\), got \(3,\)"),
        ({"shapes": np.float64(1.0)}, ValueError, r"shapes: expected shape \(..., K\), got \(\)"),
        ({"shapes": np.ones(3, np.int64)}, TypeError, "shapes: expected a floating-point dtype"),
        ({"max_duration": 0}, ValueError, "max_duration: expected an integer of at least 1, got 0"),
        ({"max_duration": 2.5}, TypeError, "max_duration: expected an integer, got float"),
        ({"max_duration": "6"}, TypeError, "max_duration: expected an integer, got str"),
        ({"max_duration": (3, 4)}, ValueError, "max_duration: expected a number or 3, one for each state, got 2"),
        ({"max_duration": ()}, ValueError, "max_duration: expected a number or one for each state, got none"),
        ({"min_duration": 7}, ValueError, "min_duration: expected at most max_duration = 6, got 7"),
        ({"min_duration": (1, 7, 1)}, ValueError, "min_duration: expected at most max_duration = 6"),
        ({"min_duration": [0, 1, 1]}, ValueError, "min_duration: expected an integer of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    given = {"shapes": np.ones(3), "rates": np.ones(3), "max_duration": 6, **change}
    with pytest.raises(error, match=message):
        durations.gamma_log_duration(**given)


def test_limits_may_be_any_whole_numbers():
    expected = durations.poisson_log_duration(np.ones(3), max_duration=(3, 4, 5), min_duration=2)
    for most in ([3, 4, 5], np.array([3, 4, 5]), torch.tensor([3, 4, 5]), range(3, 6)):
        found = durations.poisson_log_duration(np.ones(3), max_duration=most, min_duration=np.int64(2))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="min_duration: expected a number or 3 as in max_duration, got 2"):
        durations.Poisson((3, 4, 5), (1, 2))
    with pytest.raises(ValueError, match=r"concentration: expected numbers of at least 1, got 0\.5"):
        durations.Categorical(5, concentration=0.5)


# M-steps

D = 8


def patterns(longest=D):
    """Counts of every kind, a row each."""
    rng, d = np.random.default_rng(0), np.arange(longest)
    rows = {
        "random": rng.gamma(0.5, size=longest),
        "tiny": rng.random(longest) * 1e-8,
        "huge": rng.random(longest) * 1e12,
        "first": np.eye(longest)[0],
        "inner": 7.0 * np.eye(longest)[longest // 2],
        "last": np.eye(longest)[-1],
        "ends": 2.0 * np.eye(longest)[0] + np.eye(longest)[-1],
        "two": np.eye(longest)[2] + np.eye(longest)[3],
        "rising": 1.5**d,
        "falling": 0.6**d,
        "valley": (d - longest / 2.0) ** 2 + 0.1,
        "poisson": np.bincount(np.minimum(rng.poisson(2.5, 300), longest - 1), minlength=longest).astype(float),
        "broad": np.bincount(np.minimum(rng.negative_binomial(1.5, 0.3, 300), longest - 1), minlength=longest) + 0.0,
    }
    return rows


STARTS = {
    "geometric": [(0.3,), (0.9,)],
    "poisson": [(1.0,), (6.0,)],
    "negative_binomial": [(0.3, 0.5), (20.0, 0.1)],
    "gamma": [(1.0, 0.3), (20.0, 5.0)],
    "tilted_gaussian": [(0.5, 0.3), (-1.0, 1.0), (1.0, 1e-3)],
    "gaussian": [(4.0, 2.0), (1.0, 5.0)],
}


def mean_of(family, parameters, counts):
    return [mean_log_law(c, p) for c, p in zip(counts, family.log_prob(parameters), strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_m_steps_reach_what_scipy_finds(name):
    rows = patterns()
    counts = np.stack(list(rows.values()))
    family = FAMILIES[name](D)
    old = PARAMETERS[name](*(np.full(len(counts), value) for value in STARTS[name][0]))
    found = mean_of(family, family.m_step(counts, old), counts)
    oracle = "tilted_gaussian" if name == "gaussian" else name
    for kind, row, value in zip(rows, counts, found, strict=True):
        best = best_mean(oracle, row, 1, STARTS[oracle])
        assert value > best - 1e-6, kind


NARROW = {"gaussian": [(3.0, 0.01), (28.0, 0.5), (-40.0, 0.3)], "gamma": [(1e3, 20.0), (1e3, 0.01), (1e-3, 300.0)]}


@pytest.mark.parametrize("start", range(3))
@pytest.mark.parametrize("name", NARROW)
def test_m_steps_leave_laws_that_call_what_is_seen_impossible(name, start):
    """All of the start's mass lies on one duration, where curvature says nothing of the others."""
    kinds = ("ends", "poisson")
    counts = np.stack([patterns()[kind] for kind in kinds])
    family = FAMILIES[name](D)
    old = PARAMETERS[name](*(np.full(len(counts), value) for value in NARROW[name][start]))
    found = mean_of(family, family.m_step(counts, old), counts)
    oracle = "tilted_gaussian" if name == "gaussian" else name
    for kind, row, value in zip(kinds, counts, found, strict=True):
        assert value > best_mean(oracle, row, 1, STARTS[oracle][:1]) - 1e-6, kind


@pytest.mark.parametrize("name", FAMILIES)
def test_m_steps_within_limits_of_each_state(name):
    """Durations 3..6 and 2..8: what scipy finds on each."""
    limits = (6, 8), (3, 2)
    rng = np.random.default_rng(4)
    counts = rng.gamma(1.0, size=(2, 8))
    family = FAMILIES[name](*limits)
    old = PARAMETERS[name](*(np.full(2, value) for value in STARTS[name][0]))
    possible = np.isfinite(family.log_prob(old))
    counts = counts * possible
    found = mean_of(family, family.m_step(counts, old), counts)
    oracle = "tilted_gaussian" if name == "gaussian" else name
    for row, most, least, value in zip(counts, *limits, found, strict=True):
        assert value > best_mean(oracle, row[:most], least, STARTS[oracle]) - 1e-6


TWO = [name for name in FAMILIES if len(RANGES[name]) == 2]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", TWO)
def test_with_one_parameter_fixed_the_other_is_the_maximum(name, index):
    counts = np.stack([patterns()[kind] for kind in ("random", "poisson", "falling", "inner")])
    family, rng = FAMILIES[name](D), np.random.default_rng(5)
    old = drawn(name, rng, (len(counts),))
    fixed = [None, None]
    fixed[index] = True
    found = family.m_step(counts, old, PARAMETERS[name](*fixed))
    assert (found[index] == old[index]).all()
    values = mean_of(family, found, counts)
    for k, (row, value) in enumerate(zip(counts, values, strict=True)):
        best = best_mean(name, row, 1, STARTS[name], held={index: old[index][k]})
        assert value > best - 1e-6
        assert value < best + 1e-6


@pytest.mark.parametrize("library", PUBLIC_LIBRARIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_fixed_states_stay_bit_for_bit_and_others_are_as_if_alone(name, library):
    one = LIBRARIES[library]
    counts = np.stack([patterns()[kind] for kind in ("random", "poisson", "falling")])
    family, old = FAMILIES[name](D), drawn(name, np.random.default_rng(6))
    given = PARAMETERS[name](*(one.array(x) for x in old))
    free = [one.numpy(x) for x in family.m_step(one.array(counts), given)]
    mask = np.array([True, False, True])
    found = family.m_step(one.array(counts), given, PARAMETERS[name](*[one.array(mask)] * len(old)))
    for x, before, alone in zip(found, old, free, strict=True):
        assert (one.numpy(x)[mask] == before[mask]).all()
        np.testing.assert_allclose(one.numpy(x)[1], alone[1], rtol=1e-6)
    for whole in (True, one.array(np.ones(3, bool))):
        stays = family.m_step(one.array(counts), given, PARAMETERS[name](*[whole] * len(old)))
        assert all((one.numpy(x) == before).all() for x, before in zip(stays, old, strict=True))
    if len(old) == 2:  # a mask of one parameter
        half = family.m_step(one.array(counts), given, PARAMETERS[name](one.array(mask), None))
        assert (one.numpy(half[0])[mask] == old[0][mask]).all()
        assert (one.numpy(half[0])[~mask] != old[0][~mask]).all()
        assert (one.numpy(half[1]) != old[1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_states_without_counts_keep_their_parameters(name, dtype):
    rng = np.random.default_rng(7)
    old = PARAMETERS[name](*(x.astype(dtype) for x in drawn(name, rng)))
    counts = rng.gamma(1.0, size=(K, D))
    counts[1] = 0.0
    found = FAMILIES[name](D).m_step(counts, old)
    for x, before in zip(found, old, strict=True):
        assert x.dtype == dtype
        assert x[1] == before[1]
        assert x[0] != before[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_durations_that_cannot_vary_say_nothing(name):
    """With min_duration = max_duration every parameter is as good: those at hand stay."""
    old = drawn(name, np.random.default_rng(8))
    counts = np.zeros((K, 4))
    counts[:, 3] = 5.0
    found = FAMILIES[name](4, 4).m_step(counts, old)
    for x, before in zip(found, old, strict=True):
        np.testing.assert_allclose(x, before, rtol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_m_steps_of_all_libraries_are_the_same(name):
    counts = np.stack([patterns()[kind] for kind in ("random", "poisson", "falling")])
    old, family = drawn(name, np.random.default_rng(9)), FAMILIES[name](D)
    expected = family.m_step(counts, old)
    value = mean_of(family, expected, counts)
    for library in ("torch", "jax"):
        one = LIBRARIES[library]
        step = jax.jit(family.m_step) if library == "jax" else family.m_step
        found = step(one.array(counts), PARAMETERS[name](*(one.array(x) for x in old)))
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.numpy(x), y, rtol=1e-5)
        other = PARAMETERS[name](*(one.numpy(x) for x in found))
        np.testing.assert_allclose(mean_of(family, other, counts), value, rtol=0, atol=1e-11)


def test_categorical_durations_are_shares():
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([[0.2, 0.3, 0.5], [0.5, 0.5, 0.0]]))
    old = durations.CategoricalParameters(log_probs)
    counts = np.array([[2.0, 6.0, 0.0], [1.0, 3.0, 9.0]])
    (found,) = durations.Categorical(3).m_step(counts, old)
    np.testing.assert_allclose(np.exp(found), [[0.25, 0.75, 0.0], [0.25, 0.75, 0.0]])
    (found,) = durations.Categorical(3, concentration=2.0).m_step(counts, old)
    np.testing.assert_allclose(np.exp(found), [[3 / 11, 7 / 11, 1 / 11], [2 / 6, 4 / 6, 0.0]])
    mask = np.array([[False, False, True], [False, False, False]])
    (found,) = durations.Categorical(3).m_step(counts, old, durations.CategoricalParameters(mask))
    assert found[0, 2] == log_probs[0, 2]
    np.testing.assert_allclose(np.exp(found[0]), [0.125, 0.375, 0.5])
    (found,) = durations.Uniform(3).m_step(counts, durations.UniformParameters(np.zeros(2)))
    assert (found == 0).all()


@functools.cache
def fitted_rows(name):
    """Parameters of 40 states fitted to samples of 4000 durations each, and those they were drawn with."""
    rng, size = np.random.default_rng(10), 40
    true = drawn(name, rng, (size,))
    family = FAMILIES[name](30, 2)
    probs = np.exp(family.log_prob(true))
    counts = np.stack([rng.multinomial(4000, p / p.sum()) for p in probs]).astype(float)
    start = PARAMETERS[name](*(np.full(size, value) for value in STARTS[name][0]))
    return family, true, family.m_step(counts, start), counts


@pytest.mark.parametrize("name", FAMILIES)
def test_laws_are_found_again_from_samples(name):
    """Twice the gain in likelihood over the truth is chi-squared with one degree a parameter."""
    family, true, found, counts = fitted_rows(name)
    gains = 2 * 4000 * (np.array(mean_of(family, found, counts)) - mean_of(family, true, counts))
    assert (gains > -1e-6).all()
    num_parameters = len(true)
    assert abs(gains.mean() - num_parameters) < 5 * np.sqrt(2 * num_parameters / len(gains))
    assert gains.max() < 25.0
