"""Semi-Markov quantities: equal to all segmentations, to chains where durations are geometric, on every library."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import seeds
from tests.helpers.backends import LIBRARIES
from tests.helpers.segmentations import Segmentations

SIZES = (4, 2, 3)
"""Steps, states and durations, where a library compiles for every shape."""


class Problem(NamedTuple):
    """One sequence, in NumPy."""

    initial: np.ndarray
    transition: np.ndarray
    duration: np.ndarray
    emission: np.ndarray


def logs(rng, *shape, zeros=0.0):
    p = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])
    p[rng.random(p.shape) < zeros] = 0.0
    with np.errstate(divide="ignore"):
        return np.log(p)


@st.composite
def problems(draw, *, sizes=None, zeros=None):
    num_steps, num_states, longest = [draw(st.integers(1, high)) for high in (5, 3, 7)] if sizes is None else sizes
    zeros = draw(st.sampled_from([0.0, 0.2])) if zeros is None else zeros
    rng = np.random.default_rng(draw(seeds))
    emission = rng.normal(size=(num_steps, num_states)) * draw(st.sampled_from([1.0, 30.0, 1e3]))
    emission[rng.random(emission.shape) < zeros / 2] = -np.inf
    parts = [logs(rng, *shape, zeros=zeros) for shape in ((num_states,), (num_states,) * 2, (num_states, longest))]
    return Problem(*parts, emission)


def problems_for(library):
    return problems(sizes=SIZES) if library.name == "jax" else problems()


def segments_of(states, is_start):
    """((state, duration), ...), which the starts and the states have to agree about."""
    found = []
    for state, begins in zip(states, is_start, strict=True):
        if begins:
            found.append([int(state), 1])
        else:
            assert found[-1][0] == state
            found[-1][1] += 1
    return tuple(map(tuple, found))


@pytest.mark.parametrize("name", [n for n in LIBRARIES if n != "strict"])
@given(data=st.data(), censored=st.booleans(), kernel=st.sampled_from(["auto", "reference"]))
def test_values_are_those_of_all_segmentations(name, data, censored, kernel):
    library = LIBRARIES[name]
    problem = data.draw(problems_for(library))
    oracle = Segmentations(*problem, censored)
    given_ = [library.array(x) for x in problem]
    found = hf.semi_markov_forward_backward(*given_, censored=censored, kernel=kernel)
    posteriors, durations, moves, ends = oracle.counts()
    scale = max(1.0, float(np.abs(problem.emission[np.isfinite(problem.emission)]).max(initial=1.0)))
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * scale}
    value = hf.semi_markov_log_likelihood(*given_, censored=censored, kernel=kernel)
    for one in (found.log_likelihood, value):
        np.testing.assert_allclose(library.numpy(one), np.float64(oracle.log_likelihood), **tolerance)
    pairs = (
        (np.exp(library.numpy(found.log_posteriors)), posteriors),
        (library.numpy(found.expected_durations), durations),
        (library.numpy(found.expected_transitions), moves),
        (library.numpy(found.expected_ends), ends),
    )
    for one, other in pairs:
        np.testing.assert_allclose(one, other.astype(float), rtol=1e-10, atol=1e-11)
    best = hf.semi_markov_viterbi(*given_, censored=censored, kernel=kernel)
    top, paths = oracle.best()
    np.testing.assert_allclose(library.numpy(best.log_joint), np.float64(top), **tolerance)
    states, begins = library.numpy(best.states), library.numpy(best.is_start)
    if np.isneginf(top):
        assert (states == -1).all()
        assert not begins.any()
    else:
        assert segments_of(states, begins) in paths


@given(problems(), st.booleans(), st.integers(1, 3))
def test_padding_is_never_read_and_sequences_do_not_depend_on_their_batch(problem, censored, more):
    length, num_states = problem.emission.shape
    padded = np.full((2, length + more, num_states), np.nan)
    padded[0, :length], padded[1] = problem.emission, 0.5
    batch = hf.semi_markov_forward_backward(*problem[:3], padded, lengths=[length, length + more], censored=censored)
    alone = hf.semi_markov_forward_backward(*problem, censored=censored)
    for name, one, other in zip(alone._fields, alone, batch, strict=True):
        part = other[0, :length] if name == "log_posteriors" else other[0]
        np.testing.assert_allclose(part, one, rtol=1e-12, atol=1e-13, err_msg=name)
    assert (batch.log_posteriors[0, length:] == -np.inf).all()
    best = hf.semi_markov_viterbi(*problem[:3], padded, lengths=[length, length + more], censored=censored)
    expected = hf.semi_markov_viterbi(*problem, censored=censored)
    assert (best.states[0, :length] == expected.states).all()
    assert (best.states[0, length:] == -1).all()
    assert not best.is_start[0, length:].any()


@given(seeds, st.integers(1, 4), st.integers(1, 30))
def test_geometric_durations_are_a_chain(seed, num_states, num_steps):
    """A state that goes on with p and changes with (1 - p) times the rest of its row is a state of a plain chain."""
    rng = np.random.default_rng(seed)
    stay = rng.uniform(0.1, 0.9, size=num_states)
    leave = np.exp(logs(rng, num_states, num_states))
    np.fill_diagonal(leave, 0.0)
    leave = leave / leave.sum(1, keepdims=True) if num_states > 1 else np.ones((1, 1))
    if num_states == 1:  # one state that may follow itself
        stay, matrix = np.array([0.3]), np.ones((1, 1))
    else:
        matrix = np.diag(stay) + (1 - stay)[:, None] * leave
    longest = num_steps + 200
    duration = np.log(stay)[:, None] * np.arange(longest) + np.log1p(-stay)[:, None]
    initial, emission = logs(rng, num_states), rng.normal(size=(num_steps, num_states)) * 3
    with np.errstate(divide="ignore"):
        found = hf.semi_markov_forward_backward(initial, np.log(leave), duration, emission)
        chain = hf.forward_backward(initial, np.log(matrix), emission)
        counts = hf.expected_transitions(initial, np.log(matrix), emission)
    cut = np.exp(np.log(stay) * longest).max()  # what lasts longer than the table
    np.testing.assert_allclose(found.log_likelihood, chain.log_likelihood, rtol=1e-10, atol=1e-10 + num_steps * cut)
    tolerance = {"rtol": 1e-9, "atol": 1e-9 + num_steps * cut}
    np.testing.assert_allclose(np.exp(found.log_posteriors), np.exp(chain.log_posteriors), **tolerance)
    if num_states > 1:
        np.fill_diagonal(counts, 0.0)
        np.testing.assert_allclose(found.expected_transitions, counts, **tolerance)


@settings(max_examples=10)  # numerical second derivatives take seconds
@given(problems(sizes=(5, 2, 3), zeros=0.0), st.booleans(), st.booleans())
def test_gradients_are_those_of_differences(problem, censored, is_ragged):
    emission = problem.emission / np.abs(problem.emission).max()
    emission = np.stack([emission, emission[::-1]])
    theta = [torch.from_numpy(np.array(x)).requires_grad_() for x in (*problem[:3], emission)]
    lengths = [5, 3] if is_ragged else None

    def value(*theta):
        return hf.semi_markov_log_likelihood(*theta, lengths=lengths, censored=censored)

    def posterior(*theta):
        found = hf.semi_markov_forward_backward(*theta, lengths=lengths, censored=censored)
        return tuple(x.where(x > -torch.inf, 0.0) for x in found)

    assert torch.autograd.gradcheck(value, theta, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value, theta)
    assert torch.autograd.gradcheck(posterior, theta)


@pytest.mark.parametrize("name", [n for n in LIBRARIES if n != "strict"])
@pytest.mark.parametrize("censored", [True, False])
def test_draws_follow_the_posterior_and_the_prior(name, censored):
    library, rng, count = LIBRARIES[name], np.random.default_rng(0), 20000
    problem = Problem(logs(rng, 2), logs(rng, 2, 2), logs(rng, 2, 3), rng.normal(size=(4, 2)))
    parts = [library.array(x) for x in problem]
    drawn = hf.semi_markov_sample_posterior(*parts, rng=library.rng(0), num_samples=count, censored=censored)
    close(library, drawn, Segmentations(*problem, censored), count)
    if censored:
        prior = hf.semi_markov_sample(*parts[:3], num_steps=4, rng=library.rng(1), batch_shape=(count,))
        close(library, prior, Segmentations(*problem[:3], np.zeros((4, 2)), True), count)


def close(library, drawn, oracle, count):
    seen = Counter(map(segments_of, library.numpy(drawn.states), library.numpy(drawn.is_start)))
    shares = np.array([seen[path] / count for path in oracle.all])
    expected = oracle.probabilities.astype(float)
    assert sum(seen[path] for path in oracle.all) == count
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected / count) + 1e-3).all()


def test_transforms_of_torch():
    rng = np.random.default_rng(0)
    theta = [torch.from_numpy(logs(rng, *shape)) for shape in ((2,), (2, 2), (2, 3))]
    x = torch.from_numpy(rng.normal(size=(3, 6, 2)))
    whole = hf.semi_markov_log_likelihood(*theta, x)
    torch.testing.assert_close(torch.vmap(lambda e: hf.semi_markov_log_likelihood(*theta, e))(x), whole)
    compiled = torch.compile(hf.semi_markov_log_likelihood, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*theta, x), whole)
    slope = torch.func.grad(lambda e: hf.semi_markov_log_likelihood(*theta, e).sum())(x)
    posteriors = hf.semi_markov_forward_backward(*theta, x).log_posteriors.exp()
    torch.testing.assert_close(slope, posteriors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_duration": np.zeros((3, 4))}, r"log_duration: .*\(..., K, D_max\) with K = 2"),
        ({"log_duration": np.zeros((2, 0))}, "log_duration: expected durations of at least one step"),
        ({"log_transition": np.zeros((4, 2, 2))}, "log_transition: expected one constant in time, got 4 slots"),
        ({"lengths": [6]}, "lengths"),
        ({"log_emission": np.zeros((3, 5, 2)), "log_duration": np.zeros((2, 2, 3))}, "batch axes must broadcast"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    given_ = {
        "log_initial": np.zeros(2),
        "log_transition": np.zeros((2, 2)),
        "log_duration": np.zeros((2, 3)),
        "log_emission": np.zeros((5, 2)),
    }
    with pytest.raises(ValueError, match=message):
        hf.semi_markov_log_likelihood(**{**given_, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_initial": None}, TypeError, "log_initial: expected an array"),
        ({"log_duration": np.zeros(3)}, ValueError, r"expected shapes \(K,\) and \(K, D_max\), got \(2,\) and \(3,\)"),
        ({"log_transition": np.zeros((3, 2))}, ValueError, r"log_transition: expected shape \(2, 2\), got \(3, 2\)"),
    ],
)
def test_what_cannot_be_drawn_from_is_named(change, error, message):
    given_ = {"log_initial": np.zeros(2), "log_transition": np.zeros((2, 2)), "log_duration": np.zeros((2, 3))}
    with pytest.raises(error, match=message):
        hf.semi_markov_sample(**{**given_, **change}, num_steps=3, rng=np.random.default_rng(0))


def test_draws_end_before_a_state_without_durations():
    with np.errstate(divide="ignore"):
        parts = [np.log(x) for x in ([1.0, 0.0], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]])]
    found = hf.semi_markov_sample(*parts, num_steps=5, rng=np.random.default_rng(0))
    assert found.states.tolist() == [0, 0, -1, -1, -1]
    assert found.is_start.tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_hugely_negative_scores_lose_no_other_segmentation(name):
    """State 0 scores -1e17 at one step, as good as impossible: the rest is what -inf there leaves, digit by digit."""
    library = LIBRARIES[name]
    rng = np.random.default_rng(0)
    parts = [logs(rng, 2), logs(rng, 2, 2), logs(rng, 2, 3)]
    emission = rng.normal(size=(8, 2))
    found = []
    for value in (-1e17, -np.inf):
        emission[3, 0] = value
        found.append(hf.semi_markov_forward_backward(*(library.array(x) for x in (*parts, emission))))
    for one, other in zip(*found, strict=True):
        one, other = library.numpy(one), library.numpy(other)
        np.testing.assert_allclose(np.exp(np.minimum(one, 50.0)), np.exp(np.minimum(other, 50.0)), rtol=1e-13)


@pytest.mark.parametrize(
    ("form", "magnitude"),
    [*itertools.product(("auto", "reference", "numpy", "float32"), (1e9, 1e17, 1e29)), ("jax", 1e29)],
)
def test_posteriors_of_huge_scores_are_probabilities(form, magnitude):
    """Later frames bring back by as much what earlier ones took: messages hold no digit of what is between."""
    library = LIBRARIES[form if form in ("numpy", "jax") else "torch"]
    dtype, kernel = "float32" if form == "float32" else "float64", form if form == "auto" else "reference"
    rng = np.random.default_rng(0)
    moves = logs(rng, 6, 1, 2, 2)
    moves[..., range(2), range(2)] = -np.inf
    parts = [logs(rng, 6, 2), moves, logs(rng, 6, 2, 3), rng.normal(size=(6, 8, 2)) * magnitude]
    lengths = [8, 8, 8, 3, 1, 8]
    parts[-1][1] /= magnitude  # what is beside them is as if alone
    found = hf.semi_markov_forward_backward(*(library.array(x, dtype) for x in parts), lengths=lengths, kernel=kernel)
    posteriors = np.exp(library.numpy(found.log_posteriors))
    np.testing.assert_allclose(posteriors.sum(-1), np.arange(8) < np.array(lengths)[:, None], atol=1e-6)
    oracle = Segmentations(*(np.asarray(x[1].squeeze(), dtype) for x in parts), True)
    np.testing.assert_allclose(posteriors[1], oracle.counts()[0].astype(float), atol=1e-6)
    frames = (library.numpy(found.expected_durations) * np.arange(1, 4)).sum((-1, -2))
    ends = (library.numpy(found.expected_ends) * np.arange(1, 4)).sum((-1, -2))
    np.testing.assert_allclose(frames + ends, lengths, atol=1e-5)
    segments = library.numpy(found.expected_durations).sum((-1, -2))
    np.testing.assert_allclose(library.numpy(found.expected_transitions).sum((-1, -2)), segments, atol=1e-5)


def test_posteriors_of_long_float32_sequences():
    rng = np.random.default_rng(0)
    parts = [logs(rng, 4), logs(rng, 4, 4), logs(rng, 4, 20), rng.normal(size=(300, 4)) * 200]
    parts = [torch.from_numpy(x).float() for x in parts]
    exact = hf.semi_markov_forward_backward(*(x.double() for x in parts)).log_posteriors.exp()
    found = hf.semi_markov_forward_backward(*parts, kernel="reference").log_posteriors.exp()
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("form", "part"), [*itertools.product(("auto", "reference", "numpy"), range(4)), ("jax", 3)])
def test_nan_has_no_path_and_no_score(form, part):
    """In the chain, in durations and in frames, of one of two sequences."""
    library, rng = LIBRARIES[form if form in ("numpy", "jax") else "torch"], np.random.default_rng(0)
    parts = [logs(rng, 2, *tail) for tail in ((2,), (1, 2, 2), (2, 3))] + [rng.normal(size=(2, 4, 2))]
    parts[part][(1, *[-1] * (parts[part].ndim - 1))] = np.nan
    arrays, options = [library.array(x) for x in parts], {"kernel": form if form == "auto" else "reference"}
    found = hf.semi_markov_viterbi(*arrays, **options)
    score, states, is_start = (library.numpy(x) for x in (found.log_joint, found.states, found.is_start))
    assert np.isnan(score).tolist() == [False, True]
    assert states[0].min() >= 0
    assert is_start[0, 0]
    drawn = hf.semi_markov_sample_posterior(*arrays, **options, rng=library.rng(0), num_samples=3)
    for paths, starts in ((states[None], is_start[None]), (library.numpy(x) for x in drawn)):
        assert (paths[:, 1] == -1).all()
        assert not starts[:, 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(3, 40, 5, 7), (2, 30, 9, 50), (1, 300, 17, 20)])
@pytest.mark.parametrize("censored", [True, False])
def test_compiled_code_gives_what_array_code_gives(sizes, dtype, censored):
    batch, num_steps, num_states, longest = sizes
    rng = np.random.default_rng(0)
    shapes = ((num_states,), (batch, 1, num_states, num_states), (batch, num_states, longest))
    theta = [torch.from_numpy(logs(rng, *shape, zeros=0.1)).to(dtype) for shape in shapes]
    x = torch.from_numpy(rng.normal(size=(batch, num_steps, num_states)) * 5).to(dtype)
    lengths = [num_steps, *rng.integers(1, num_steps, size=batch - 1)]
    options = {"lengths": lengths, "censored": censored}
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-3}
    exact = hf.semi_markov_forward_backward(*(y.double() for y in (*theta, x)), **options, kernel="reference")
    found = hf.semi_markov_forward_backward(*theta, x, **options, kernel="numba")
    for name, one, other in zip(found._fields, found, exact, strict=True):
        assert one.dtype == dtype
        one = one.double()
        if name == "log_posteriors":
            one, other = one.exp(), other.exp()
        torch.testing.assert_close(one, other, **tolerance)
    best = [hf.semi_markov_viterbi(*theta, x, **options, kernel=kernel) for kernel in ("numba", "reference")]
    assert torch.equal(best[0].states, best[1].states)
    assert torch.equal(best[0].is_start, best[1].is_start)
    leaf = x.clone().requires_grad_()
    hf.semi_markov_log_likelihood(*theta, leaf, **options).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), exact.log_posteriors.exp(), **tolerance)
