"""Transitions of speech: rows of sum one, self-loops as stated, and the aliases of older names."""

from __future__ import annotations

import itertools
import tracemalloc

import jax
import numpy as np
import pytest
import torch

import hmm_functional as hf
import pytorch_hmm
from tests.helpers.backends import LIBRARIES
from tests.helpers.models import log_of


def dense_of(transition, num_states):
    """Probabilities of any form of transition, (K, K) or (T-1, K, K), read off by hand."""
    if isinstance(transition, hf.Banded):
        bands = np.asarray(transition.log_bands)
        found = np.zeros((*bands.shape[:-2], num_states, num_states))
        for o, offset in enumerate(transition.offsets):
            for i in range(num_states):
                if 0 <= i + offset < num_states:
                    found[..., i, i + offset] = np.exp(bands[..., o, i])
        return found
    if isinstance(transition, hf.Sparse):
        weights = np.asarray(transition.log_weights)
        found = np.zeros((*weights.shape[:-1], num_states, num_states))
        found[..., np.asarray(transition.sources), np.asarray(transition.targets)] = np.exp(weights)
        return found
    return np.exp(np.asarray(transition))


LIKE = np.zeros(1)


def test_left_to_right_with_long_skips():
    found = dense_of(hf.left_to_right(5, self_loop=0.5, skip=(0.2, 0.1), like=LIKE), 5)
    expected = [
        [0.5, 0.2, 0.2, 0.1, 0.0],
        [0.0, 0.5, 0.2, 0.2, 0.1],
        [0.0, 0.0, 0.5, 0.3, 0.2],
        [0.0, 0.0, 0.0, 0.5, 0.5],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("skip", [0.0, 0.2, (0.2, 0.1)])
def test_cycles_close(skip):
    found = dense_of(hf.left_to_right(4, self_loop=0.5, skip=skip, cyclic=True, like=LIKE), 4)
    first = np.zeros(4)
    skips = np.atleast_1d(skip)
    first[[0, 1]] = 0.5, 0.5 - skips.sum()
    first[2 : 2 + len(skips)] = skips
    np.testing.assert_allclose(found, [np.roll(first, i) for i in range(4)], rtol=1e-14, atol=0)
    banded = hf.left_to_right(4, self_loop=0.5, skip=skip, cyclic=True, structured=True, like=LIKE)
    np.testing.assert_allclose(dense_of(banded, 4), found, rtol=1e-14, atol=0)


def test_mean_durations_are_kept():
    """A state that stays with p lasts sum over d of d p^(d-1) (1 - p) frames."""
    means = [6.0, 2.0, 11.0]
    found = dense_of(hf.from_durations(means, states_per_phone=2, cyclic=True, like=LIKE), 6)
    d = np.arange(1, 2000)
    for i in range(6):
        p = found[i, i]
        np.testing.assert_allclose((d * p ** (d - 1) * (1 - p)).sum(), means[i // 2] / 2, rtol=1e-10)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-14)
    seconds = dense_of(hf.from_durations([0.03, 0.01, 0.055], states_per_phone=2, frame_shift=0.005, like=LIKE), 6)
    np.testing.assert_allclose(seconds[:5], found[:5], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(seconds[5], np.eye(6)[5])
    skipping = dense_of(hf.from_durations(means, skip_share=0.25, like=LIKE), 3)
    np.testing.assert_allclose(skipping, [[5 / 6, 1 / 8, 1 / 24], [0, 0.5, 0.5], [0, 0, 1]], rtol=1e-14)
    banded = hf.from_durations(means, skip_share=0.25, structured=True, like=LIKE)
    assert banded.offsets == (0, 1, 2)
    np.testing.assert_allclose(dense_of(banded, 3), skipping, rtol=1e-14)


def test_hierarchy():
    units = [[0.0, 0.5, 0.5], [0.25, 0.5, 0.25], [1.0, 0.0, 0.0]]
    found = hf.hierarchical([3, 2, 1], units, self_loop=[0.5, 0.6, 0.7, 0.8, 0.9, 0.1], like=LIKE)
    expected = [
        [0.5, 0.5, 0, 0, 0, 0],
        [0, 0.6, 0.4, 0, 0, 0],
        [0, 0, 0.7, 0.15, 0, 0.15],
        [0, 0, 0, 0.8, 0.2, 0],
        [0.025, 0, 0, 0.05, 0.9, 0.025],
        [0.9, 0, 0, 0, 0, 0.1],
    ]
    np.testing.assert_allclose(dense_of(found.log_transition, 6), expected, rtol=1e-14, atol=1e-17)
    assert found.units.tolist() == [0, 0, 0, 1, 1, 2]
    assert (found.first.tolist(), found.last.tolist()) == ([0, 3, 5], [2, 4, 5])
    sparse = hf.hierarchical([3, 2, 1], units, self_loop=[0.5, 0.6, 0.7, 0.8, 0.9, 0.1], structured=True, like=LIKE)
    np.testing.assert_allclose(dense_of(sparse.log_transition, 6), expected, rtol=1e-14, atol=1e-17)
    in_order = hf.hierarchical([2, 1, 2], self_loop=0.7, like=LIKE).log_transition
    np.testing.assert_allclose(dense_of(in_order, 5), np.exp(hf.left_to_right(5, self_loop=0.7, like=LIKE)), rtol=1e-14)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("form", ["dense", "banded", "sparse"])
@pytest.mark.parametrize("is_own", [False, True])
def test_prosody_moves_the_self_loop(name, form, is_own):
    library, rng = LIBRARIES[name], np.random.default_rng(0)
    features, weights = rng.normal(size=(2, 5, 3)), rng.normal(size=(4, 3) if is_own else (3,))
    base = np.exp(hf.left_to_right(4, self_loop=0.7, skip=0.1, like=LIKE))
    base[1] = [0.0, 0.0, 0.25, 0.75]
    given = {
        "dense": lambda: library.array(log_of(base)),
        "banded": lambda: hf.Banded(
            library.array(log_of([[*np.diagonal(base, o), *[0.3] * o] for o in range(3)])), (0, 1, 2)
        ),
        "sparse": lambda: hf.Sparse(library.array(np.log(base[base > 0])), *np.nonzero(base), 4),
    }[form]()
    found = hf.prosodic(given, library.array(features), library.array(weights))
    if form == "dense":
        found = np.exp(library.numpy(found))
    else:
        values = found.log_bands if form == "banded" else found.log_weights
        as_numpy = np.array(library.numpy(values))
        found = dense_of(
            hf.Banded(as_numpy, (0, 1, 2)) if form == "banded" else hf.Sparse(as_numpy, *np.nonzero(base), 4), 4
        )
    expected = np.zeros((2, 4, 4, 4))
    for b, t, i in np.ndindex(2, 4, 4):
        stay = base[i, i]
        if 0 < stay < 1:
            odds = stay / (1 - stay) * np.exp((weights[i] if is_own else weights) @ features[b, t + 1])
            stay = odds / (1 + odds)
        rest = np.where(np.arange(4) == i, 0.0, base[i])
        expected[b, t, i] = rest / (rest.sum() or 1.0) * (1 - stay)
        expected[b, t, i, i] = stay
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("count", [1, 3000])
def test_hierarchies_of_many_units_take_memory_of_their_edges(count):
    tracemalloc.start()
    found = hf.hierarchical([2] * count, self_loop=0.7, structured=True, like=LIKE).log_transition
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    np.testing.assert_array_equal(np.asarray(found.sources)[:-1], np.repeat(np.arange(2 * count - 1), 2))
    np.testing.assert_array_equal(np.asarray(found.targets)[:-1:2], np.arange(2 * count - 1))
    np.testing.assert_array_equal(np.asarray(found.targets)[1::2], np.arange(1, 2 * count))
    expected = np.append(np.tile([0.7, 0.3], 2 * count - 1), 1.0)
    np.testing.assert_allclose(np.exp(found.log_weights), expected, rtol=1e-14)


def test_traced_durations_are_named():
    with pytest.raises(TypeError, match="mean_durations: expected known numbers, got a traced array"):
        jax.jit(hf.from_durations)(np.array([2.0, 3.0]))


def test_prosody_is_differentiable():
    base = hf.left_to_right(3, self_loop=0.6, skip=0.1, like=torch.zeros((), dtype=torch.float64))
    features = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: hf.prosodic(base, x, w).exp(), (features, weights))


def test_prosody_of_padding_has_no_part_in_gradients():
    base = hf.left_to_right(3, self_loop=0.6, skip=0.1, like=torch.zeros((), dtype=torch.float64))
    features, emission = torch.randn(2, 5, 2, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    features[1, 3:] = torch.nan
    weights = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def gradient(features, emission, lengths=None):
        transitions = hf.prosodic(base, features, weights, lengths=lengths)
        total = hf.log_likelihood(base[0], transitions, emission, lengths=lengths).sum()
        return torch.autograd.grad(total, weights)[0]

    alone = gradient(features[0], emission[0]) + gradient(features[1, :3], emission[1, :3])
    torch.testing.assert_close(gradient(features, emission, [5, 3]), alone)


@pytest.mark.parametrize("structured", [False, True])
def test_least_and_longest_durations(structured):
    """Paths of the chain are all ways to cut T steps into K stays, each of its law's probability."""
    least, most, num_steps = [1, 2, 1], [2, 3, 4], 6
    chain = hf.duration_constrained(3, least, most, structured=structured, like=LIKE)
    matrix = dense_of(chain.log_transition, len(chain.states))
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-14)
    assert chain.states.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    emission = np.random.default_rng(0).normal(size=(num_steps, 3))
    weights = []
    for stays in itertools.product(*(range(a, b + 1) for a, b in zip(least, most, strict=True))):
        if sum(stays) == num_steps:
            states = np.repeat(np.arange(3), stays)
            law = np.prod([1 / (b - a + 1) for a, b in zip(least, most, strict=True)])
            weights.append(np.log(law) + emission[np.arange(num_steps), states].sum())
    args = chain.log_initial, chain.log_transition, emission[:, chain.states]
    found = hf.log_likelihood(*args, log_final=chain.log_final)
    np.testing.assert_allclose(found, np.logaddexp.reduce(weights), rtol=1e-13)
    best = hf.viterbi(*args, log_final=chain.log_final)
    np.testing.assert_allclose(best.log_joint, max(weights), rtol=1e-13)
    assert hf.log_likelihood(*(x[:1] if x is args[2] else x for x in args), log_final=chain.log_final) == -np.inf


@pytest.mark.parametrize("structured", [False, True])
def test_one_state_of_least_and_longest_duration(structured):
    chain = hf.duration_constrained(1, 2, 3, structured=structured, like=LIKE)
    np.testing.assert_allclose(dense_of(chain.log_transition, 4).sum(1), 1, rtol=1e-14)
    for num_steps, expected in ((1, 0.0), (2, 0.5), (3, 0.5), (4, 0.0)):
        emission = np.zeros((num_steps, 4))
        found = hf.log_likelihood(chain.log_initial, chain.log_transition, emission, log_final=chain.log_final)
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-14)
    alias = pytorch_hmm.create_duration_constrained_matrix(1, 2, 3)
    torch.testing.assert_close(alias, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))


def test_laws_of_durations_are_cut_and_differentiable():
    law = torch.randn(4, dtype=torch.float64).log_softmax(0).requires_grad_()
    chain = hf.duration_constrained(2, 2, 3, log_duration=law)
    emission = torch.zeros(5, 2, dtype=torch.float64)[:, chain.states]

    def likelihood(law):
        chain = hf.duration_constrained(2, 2, 3, log_duration=law)
        return hf.log_likelihood(chain.log_initial, chain.log_transition, emission, log_final=chain.log_final)

    p = law.detach().exp()[1:3] / law.detach().exp()[1:3].sum()
    torch.testing.assert_close(likelihood(law).exp().detach(), 2 * p[0] * p[1])
    assert torch.autograd.gradcheck(likelihood, (law,))


ALIASES = {
    "ergodic": (lambda: pytorch_hmm.create_transition_matrix(4, self_loop_prob=0.5), 0.5, 4),
    "left to right": (lambda: pytorch_hmm.create_left_to_right_matrix(4, 0.8), 0.8, 3),
    "defaults do not sum to one": (lambda: pytorch_hmm.create_transition_matrix(4, "left_to_right"), 0.5, 3),
    "skips": (lambda: pytorch_hmm.create_transition_matrix(5, "left_to_right_skip", 0.6, 0.3, 0.1), 0.6, 4),
    "circular": (lambda: pytorch_hmm.create_transition_matrix(4, "circular", 0.7, 0.2), 0.7, 4),
    "skip states": (lambda: pytorch_hmm.create_skip_state_matrix(6, 0.5, 0.4, 0.3, max_skip=4), 0.5, 5),
    "phonemes": (lambda: pytorch_hmm.create_phoneme_aware_transitions([5.0, 8.0, 3.0]), [0.8, 0.875], 2),
    "prosody": (
        lambda: pytorch_hmm.create_prosody_aware_transitions(torch.ones(6), torch.ones(6), 4, self_loop_prob=0.6)[2],
        0.6,
        3,
    ),
}


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_keep_the_self_loop(name):
    make, self_loop, count = ALIASES[name]
    found = make()
    torch.testing.assert_close(found.sum(-1), torch.ones(len(found)))
    expected = torch.as_tensor(self_loop).expand(count)
    torch.testing.assert_close(found.diagonal()[:count], expected, rtol=1e-6, atol=0)
    assert (found >= 0).all()


@pytest.mark.parametrize(("self_loop", "skip"), [(0.9, 0.1), (0.8, 0.2), (0.55, 0.45), (0.7, 0.3), (0.0, 1.0)])
@pytest.mark.parametrize("cyclic", [False, True])
def test_skips_that_leave_no_step(self_loop, skip, cyclic):
    """A step is impossible, not of probability 1e-17 or less than none, but where there is nothing to skip to."""
    found = hf.left_to_right(4, self_loop=self_loop, skip=skip, cyclic=cyclic, like=LIKE)
    expected = np.diag([self_loop] * 4) + np.diag([skip] * 2, 2) + (np.diag([skip] * 2, -2) if cyclic else 0.0)
    if not cyclic:
        expected[2:, 2:] = [[self_loop, skip], [0.0, 1.0]]
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-14, atol=0)
    assert (np.isneginf(found) == (expected == 0)).all()
    bands = hf.left_to_right(4, self_loop=self_loop, skip=skip, cyclic=cyclic, structured=True, like=LIKE)
    np.testing.assert_allclose(dense_of(bands, 4), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("most", [2, 3, 4, 5])
def test_alias_of_skips_without_steps(most):
    for self_loop in np.linspace(0.0, 1.0, 21):
        found = pytorch_hmm.create_skip_state_matrix(8, float(self_loop), 0.0, 0.1, max_skip=most)
        torch.testing.assert_close(found.sum(-1), torch.ones(8))
        assert found[0, 1] == 0


def test_rare_steps_stay():
    found = np.exp(hf.left_to_right(3, self_loop=1.0 - 1e-12, like=LIKE))
    np.testing.assert_allclose(found[0, 1], 1e-12, rtol=1e-3)
    with pytest.raises(ValueError, match="self_loop \\+ skip at most 1"):
        hf.left_to_right(3, self_loop=0.9, skip=0.1 + 1e-8)


def test_alias_of_skips_shares_them():
    found = pytorch_hmm.create_skip_state_matrix(5, 0.5, 0.3, 0.2, max_skip=3)
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.3, 0.12, 0.08, 0.0]))


def test_alias_of_prosody_hurries_where_f0_rises():
    f0, energy = torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0])
    found = pytorch_hmm.create_prosody_aware_transitions(f0, energy, 3)
    assert found.shape == (4, 3, 3)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 3))
    stays = found[:, 0, 0]
    assert stays[1] < stays[0]
    assert stays[3] > stays[2]


def test_alias_of_constrained_durations():
    found = pytorch_hmm.create_duration_constrained_matrix(3, 2, 4)
    assert found.shape == (12, 12)
    torch.testing.assert_close(found.sum(-1), torch.ones(12))
    expected = torch.zeros(12, 12)
    for k in range(3):
        expected[4 * k, 4 * k + 1] = 1.0
        for d in (1, 2):
            expected[4 * k + d, 4 * k + d + 1] = 0.7 if k < 2 else 1.0
            if k < 2:
                expected[4 * k + d, 4 * k + 4] = 0.3
        expected[4 * k + 3, min(4 * k + 4, 11)] = 1.0
    torch.testing.assert_close(found, expected)
    assert pytorch_hmm.create_duration_constrained_matrix(2).shape == (6, 6)


ERRORS = {
    "durations too short": (
        lambda: hf.from_durations([5.0, 1.5], states_per_phone=2),
        r"mean_durations\[1\]: expected",
    ),
    "frame shift": (lambda: hf.from_durations([5.0], frame_shift=0.0), "frame_shift: expected seconds"),
    "no durations": (lambda: hf.from_durations([]), "mean_durations: expected"),
    "skips above one": (lambda: hf.left_to_right(4, self_loop=0.5, skip=(0.3, 0.3)), "skip: expected self_loop"),
    "short cycle": (lambda: hf.left_to_right(2, skip=0.2, cyclic=True), "cyclic: expected more than 2"),
    "unit rows": (lambda: hf.hierarchical([2, 2], [[1.0, 1.0], [0.5, 0.5]]), "unit_transition: expected rows"),
    "unit after itself": (lambda: hf.hierarchical([2, 1], [[0.0, 1.0], [0.5, 0.5]]), "expected 0 for unit 1"),
    "unit shape": (lambda: hf.hierarchical([2, 1], [[1.0]]), r"expected shape \(U, U\)"),
    "self-loops": (lambda: hf.hierarchical([2, 1], self_loop=[0.5, 0.5]), "one for each of 3 states"),
    "durations crossed": (lambda: hf.duration_constrained(2, 3, 2), "max_duration: expected at least"),
    "a longest beyond the law": (
        lambda: hf.duration_constrained(2, 1, 10, log_duration=torch.zeros(3)),
        "max_duration: expected at most the 3 steps of log_duration, got 10",
    ),
    "no longest": (lambda: hf.duration_constrained(2, 3), "max_duration: expected steps"),
    "weights of features": (
        lambda: hf.prosodic(torch.zeros(2, 2), torch.zeros(3, 2), torch.zeros(3)),
        r"weights: expected shape \(2,\) or \(2, 2\)",
    ),
    "alias with noise": (lambda: pytorch_hmm.create_phoneme_aware_transitions([5.0], 0.2), "duration_variance"),
    "alias of no type": (lambda: pytorch_hmm.create_transition_matrix(2, "ring"), "transition_type: expected"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    make, words = ERRORS[name]
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_no_number_and_no_tensor_is_named():
    with pytest.raises(TypeError, match="self_loop: expected a number, got str"):
        pytorch_hmm.create_transition_matrix(3, self_loop_prob="0.5")
    with pytest.raises(TypeError, match=r"f0_contour: expected a tensor \(T,\), got list"):
        pytorch_hmm.create_prosody_aware_transitions([0.0, 1.0], torch.zeros(2), 2)


def test_prosody_has_to_be_known():
    f0 = torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match="f0_contour: expected finite floating-point numbers"):
        pytorch_hmm.create_prosody_aware_transitions(f0, torch.zeros(3), 2)
    with pytest.raises(ValueError, match="energy_contour: expected finite"):
        pytorch_hmm.create_prosody_aware_transitions(torch.zeros(3), torch.zeros(3, dtype=torch.int64), 2)
