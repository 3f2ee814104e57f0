"""Trajectories: equal to written-out normal equations, the density's maximum, on every library; durations add up."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import seeds
from tests.helpers.backends import LIBRARIES
from tests.helpers.trajectories import Trajectory, features, solutions

EDGES = st.sampled_from(["truncate", "hts"])
COMMON = ((1.0,), (-0.5, 0.0, 0.5), (1.0, -2.0, 1.0))


class Problem(NamedTuple):
    """A batch, in NumPy."""

    means: np.ndarray
    variances: np.ndarray
    windows: tuple
    lengths: list


@st.composite
def problems(draw, *, windows=None, num_steps=None, lows=(1, 1, 1)):
    """The first window is static; the others are random, of random odd lengths, some coefficients 0."""
    rng = np.random.default_rng(draw(seeds))
    if windows is None:
        reaches = draw(st.lists(st.integers(0, 3), max_size=3))
        windows = [(draw(st.sampled_from([1.0, 0.7, -2.0])),)]
        for reach in reaches:
            window = rng.uniform(-1, 1, size=2 * reach + 1) * (rng.random(2 * reach + 1) < 0.8)
            window[rng.integers(2 * reach + 1)] = 1.0
            windows.append(tuple(window.tolist()))
    size, length, dim = (draw(st.integers(low, high)) for low, high in zip(lows, (3, 12, 3), strict=True))
    length = length if num_steps is None else num_steps
    shape = (size, length, dim * len(windows))
    variances = np.exp(rng.uniform(-2, 2, size=shape))
    return Problem(rng.normal(size=shape), variances, tuple(windows), rng.integers(1, length + 1, size=size).tolist())


def problems_for(library):
    # one shape, where a library compiles for each
    return problems(windows=COMMON, num_steps=7, lows=(3, 1, 3)) if library.name == "jax" else problems()


@pytest.mark.parametrize("name", LIBRARIES)
@given(data=st.data(), edges=EDGES, is_ragged=st.booleans())
def test_values_are_those_of_the_normal_equations(name, data, edges, is_ragged):
    library = LIBRARIES[name]
    problem = data.draw(problems_for(library))
    lengths = problem.lengths if is_ragged else None
    given_ = (library.array(x) for x in problem[:2])
    found = library.numpy(hf.mlpg(*given_, problem.windows, edges=edges, lengths=lengths))
    wanted = solutions(*problem[:3], edges, lengths)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@settings(max_examples=40)  # JAX compiles most of them
@given(data=st.data(), edges=EDGES)
def test_shared_variances_are_broadcast(name, data, edges):
    library = LIBRARIES[name]
    problem = data.draw(problems_for(library))
    means = library.array(problem.means)
    for variances in (problem.variances[0], problem.variances[:1], problem.variances[0, :1], problem.variances[0, 0]):
        found = library.numpy(hf.mlpg(means, library.array(variances), problem.windows, edges=edges))
        whole = np.broadcast_to(variances, problem.means.shape)
        np.testing.assert_allclose(
            found, solutions(problem.means, whole, problem.windows, edges), rtol=1e-9, atol=1e-10
        )


@given(problems(lows=(1, 2, 1)), EDGES, seeds)
def test_the_result_maximises_the_density(problem, edges, seed):
    rng = np.random.default_rng(seed)
    found = hf.mlpg(problem.means, problem.variances, problem.windows, edges=edges)
    dim = found.shape[-1]
    oracle = Trajectory(problem.means[0, :, ::dim], problem.variances[0, :, ::dim], problem.windows, edges)
    best = oracle.log_density(found[0, :, 0])
    for scale in (1e-3, 1e-1, 1.0):
        moved = found[0, :, 0] + scale * rng.normal(size=len(found[0]))
        assert oracle.log_density(moved) < best


@given(problems(), EDGES, st.booleans())
def test_features_are_products_with_matrices_and_go_back(problem, edges, is_ragged):
    dim = problem.means.shape[-1] // len(problem.windows)
    x = problem.means[..., :dim].copy()
    lengths = problem.lengths if is_ragged else [x.shape[1]] * len(x)
    for b, end in enumerate(lengths):
        x[b, end:] = np.nan
    y = hf.apply_windows(x, problem.windows, edges=edges, lengths=lengths)
    for b, end in enumerate(lengths):
        np.testing.assert_allclose(y[b, :end], features(x[b, :end], problem.windows, edges), rtol=1e-12, atol=1e-12)
        assert (y[b, end:] == 0).all()
    back = hf.mlpg(y, problem.variances, problem.windows, edges=edges, lengths=lengths)
    np.testing.assert_allclose(back, np.nan_to_num(x), rtol=1e-9, atol=1e-9)


@given(problems(), EDGES, st.integers(1, 3))
def test_padding_is_never_read_and_sequences_do_not_depend_on_their_batch(problem, edges, more):
    length = problem.means.shape[1]
    size, _, width = problem.means.shape
    means, variances = (np.full((size + 1, length + more, width), np.nan) for _ in range(2))
    means[:-1, :length], variances[:-1, :length] = problem.means, problem.variances
    means[-1], variances[-1] = np.nan, -1.0  # the last sequence is NaN, but for its padding
    variances[-1, 0] = 1.0
    lengths = [length] * size + [1]
    alone = hf.mlpg(problem.means, problem.variances, problem.windows, edges=edges)
    batch = hf.mlpg(means, variances, problem.windows, edges=edges, lengths=lengths)
    np.testing.assert_allclose(batch[:-1, :length], alone, rtol=1e-11, atol=1e-12)
    assert (batch[:-1, length:] == 0).all()
    assert np.isnan(batch[-1, 0]).all()
    assert (batch[-1, 1:] == 0).all()


@settings(max_examples=8)  # numerical second derivatives take seconds
@given(problems(num_steps=4), EDGES, st.booleans(), st.booleans())
def test_gradients_are_those_of_differences(problem, edges, is_ragged, is_shared):
    means = torch.from_numpy(problem.means).requires_grad_()
    variances = torch.from_numpy(problem.variances[0] if is_shared else problem.variances).requires_grad_()
    lengths = problem.lengths if is_ragged else None

    def value(means, variances):
        return hf.mlpg(means, variances, problem.windows, edges=edges, lengths=lengths)

    assert torch.autograd.gradcheck(value, (means, variances), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value, (means, variances))


@settings(max_examples=4)
@given(problems(windows=COMMON, num_steps=7, lows=(3, 1, 3)), EDGES)
def test_derivatives_of_jax_are_those_of_torch(problem, edges):
    def loss(means, variances):
        found = hf.mlpg(means, variances, problem.windows, edges=edges)
        return (found**3).sum()

    arrays = [LIBRARIES["torch"].array(x) for x in problem[:2]]
    wanted = torch.func.grad(loss, (0, 1))(*arrays)
    given_ = [LIBRARIES["jax"].array(x) for x in problem[:2]]
    found = jax.jit(jax.grad(loss, (0, 1)))(*given_)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
    other = torch.func.jvp(torch.func.grad(loss, 1), tuple(arrays), tuple(arrays))[1]
    one = jax.jit(lambda *x: jax.jvp(jax.grad(loss, 1), x, x)[1])(*given_)
    np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


def objective(c, problem, edges, means, variances, weight):
    """(B, D): what a global variance maximises, less a constant; each sequence whole."""
    size, num_steps, width = problem.means.shape
    dim = width // len(problem.windows)
    found = np.zeros((size, dim))
    for b in range(size):
        for d in range(dim):
            parts = (x[b, :, d::dim] for x in problem[:2])
            likelihood = Trajectory(*parts, problem.windows, edges).log_density(c[b, :, d])
            off = c[b, :, d].var() - means[d]
            found[b, d] = likelihood / (num_steps * len(problem.windows)) - weight * off**2 / (2 * variances[d])
    return found


@given(problems(windows=COMMON, lows=(1, 4, 1)), EDGES, st.floats(0.3, 8.0), st.sampled_from([0.1, 1.0, 30.0]))
def test_a_global_variance_never_lowers_its_objective_and_ends_where_it_is_flat(problem, edges, ratio, weight):
    plain = hf.mlpg(problem.means, problem.variances, problem.windows, edges=edges)
    means = ratio * plain.var(1).mean(0)
    variances = (0.3 * means) ** 2
    values, found = [objective(plain, problem, edges, means, variances, weight)], plain
    for count in (0, 1, 2, 4, 8, 200):
        law = hf.GlobalVariance(means, variances, weight, count)
        found = hf.mlpg(problem.means, problem.variances, problem.windows, edges=edges, global_variance=law)
        values.append(objective(found, problem, edges, means, variances, weight))
        assert (values[-1] >= values[-2] - 1e-10 * (1 + np.abs(values[-2]))).all()
    off = np.abs(found.var(1) - means)
    assert (off <= np.abs(plain.var(1) - means) * (1 + 1e-6) + 1e-9).all()
    slope = np.zeros_like(found)
    for t in range(found.shape[1]):
        step = np.zeros_like(found)
        step[:, t] = 1e-5
        sides = [objective(found + s * step, problem, edges, means, variances, weight) for s in (1, -1)]
        slope[:, t] = (sides[0] - sides[1]) / 2e-5
    assert (np.abs(slope).max(1) < 1e-3 * (1 + np.abs(values[0]))).all()


@st.composite
def laws_of_durations(draw, *, sizes=None):
    rng = np.random.default_rng(draw(seeds))
    size, count = sizes or (draw(st.integers(1, 3)), draw(st.integers(1, 8)))
    means = np.round(rng.uniform(0, 20, size=(size, count)), draw(st.integers(0, 3)))
    variances = rng.uniform(0, 9, size=(size, count)) * (rng.random((size, count)) < draw(st.sampled_from([1.0, 0.6])))
    return means, variances, rng.integers(1, count + 1, size=size)


def best_sum(means, variances, total, least):
    """Durations by bisection of rho, before rounding."""
    largest = variances.max()
    variances = np.maximum(variances, 1e-6 * largest) if largest else np.ones_like(variances)
    low, high = -1e12, 1e12
    for _ in range(300):
        rho = (low + high) / 2
        found = np.maximum(least, means + rho * variances)
        low, high = (rho, high) if found.sum() < total else (low, rho)
    return found


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@given(data=st.data(), least=st.integers(0, 3), rate=st.sampled_from([0.5, 1.0, 2.0]), is_ragged=st.booleans())
def test_durations_add_up_and_are_within_one_of_the_exact_ones(name, data, least, rate, is_ragged):
    library = LIBRARIES[name]
    means, variances, lengths = data.draw(laws_of_durations(sizes=(2, 5) if name == "jax" else None))
    count = means.shape[1]
    ends = lengths if is_ragged else np.full(len(means), count)
    sums = np.array([max(np.round(m[:e].sum() / rate), least * e) for m, e in zip(means, ends, strict=True)])
    options = {"lengths": lengths} if is_ragged else {}
    if rate == 1.0:
        total = data.draw(st.integers(least * count, 300))
        sums = np.full(len(means), total)
        options["total"] = total
    given_ = (library.array(means), library.array(variances))
    found = library.numpy(hf.scale_durations(*given_, rate=rate, least=least, **options))
    assert (found.sum(1) == sums).all()
    for row, m, v, end, total in zip(found, means, variances, ends, sums, strict=True):
        assert (row[end:] == 0).all()
        assert (row[:end] >= least).all()
        exact = best_sum(m[:end], v[:end], total, least)
        assert (np.abs(row[:end] - exact) < 1 + 1e-6 * (1 + total)).all()
        # no swap of a frame comes nearer: the largest fractions were rounded up
        off = row[:end] - exact
        gains = off[:, None] - off[None, :] - 1  # a frame from i to j lowers the squared distance where this is above 0
        can_give = row[:end] > least
        assert (gains[can_give] < 1e-5 * (1 + total)).all()


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@given(seed=seeds, size=st.integers(1, 3), count=st.integers(1, 6), more=st.integers(0, 3))
def test_frames_repeat_their_states(name, seed, size, count, more):
    library, rng = LIBRARIES[name], np.random.default_rng(seed)
    size, count = (2, 4) if name == "jax" else (size, count)
    states, durations = rng.integers(0, 50, size=count), rng.integers(0, 4, size=(size, count))
    num_steps = int(durations.sum(1).max()) + more
    given_ = (library.array(states), library.array(durations))
    found = library.numpy(hf.expand_states(*given_, num_steps))
    for row, times in zip(found, durations, strict=True):
        wanted = np.repeat(states, times)
        assert (row[: len(wanted)] == wanted).all()
        assert (row[len(wanted) :] == -1).all()
    assert hf.expand_states(*given_).shape == (size, num_steps - more)
