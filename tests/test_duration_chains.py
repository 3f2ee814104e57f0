"""Chains of substates give what semi-Markov models give, and what all segmentations sum to."""

from __future__ import annotations

import tracemalloc

import jax
import numpy as np
import pytest
import torch
from scipy import stats

import hmm_functional as hf
from tests.helpers.backends import LIBRARIES
from tests.helpers.models import log_of, normalise
from tests.helpers.segmentations import Segmentations

K = 3
COUNTS, PROBS = [1, 3, 2], np.array([0.4, 0.55, 0.7])


def model(seed=0, num_steps=6, forward=False):
    """log_initial, log_transition with a diagonal of -inf, log_emission."""
    rng = np.random.default_rng(seed)
    transition = np.where(np.eye(K) > 0, -np.inf, rng.normal(size=(K, K)))
    if forward:
        transition = np.where(np.eye(K, k=1) > 0, 0.0, -np.inf)
    return normalise(rng.normal(size=K)), normalise(transition), rng.normal(size=(num_steps, K))


def negative_binomial(counts, probs, least, longest):
    """log p(duration = d + 1), (K, longest), by scipy, whose p is the probability of what ends."""
    d = np.arange(1, longest + 1)
    least = np.broadcast_to(least, (K,))
    rows = [stats.nbinom.logpmf(d - m, r, 1 - q) for r, q, m in zip(counts, probs, least, strict=True)]
    return np.where(d < least[:, None], -np.inf, rows)


def likelihood(chain, emission, censored, function=hf.log_likelihood):
    final = {} if censored else {"log_final": chain.log_final}
    return function(chain.log_initial, chain.log_transition, emission[..., chain.states], **final)


def summed(posteriors, states):
    return np.stack([np.exp(posteriors)[..., states == k].sum(-1) for k in range(K)], -1)


@pytest.mark.parametrize("censored", [True, False])
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("least", [1, 2, 3, 4, [1, 4, 2]])
def test_negative_binomials_are_exact(least, forward, censored):
    """Truncated at 6 nothing within 6 steps is cut; beyond them the tail of scipy's law goes into the last."""
    initial, transition, emission = model(forward=forward)
    chain = hf.negative_binomial_chain(initial, transition, COUNTS, PROBS, least)
    lowest = np.broadcast_to(least, (K,))
    assert np.bincount(chain.states).tolist() == np.maximum(lowest, COUNTS).tolist()
    law = negative_binomial(COUNTS, PROBS, least, 7)
    law[:, 6] = [stats.nbinom.logsf(6 - m, r, 1 - q) for r, q, m in zip(COUNTS, PROBS, lowest, strict=True)]
    oracle = Segmentations(initial, transition, law, emission, censored)
    np.testing.assert_allclose(likelihood(chain, emission, censored), float(oracle.log_likelihood), rtol=1e-12)
    found = likelihood(chain, emission, censored, hf.forward_backward)
    if np.isfinite(float(oracle.log_likelihood)):
        posteriors = summed(found.log_posteriors, chain.states)
        np.testing.assert_allclose(posteriors, oracle.counts()[0].astype(float), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("censored", [True, False])
def test_long_sequences_equal_a_semi_markov_model(censored):
    initial, transition, emission = model(1, num_steps=80)
    law = negative_binomial(COUNTS, PROBS, 2, 400)
    chain = hf.negative_binomial_chain(initial, transition, COUNTS, PROBS, 2)
    expected = hf.semi_markov_forward_backward(initial, transition, law, emission, censored=censored)
    found = likelihood(chain, emission, censored, hf.forward_backward)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=1e-12)
    posteriors = summed(found.log_posteriors, chain.states)
    np.testing.assert_allclose(posteriors, np.exp(expected.log_posteriors), rtol=1e-8, atol=1e-12)


def test_durations_drawn_from_the_chain_follow_the_law():
    """The first segment of a state that then goes elsewhere, against scipy's distribution function."""
    initial, transition = np.array([0.0, -np.inf]), log_of([[0.0, 1.0], [0.0, 0.0]])
    chain = hf.negative_binomial_chain(initial, transition, [4, 1], np.array([0.6, 0.5]), 2)
    rng = np.random.default_rng(0)
    states = hf.sample(chain.log_initial, chain.log_transition, num_steps=60, rng=rng, batch_shape=(4000,))
    lasted = (chain.states[np.maximum(states, 0)] == 0).cumprod(1).sum(1)
    for d in (2, 4, 8, 12, 20):
        p = stats.nbinom.cdf(d - 2, 4, 0.4)
        assert abs((lasted <= d).mean() - p) < 5 * np.sqrt(p * (1 - p) / 4000) + 1e-9


@pytest.mark.parametrize("censored", [True, False])
def test_best_paths_where_a_segmentation_is_one_path(censored):
    initial, transition, emission = model(2)
    law = normalise(np.random.default_rng(2).normal(size=(K, 4)))
    law[0, 0] = law[1, 3] = -np.inf
    chain = hf.duration_chain(initial, transition, law)
    oracle = Segmentations(initial, transition, law, emission, censored)
    np.testing.assert_allclose(likelihood(chain, emission, censored), float(oracle.log_likelihood), rtol=1e-13)
    top, paths = oracle.best()
    best = likelihood(chain, emission, censored, hf.viterbi)
    np.testing.assert_allclose(best.log_joint, float(top), rtol=1e-13)
    states = chain.states[best.states]
    assert any(states.tolist() == [k for k, d in path for _ in range(d)] for path in paths)
    posteriors = summed(likelihood(chain, emission, censored, hf.forward_backward).log_posteriors, chain.states)
    np.testing.assert_allclose(posteriors, oracle.counts()[0].astype(float), rtol=1e-11, atol=1e-13)
    assert np.bincount(chain.states).tolist() == [4, 3, 4]  # no substates without probability


def test_best_paths_of_several_stages_are_no_better_than_segmentations():
    initial, transition, emission = model(3)
    law = negative_binomial(COUNTS, PROBS, 1, 40)
    chain = hf.negative_binomial_chain(initial, transition, COUNTS, PROBS)
    best = hf.semi_markov_viterbi(initial, transition, law, emission, censored=False)
    assert likelihood(chain, emission, False, hf.viterbi).log_joint <= best.log_joint
    single = hf.negative_binomial_chain(initial, transition, 1, PROBS, 3)
    law = negative_binomial([1] * K, PROBS, 3, 40)
    best = hf.semi_markov_viterbi(initial, transition, law, emission, censored=False)
    np.testing.assert_allclose(likelihood(single, emission, False, hf.viterbi).log_joint, best.log_joint, rtol=1e-13)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("least", [1, 3])
def test_libraries_agree(name, least):
    library = LIBRARIES[name]
    initial, transition, _ = model(4)
    chain = hf.negative_binomial_chain(initial, transition, COUNTS, PROBS, least)
    given = [library.array(x) for x in (initial, transition)]
    found = hf.negative_binomial_chain(*given, COUNTS, library.array(PROBS), least)
    np.testing.assert_array_equal(library.numpy(found.states), chain.states)
    np.testing.assert_allclose(library.numpy(found.log_initial), chain.log_initial, rtol=1e-14)
    np.testing.assert_allclose(library.numpy(found.log_final), chain.log_final, rtol=1e-12)
    weights = library.numpy(found.log_transition.log_weights)
    np.testing.assert_allclose(weights, chain.log_transition.log_weights, rtol=1e-12)
    law = negative_binomial(COUNTS, PROBS, least, 5)
    other = hf.duration_chain(*given, library.array(law))
    expected = hf.duration_chain(initial, transition, law)
    np.testing.assert_allclose(
        library.numpy(other.log_transition.log_weights), expected.log_transition.log_weights, rtol=1e-12, atol=1e-15
    )


def test_forms():
    """Bands where states lead on to the next alone and are equally long, edges elsewhere; graphs can be given."""
    initial, transition, _ = model(forward=True)
    chain = hf.negative_binomial_chain(initial, transition, 2, PROBS, 2)
    assert chain.log_transition.offsets == (0, 1)
    assert chain.log_transition.log_bands.shape == (2, 6)
    assert isinstance(hf.negative_binomial_chain(initial, transition, COUNTS, PROBS).log_transition, hf.Sparse)
    banded = hf.Banded(np.zeros((1, K)), (1,))
    same = hf.negative_binomial_chain(initial, banded, 2, PROBS, 2).log_transition
    np.testing.assert_array_equal(same.log_bands, chain.log_transition.log_bands)
    assert isinstance(hf.negative_binomial_chain(*model()[:2], 2, PROBS, 2).log_transition, hf.Sparse)
    alone = hf.duration_chain(np.zeros(1), np.full((1, 1), -np.inf), np.zeros((1, 1)))
    found = [likelihood(alone, np.ones((n, 1)), False) for n in (1, 2)]
    np.testing.assert_array_equal(found, [1.0, -np.inf])


@pytest.mark.parametrize("least", [1, 2, 4])
def test_gradients_flow(least):
    initial, transition, emission = (torch.from_numpy(x) for x in model(5, num_steps=5))
    probs = torch.from_numpy(PROBS).requires_grad_()

    def of_probs(probs, initial):
        chain = hf.negative_binomial_chain(initial, transition, COUNTS, probs, least)
        return likelihood(chain, emission, False)

    assert torch.autograd.gradcheck(of_probs, (probs, initial.requires_grad_()))
    law = torch.from_numpy(normalise(np.random.default_rng(0).normal(size=(K, 4)))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda law: likelihood(hf.duration_chain(initial.detach(), transition, law), emission, True), (law,)
    )


def test_under_jit():
    """Where no value can be read every change of state has its edges; the likelihood is the same."""
    initial, transition, emission = model(6, forward=True)
    law = negative_binomial(COUNTS, PROBS, 1, 4)
    law[1, 0] = -np.inf

    @jax.jit
    def both(initial, transition, probs, law, emission):
        chains = (
            hf.negative_binomial_chain(initial, transition, COUNTS, probs, 2),
            hf.duration_chain(initial, transition, law),
        )
        return [likelihood(chain, emission, False) for chain in chains]

    expected = (
        hf.negative_binomial_chain(initial, transition, COUNTS, PROBS, 2),
        hf.duration_chain(initial, transition, law),
    )
    for found, chain in zip(both(initial, transition, PROBS, law, emission), expected, strict=True):
        np.testing.assert_allclose(found, likelihood(chain, emission, False), rtol=1e-12)


ERRORS = {
    "finite diagonal": ({"log_transition": np.zeros((K, K))}, ValueError, "expected -inf on the diagonal"),
    "count of 0": ({"total_count": [1, 0, 2]}, ValueError, "total_count: expected integers of at least 1"),
    "two counts": ({"total_count": [1, 2]}, ValueError, "total_count: expected one integer or 3"),
    "fractions": ({"total_count": [1.5, 1.0, 2.0]}, ValueError, "total_count: expected a 1-D list"),
    "probability 1": ({"probs": np.array([0.5, 1.0, 0.5])}, ValueError, r"probs: expected numbers in \[0, 1\)"),
    "shape": ({"probs": np.zeros(2)}, ValueError, r"probs: expected shape \(K,\)"),
    "matrix": ({"log_transition": np.zeros((2, 2))}, ValueError, "log_transition: expected"),
    "libraries": ({"log_transition": torch.zeros(K, K)}, TypeError, "numpy"),
    "low rank": ({"log_transition": hf.LowRank(np.zeros((K, 1)), np.zeros((1, K)))}, TypeError, "got LowRank"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    changes, error, words = ERRORS[name]
    initial, transition, _ = model()
    given = {"log_initial": initial, "log_transition": transition, "total_count": COUNTS, "probs": PROBS, **changes}
    with pytest.raises(error, match=words):
        hf.negative_binomial_chain(**given)


def test_many_states_take_memory_of_their_edges():
    """A ring of 1000 states of 20 substates: 40 000 edges, not substates times moves."""
    num_states, longest = 1000, 20
    ring = hf.Sparse(np.zeros(num_states), np.arange(num_states), np.roll(np.arange(num_states), -1), num_states)
    law = np.full((num_states, longest), -np.log(longest))
    tracemalloc.start()
    chain = hf.duration_chain(np.full(num_states, -np.log(num_states)), ring, law)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(chain.log_transition.log_weights) == num_states * (2 * longest - 1)
    assert peak < 12e6


def test_a_state_without_durations_is_refused():
    law = np.zeros((K, 2))
    law[1] = -np.inf
    with pytest.raises(ValueError, match="state 1 has none"):
        hf.duration_chain(*model()[:2], law)


def test_under_vmap():
    """A batch of models, each of its own law, is what they are one by one."""
    initial, transition, emission = (torch.from_numpy(x) for x in model(7))
    laws = torch.randn(2, K, 4, dtype=torch.float64).log_softmax(-1)
    probs = torch.rand(2, K, dtype=torch.float64)

    def both(law, probs):
        chains = (
            hf.duration_chain(initial, transition, law),
            hf.negative_binomial_chain(initial, transition, COUNTS, probs),
        )
        return torch.stack([likelihood(chain, emission, False) for chain in chains])

    torch.testing.assert_close(
        torch.vmap(both)(laws, probs), torch.stack([both(*pair) for pair in zip(laws, probs, strict=True)])
    )
