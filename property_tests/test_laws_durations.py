"""Durations that are learned and filtered: equal to all segmentations, never worse, the same in every chunking."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hmm_functional as hf
from hmm_functional import durations, emissions, learning
from hmm_functional.learning import HMMParameters, Priors
from property_tests.strategies import cuts, seeds
from tests.helpers.backends import LIBRARIES
from tests.helpers.segmentations import Segmentations

NUM_SYMBOLS = 3
JAX_SIZES = (4, 2, 3)
"""Steps, states and durations, where a library compiles for every shape."""
JAX_LAW = durations.Gamma(JAX_SIZES[2])


def logs(rng, *shape, zeros=0.0):
    p = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])
    p[rng.random(p.shape) < zeros] = 0.0
    with np.errstate(divide="ignore"):
        return np.log(p)


def between_segments(rng, num_states):
    """No state follows itself."""
    p = rng.random((num_states, num_states)) * (1 - np.eye(num_states))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(p / np.maximum(p.sum(-1, keepdims=True), 1e-300))


class Law(NamedTuple):
    """A family of durations and some parameters."""

    family: Any
    parameters: Any


def law(name, rng, num_states, longest, least=1):
    if name == "categorical":
        family = durations.Categorical(longest, least)
        log_probs = logs(rng, num_states, longest)
        log_probs[:, : least - 1] = -np.inf
        log_probs = log_probs - np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
        return Law(family, durations.CategoricalParameters(log_probs))
    if name == "uniform":
        return Law(durations.Uniform(longest, least), durations.UniformParameters(np.zeros(num_states)))
    ranges = {
        "geometric": [(0.02, 0.98)],
        "poisson": [(0.05, 8.0)],
        "negative_binomial": [(0.1, 20.0), (0.02, 0.98)],
        "gamma": [(0.1, 20.0), (0.05, 3.0)],
        "gaussian": [(-3.0, 9.0), (0.1, 30.0)],
    }[name]
    title = "".join(word.capitalize() for word in name.split("_"))
    made = getattr(durations, f"{title}Parameters")
    parameters = made(*(rng.uniform(*ends, size=num_states) for ends in ranges))
    return Law(getattr(durations, title)(longest, least), parameters)


NAMES = ("categorical", "geometric", "poisson", "negative_binomial", "gamma", "gaussian", "uniform")
LEARNED = tuple(name for name in NAMES if name != "uniform")


def mean_log_law(counts, log_probs):
    return (counts * np.where(counts > 0, log_probs, 0.0)).sum(-1) / np.maximum(counts.sum(-1), 1e-300)


@pytest.mark.parametrize("name", LEARNED)
@given(
    seed=seeds,
    longest=st.integers(1, 20),
    kind=st.sampled_from(["random", "sparse", "one", "last", "first", "samples"]),
    scale=st.sampled_from([1e-9, 1.0, 1e12]),
)
def test_an_m_step_is_never_worse_than_what_there_was(name, seed, longest, kind, scale):
    rng, num_states = np.random.default_rng(seed), 4
    least = int(rng.integers(1, longest + 1))
    family, old = law(name, rng, num_states, longest, least)
    counts = rng.gamma(0.7, size=(num_states, longest))
    if kind == "sparse":
        counts = counts * (rng.random(counts.shape) < 0.3)
    elif kind == "samples":
        counts = np.stack([rng.multinomial(9, np.exp(p) / np.exp(p).sum()) for p in family.log_prob(old)]).astype(float)
    elif kind != "random":
        place = {"first": np.full(num_states, least - 1), "last": np.full(num_states, longest - 1)}
        place = place.get(kind, rng.integers(least - 1, longest, size=num_states))
        counts = np.eye(longest)[place]
    counts[:, : least - 1] = 0.0
    counts[rng.integers(num_states)] = 0.0
    found = family.m_step(counts * scale, old)
    log_probs = family.log_prob(found)
    assert not np.isnan(log_probs).any()
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, rtol=1e-12)
    before, after = (mean_log_law(counts, p) for p in (family.log_prob(old), log_probs))
    assert (after >= before - 1e-10).all()
    again = mean_log_law(counts, family.log_prob(family.m_step(counts * scale, found)))
    np.testing.assert_allclose(again, after, rtol=0, atol=1e-7)  # it was the maximum
    for x, y in zip(found, old, strict=True):
        is_unused = counts.sum(-1) == 0
        assert (x[is_unused] == y[is_unused]).all()


class Data(NamedTuple):
    """A model of symbols and two sequences."""

    parameters: HMMParameters
    duration: Any
    symbols: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray
    censored: bool


@st.composite
def data_sets(draw, *, sizes=None, names=NAMES, least_states=1):
    if sizes is None:
        sizes = [draw(st.integers(low, high)) for low, high in ((1, 5), (least_states, 3), (1, 6))]
    num_steps, num_states, longest = sizes
    rng = np.random.default_rng(draw(seeds))
    family, own = law(draw(st.sampled_from(names)), rng, num_states, longest)
    emission = emissions.CategoricalParameters(logs(rng, num_states, NUM_SYMBOLS))
    # one state may follow itself
    transition = between_segments(rng, num_states) if num_states > 1 else np.zeros((1, 1))
    parameters = HMMParameters(logs(rng, num_states), transition, emission, own)
    lengths = rng.integers(1, num_steps + 1, size=2)
    lengths[0] = num_steps
    weights = np.array([0.7, 2.5])
    symbols = rng.integers(NUM_SYMBOLS, size=(2, num_steps))
    return Data(parameters, family, symbols, lengths, weights, draw(st.booleans()))


def completed(ends, log_duration):
    """Of last segments (K, D) seen so long, each duration they may have, by its probability given that."""
    p, found = np.exp(log_duration), np.zeros(log_duration.shape)
    for k, seen in np.argwhere(ends > 0):
        found[k, seen:] += ends[k, seen] * p[k, seen:] / p[k, seen:].sum()
    return found


@functools.cache
def e_step(name, censored):
    """`expected_statistics` with lengths and weights; compiled on JAX, whose examples have one family and shape."""

    def call(parameters, symbols, lengths, weights, family=JAX_LAW):
        options = {"lengths": lengths, "weights": weights, "duration": family, "censored": censored}
        return learning.expected_statistics(parameters, emissions.Categorical(), symbols, **options)

    return jax.jit(call) if name == "jax" else call


def oracle_of(problem, emission, i, log_duration):
    log_initial, log_transition, _, _ = problem.parameters
    return Segmentations(log_initial, log_transition, log_duration, emission[: problem.lengths[i]], problem.censored)


@pytest.mark.parametrize("name", [n for n in LIBRARIES if n != "strict"])
@given(data=st.data())
def test_expected_statistics_are_those_of_all_segmentations(name, data):
    library = LIBRARIES[name]
    problem = data.draw(data_sets(sizes=JAX_SIZES, names=("gamma",)) if name == "jax" else data_sets())
    scores = problem.parameters.emission.log_probs.T[problem.symbols]
    log_duration = problem.duration.log_prob(problem.parameters.duration)
    expected = None
    for i, weight in enumerate(problem.weights):
        oracle = oracle_of(problem, scores[i], i, log_duration)
        posteriors, lasted, moves, ends = (x.astype(float) for x in oracle.counts())
        if problem.censored:
            lasted = lasted + completed(ends, log_duration)
        own = problem.symbols[i, : problem.lengths[i]]
        symbols = posteriors.T @ np.eye(NUM_SYMBOLS)[own]
        likelihood = float(oracle.log_likelihood) if np.isfinite(oracle.log_likelihood) else -np.inf
        parts = [weight * x for x in (likelihood, posteriors[0], moves, symbols, lasted)]
        expected = parts if expected is None else [a + b for a, b in zip(expected, parts, strict=True)]
    given_ = [library.array(x) for x in (problem.symbols, problem.lengths, problem.weights)]
    own = [] if name == "jax" else [problem.duration]
    found = e_step(name, problem.censored)(learning.each(library.array, problem.parameters), *given_, *own)
    (symbols,) = found.emission
    for one, other in zip((*found[:3], symbols, found.durations), expected, strict=True):
        np.testing.assert_allclose(library.numpy(one), other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@given(problem=data_sets(names=LEARNED, least_states=2))  # alike durations, and one state alone, make equals
def test_along_best_segmentations_they_are_those_of_the_best(name, problem):
    library = LIBRARIES[name]
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(*problem.symbols.shape, len(problem.parameters.log_initial)))  # without ties
    log_duration = problem.duration.log_prob(problem.parameters.duration)
    num_states, longest = log_duration.shape
    total, starts = 0.0, np.zeros(num_states)
    moves, lasted = np.zeros((num_states, num_states)), np.zeros((num_states, longest))
    frames = np.zeros(num_states)
    for i, weight in enumerate(problem.weights):
        oracle = oracle_of(problem, scores[i], i, log_duration)
        top, paths = oracle.best()
        total += weight * float(top)
        if np.isneginf(top):
            continue
        path = paths[0]
        starts[path[0][0]] += weight
        for (a, _), (b, _) in itertools.pairwise(path):
            moves[a, b] += weight
        for state, duration in path:
            frames[state] += weight * duration
        for state, duration in path[:-1]:
            lasted[state, duration - 1] += weight
        ends = np.zeros((num_states, longest))
        ends[path[-1][0], path[-1][1] - 1] = weight
        lasted += completed(ends, log_duration) if problem.censored else ends

    class Scores:
        """A family whose scores are the observations, and whose statistics are counts of frames."""

        def log_prob(self, observations, parameters):
            return observations

        def statistics(self, observations, posteriors, parameters):
            return posteriors.sum(0).sum(0)

    found = learning.expected_statistics(
        learning.each(library.array, problem.parameters),
        Scores(),
        library.array(scores),
        lengths=library.array(problem.lengths),
        weights=library.array(problem.weights),
        duration=problem.duration,
        censored=problem.censored,
        method="viterbi",
    )
    for one, other in zip(found, (total, starts, moves, frames, lasted), strict=True):
        np.testing.assert_allclose(library.numpy(one), other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(seed=seeds, censored=st.booleans(), method=st.sampled_from(["em", "viterbi"]), has_labels=st.booleans())
def test_em_never_loses(name, seed, censored, method, has_labels):
    """Ragged sequences with weights, some states known, and priors."""
    rng, num_states, longest = np.random.default_rng(seed), 3, 6
    family, own = law(name, rng, num_states, longest)
    if name == "categorical":
        family = durations.Categorical(longest, concentration=1.5)
    emission = emissions.PoissonParameters(rng.uniform(0.5, 6.0, size=(num_states, 2)))
    model = HMMParameters(logs(rng, num_states), between_segments(rng, num_states), emission, own)
    x = rng.poisson(rng.uniform(0.5, 6.0, size=(3, 12, 1)), size=(3, 12, 2)).astype(float)
    options = {
        "lengths": np.array([12, 5, 9]),
        "weights": np.array([1.0, 2.0, 0.3]),
        "duration": family,
        "censored": censored,
        "method": method,
        "priors": Priors(1.5, 1.2),
    }
    if has_labels:
        options["is_allowed"] = np.ones((3, 12, num_states), bool)
        options["is_allowed"][:, 4, 1:] = False
    values, priors = [], Priors(1.5, 1.2)
    for _ in range(6):
        density = float(learning.log_prior(model, emissions.Poisson(), priors, family))
        model, value = learning.em_step(model, emissions.Poisson(), x, **options)
        values.append(float(value) + density)
    assert np.isfinite(values).all()
    assert (np.diff(values) >= -1e-8).all()


@pytest.mark.parametrize(("name", "censored"), [(n, i % 2 == 0) for i, n in enumerate(NAMES)])
def test_an_em_step_is_the_same_on_every_library(name, censored):
    rng, num_states = np.random.default_rng(3), 3
    family, own = law(name, rng, num_states, 6, 2)
    emission = emissions.PoissonParameters(rng.uniform(0.5, 6.0, size=(num_states, 2)))
    model = HMMParameters(logs(rng, num_states), between_segments(rng, num_states), emission, own)
    x = rng.poisson(3.0, size=(3, 12, 2)).astype(float)
    options = {"duration": family, "censored": censored}
    found = {}
    # compiling takes seconds: JAX has the E-step above and the M-steps of tests/test_durations.py besides
    libraries = ["numpy", "torch"] + ["jax"] * (name in ("poisson", "negative_binomial"))
    for library in libraries:
        one = LIBRARIES[library]
        given_ = learning.each(one.array, model), emissions.Poisson(), one.array(x)
        step, value = learning.em_step(*given_, lengths=one.array(np.array([12, 7, 9])), **options)
        laws = family.log_prob(step.duration)
        found[library] = [one.numpy(y) for y in (value, *step[:2], *step.emission, laws)]
    for library in libraries[1:]:
        for one, other in zip(found[library], found["numpy"], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


# filters and streams


def filtered_by_enumeration(parts, emission):
    """Filtered states (T, K), expected remaining steps (T, K), and p(z_t, r more steps) at the end, (K, D)."""
    num_steps, num_states = emission.shape
    log_duration = parts[2]
    p = np.exp(log_duration)
    rows, left = np.zeros((num_steps, num_states)), np.zeros((num_steps, num_states))
    joint = np.zeros(log_duration.shape)
    for t in range(num_steps):
        ends = Segmentations(*parts, emission[: t + 1], True).counts()[3].astype(float)
        rows[t] = ends.sum(-1)
        joint = np.zeros(log_duration.shape)
        for k, seen in np.argwhere(ends > 0):
            rest = p[k, seen:] / p[k, seen:].sum()
            joint[k, : len(rest)] += ends[k, seen] * rest
        with np.errstate(invalid="ignore"):
            mean = joint @ np.arange(joint.shape[1]) / joint.sum(-1)
        left[t] = np.where(joint.sum(-1) > 0, mean, 0.0)
    return rows, left, joint


@st.composite
def streams(draw, *, sizes=None):
    num_steps, num_states, longest = [draw(st.integers(1, high)) for high in (5, 3, 6)] if sizes is None else sizes
    zeros = draw(st.sampled_from([0.0, 0.2]))
    rng = np.random.default_rng(draw(seeds))
    parts = [logs(rng, *shape, zeros=zeros) for shape in ((num_states,), (num_states,) * 2, (num_states, longest))]
    emission = rng.normal(size=(num_steps, num_states)) * draw(st.sampled_from([1.0, 30.0, 1e3]))
    if draw(st.booleans()):
        emission[rng.integers(num_steps)] = -np.inf  # impossible from here on
    return parts, emission


COMPILED_STEP = jax.jit(hf.semi_markov_stream_step)


@pytest.mark.parametrize("name", [n for n in LIBRARIES if n != "strict"])
@given(data=st.data(), censored=st.booleans())
def test_filters_and_streams_are_those_of_all_segmentations(name, data, censored):
    library = LIBRARIES[name]
    sizes = JAX_SIZES if name == "jax" else None
    parts, emission = data.draw(streams(sizes=sizes))
    rows, left, joint = filtered_by_enumeration(parts, emission)
    given_ = [library.array(x) for x in parts]
    state = hf.semi_markov_stream_init(*given_)
    found = []
    begin = 0
    step = COMPILED_STEP if name == "jax" else hf.semi_markov_stream_step
    for size in [len(emission)] if name == "jax" else data.draw(cuts(len(emission))):
        chunk = library.array(emission[begin : begin + size])
        state, some = step(state, chunk)
        found.append([library.numpy(x) for x in some])
        begin += size
    filtered, remaining = (np.concatenate(x) for x in zip(*found, strict=True))
    tolerance = {"rtol": 1e-9, "atol": 1e-11}
    np.testing.assert_allclose(np.exp(filtered), rows, **tolerance)
    is_clear = rows > 1e-200  # of what has no weight here, all that the library keeps says something
    np.testing.assert_allclose(np.where(is_clear, remaining, 0.0), np.where(is_clear, left, 0.0), **tolerance)
    np.testing.assert_allclose(np.exp(library.numpy(library.call("semi_markov_remaining", state))), joint, **tolerance)
    whole = library.call("semi_markov_forward", *given_, library.array(emission), censored=censored)
    np.testing.assert_allclose(np.exp(library.numpy(whole.log_filtered)), rows, **tolerance)
    oracle = Segmentations(*parts, emission, censored)
    scale = max(1.0, float(np.abs(emission[np.isfinite(emission)]).max(initial=1.0)))
    expected = np.float64(oracle.log_likelihood)
    np.testing.assert_allclose(library.numpy(whole.log_likelihood), expected, rtol=1e-12, atol=1e-12 * scale)


@given(seed=seeds, lengths=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_filters_of_batches_are_those_of_each_sequence(seed, lengths):
    rng = np.random.default_rng(seed)
    parts = [logs(rng, 2), logs(rng, 2, 2), logs(rng, 2, 3)]
    emission = rng.normal(size=(2, 5, 2))
    padded = emission.copy()
    for i, end in enumerate(lengths):
        padded[i, end:] = np.nan
    found = hf.semi_markov_forward(*parts, padded, lengths=lengths)
    for i, end in enumerate(lengths):
        rows = filtered_by_enumeration(parts, emission[i, :end])[0]
        np.testing.assert_allclose(np.exp(found.log_filtered[i, :end]), rows, rtol=1e-10)
        assert (found.log_filtered[i, end:] == -np.inf).all()
    # parameters of their own for each sequence, and more of them than of sequences
    own = (logs(rng, 3, 1, 2), logs(rng, 3, 1, 1, 2, 2), logs(rng, 2, 2, 3)[None])
    many = hf.semi_markov_forward(*own, emission)
    assert many.log_filtered.shape == (3, 2, 5, 2)
    one = hf.semi_markov_forward(own[0][2, 0], own[1][2, 0, 0], own[2][0, 1], emission[1])
    np.testing.assert_allclose(many.log_filtered[2, 1], one.log_filtered, rtol=1e-12)
    np.testing.assert_allclose(many.log_likelihood[2, 1], one.log_likelihood, rtol=1e-12)


def test_parallel_streams_are_single_ones():
    rng = np.random.default_rng(0)
    parts = [logs(rng, 2), logs(rng, 2, 2), logs(rng, 2, 3)]
    x = rng.normal(size=(4, 7, 2))
    state = hf.semi_markov_stream_init(*parts, batch_shape=(4,))
    none, empty = hf.semi_markov_stream_step(state, x[:, :0])
    assert empty.log_filtered.shape == empty.expected_remaining.shape == (4, 0, 2)
    state, first = hf.semi_markov_stream_step(none, x[:, :3])
    state, rest = hf.semi_markov_stream_step(state, x[:, 3:])
    for i in range(4):
        _, own = hf.semi_markov_stream_step(hf.semi_markov_stream_init(*parts), x[i])
        for part, more, alone in zip(first, rest, own, strict=True):
            np.testing.assert_allclose(np.concatenate([part[i], more[i]]), alone, rtol=1e-12)
    with pytest.raises(ValueError, match=r"batch axes must broadcast .* log_emission_chunk \(3,\), state \(4,\)"):
        hf.semi_markov_stream_step(state, x[:3])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((np.zeros(2), np.zeros((2, 2)), np.zeros((3, 4))), r"log_duration: .* with K = 2 as in log_initial, got \(3"),
        ((np.zeros(2), np.zeros((2, 2)), np.zeros((2, 0))), "log_duration: expected durations of at least one step"),
    ],
)
def test_what_is_no_stream_is_named(parts, message):
    with pytest.raises(ValueError, match=message):
        hf.semi_markov_stream_init(*parts)


def test_wide_scores_are_filtered_wide():
    parts = [torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log(), torch.zeros(2, 1)]
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    found = hf.semi_markov_forward(*parts, x).log_filtered
    assert found.dtype == torch.float64
    expected = hf.semi_markov_forward(*(p.double() for p in parts), x).log_filtered
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
