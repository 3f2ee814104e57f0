"""Transitions of speech, chains of substates, transitions that depend on inputs: what holds of all of them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import hmm_functional as hf
from property_tests.strategies import seeds
from property_tests.test_laws_semi_markov import logs
from pytorch_hmm import GaussianEmission, InputDrivenHMM
from tests.helpers.segmentations import Segmentations

LIKE = np.zeros(1)
probabilities = st.floats(0.0, 1.0)


def assert_stochastic(log_transition, self_loop=None, but=0):
    """Rows sum to one; the diagonal is as stated, but for the last rows."""
    p = np.exp(log_transition)
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-12)
    if self_loop is not None:
        count = p.shape[-1] - but
        diagonal = np.diagonal(p, axis1=-2, axis2=-1)[..., :count]
        expected = np.broadcast_to(self_loop, p.shape[-1])[:count]
        np.testing.assert_allclose(diagonal, np.broadcast_to(expected, diagonal.shape), rtol=1e-13)


@given(st.integers(1, 7), probabilities, st.lists(probabilities, max_size=3), st.booleans(), seeds)
def test_forward_models_keep_their_self_loops(num_states, self_loop, shares, cyclic, seed):
    total = max(1.0, sum(shares))
    skips = [(1.0 - self_loop) * s / total for s in shares]
    cyclic &= num_states > len(skips) + 1
    assert_stochastic(
        hf.left_to_right(num_states, self_loop=self_loop, skip=skips, cyclic=cyclic, like=LIKE),
        self_loop,
        0 if cyclic else 1,
    )
    rng = np.random.default_rng(seed)
    means, count = 3.0 + rng.exponential(20.0, size=num_states), int(rng.integers(1, 4))
    found = hf.from_durations(means, states_per_phone=count, skip_share=self_loop, like=LIKE)
    assert_stochastic(found, np.repeat(1 - count / means, count), 1)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), seeds)
def test_hierarchies_keep_their_self_loops(sizes, seed):
    rng = np.random.default_rng(seed)
    sizes, stay = [*sizes, 2], rng.random(sum(sizes) + 2)
    units = rng.dirichlet(np.ones(len(sizes)), size=len(sizes)) * ~np.diag(np.array(sizes) == 1)
    units /= units.sum(1, keepdims=True)
    found = hf.hierarchical(sizes, units, self_loop=stay, like=LIKE)
    assert_stochastic(found.log_transition, stay)
    leaves = np.exp(found.log_transition)[np.ix_(found.last, found.first)]
    among = ~(found.last[:, None] == found.first[None, :])
    np.testing.assert_allclose(leaves[among], ((1 - stay[found.last])[:, None] * units)[among], rtol=1e-12, atol=1e-300)


@given(seeds, st.integers(1, 5), st.sampled_from([1.0, 30.0]))
def test_prosody_adds_up(seed, num_states, scale):
    """Features one after the other do what their sum does; none do nothing; rows sum to one."""
    rng = np.random.default_rng(seed)
    base = logs(rng, num_states, num_states, zeros=0.3)
    base[np.arange(num_states), rng.integers(num_states, size=num_states)] = 0.0
    base -= np.logaddexp.reduce(base, axis=-1, keepdims=True)
    x, y = scale * rng.normal(size=(2, 4, 2))
    weights = rng.normal(size=(num_states, 2))
    first = hf.prosodic(base, x, weights)
    assert_stochastic(first)
    both = hf.prosodic(first, y, weights)
    np.testing.assert_allclose(both, hf.prosodic(base, x + y, weights), rtol=1e-10, atol=1e-10)
    none = hf.prosodic(base, 0 * x, weights)
    np.testing.assert_allclose(none, np.broadcast_to(base, none.shape), rtol=1e-12, atol=1e-14)


@given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_duration_chains_are_semi_markov_models(seed, num_states, num_steps, longest, censored, zeros):
    rng = np.random.default_rng(seed)
    initial, transition = logs(rng, num_states, zeros=zeros), logs(rng, num_states, num_states, zeros=zeros)
    np.fill_diagonal(transition, -np.inf)
    duration = logs(rng, num_states, longest, zeros=zeros)
    duration[np.arange(num_states), rng.integers(longest, size=num_states)] = np.log(0.3)  # of no sum in particular
    emission = rng.normal(size=(num_steps, num_states)) * 10
    oracle = Segmentations(initial, transition, duration, emission, censored)
    chain = hf.duration_chain(initial, transition, duration)
    args = chain.log_initial, chain.log_transition, emission[:, chain.states]
    final = {} if censored else {"log_final": chain.log_final}
    np.testing.assert_allclose(hf.log_likelihood(*args, **final), float(oracle.log_likelihood), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(hf.viterbi(*args, **final).log_joint, float(oracle.best()[0]), rtol=1e-11, atol=1e-11)


@given(seeds, st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_negative_binomial_chains_are_semi_markov_models(seed, num_states, num_steps, censored):
    rng = np.random.default_rng(seed)
    counts, least = rng.integers(1, 5, size=(2, num_states))
    probs = rng.random(num_states)
    initial, transition = logs(rng, num_states), logs(rng, num_states, num_states)
    np.fill_diagonal(transition, -np.inf)
    emission = rng.normal(size=(num_steps, num_states))
    law = np.full((num_states, num_steps + 1), -np.inf)
    for k in range(num_states):
        past = np.arange(1, num_steps + 1) - least[k]
        law[k, :-1] = np.where(past < 0, -np.inf, stats.nbinom.logpmf(past, counts[k], 1 - probs[k]))
        law[k, -1] = stats.nbinom.logsf(num_steps - least[k], counts[k], 1 - probs[k])
    oracle = Segmentations(initial, transition, law, emission, censored)
    chain = hf.negative_binomial_chain(initial, transition, counts, probs, least)
    assert len(chain.states) == np.maximum(counts, least).sum()
    args = chain.log_initial, chain.log_transition, emission[:, chain.states]
    final = {} if censored else {"log_final": chain.log_final}
    np.testing.assert_allclose(hf.log_likelihood(*args, **final), float(oracle.log_likelihood), rtol=1e-10, atol=1e-10)


@st.composite
def regressions(draw):
    """Expected pairs, inputs on any scale (one at times constant), and any start; pairs at times 0 or 1."""
    num_states, dim, size = draw(st.integers(1, 4)), draw(st.integers(0, 3)), draw(st.integers(0, 20))
    rng = np.random.default_rng(draw(seeds))
    pairs = rng.gamma(draw(st.sampled_from([0.1, 1.0])), size=(size, num_states, num_states))
    if draw(st.booleans()):
        pairs = (pairs == pairs.max(axis=(1, 2), keepdims=True)).astype(float)
    inputs = rng.normal(size=(size + 1, dim)) * 10.0 ** rng.integers(-3, 4)
    if dim and draw(st.booleans()):
        inputs[:, 0] = 1.0
    size_of = max(1.0, np.abs(inputs).max(initial=0.0))
    weights, biases = rng.normal(size=(num_states, num_states, dim)) / size_of, rng.normal(size=(num_states,) * 2)
    biases[rng.random(biases.shape) < draw(st.sampled_from([0.0, 0.3]))] = -np.inf
    pairs[:, np.isinf(biases)] = 0.0
    return pairs, inputs, weights, biases


@given(regressions(), st.sampled_from([0.0, 0.5]), st.booleans(), seeds)
def test_the_m_step_never_lowers_what_it_climbs(problem, ridge, has_fixed, seed):
    pairs, inputs, weights, biases = problem
    rng = np.random.default_rng(seed)
    fixed = hf.LogisticTransitions(*(rng.random(x.shape) < 0.4 for x in (weights, biases))) if has_fixed else None

    def value(weights, biases):
        scores = biases + np.einsum("ijp,np->nij", weights, inputs[1:])
        log_p = scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True, initial=-np.inf)
        return np.where(pairs > 0, pairs * np.where(pairs > 0, log_p, 0.0), 0.0).sum() - ridge / 2 * (weights**2).sum()

    with np.errstate(invalid="ignore"):
        found = hf.maximize_logistic_transitions(*problem, ridge=ridge, fixed=fixed)
        before, after = value(weights, biases), value(*found)
    assert after >= before - 1e-10 * max(1.0, abs(before))
    assert np.isfinite(found.weights).all()
    np.testing.assert_array_equal(np.isinf(found.biases), np.isinf(biases))
    if fixed is not None:
        for mask, old, new in zip(fixed, (weights, biases), found, strict=True):
            np.testing.assert_array_equal(new[mask], old[mask])


@given(regressions(), seeds)
def test_what_is_common_to_a_row_changes_nothing(problem, seed):
    _, inputs, weights, biases = problem
    rng = np.random.default_rng(seed)
    given_ = weights + rng.normal(size=weights[:, :1].shape) / 100, biases + rng.normal(size=biases[:, :1].shape)
    found, expected = hf.logistic_transitions(inputs, *given_), hf.logistic_transitions(inputs, weights, biases)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(inputs).max(initial=0.0)))


@given(seeds, st.integers(1, 3), st.integers(1, 8), st.sampled_from([0.0, 1.0]))
def test_em_of_input_driven_models_is_monotone(seed, num_states, num_steps, ridge):
    torch.manual_seed(seed)
    model = InputDrivenHMM(num_states, GaussianEmission(num_states, 1), 2, ridge=ridge).double()
    model.transition_weights = torch.randn(num_states, num_states, 2)
    x, context = torch.randn(3, num_steps, 1).double(), torch.randn(3, num_steps, 2).double()
    lengths = torch.randint(1, num_steps + 1, (3,))
    report = model.fit(x, lengths, context=context, init="keep", num_iterations=8, tolerance=0, variance_floor=0.1)
    assert (np.diff(report.history) > -1e-8).all()
    expected = model(x, lengths, context).sum() - ridge / 2 * model.transition_weights.square().sum()
    np.testing.assert_allclose(report.history[-1], expected.item(), rtol=1e-10)
