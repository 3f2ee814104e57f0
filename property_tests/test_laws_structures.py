"""One model in every form of transition: the same answers, and counts in the form's own shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import models, seeds
from tests.helpers.backends import (
    FORMS,
    LIBRARIES,
    NUMPY,
    TORCH,
    as_numpy,
    call,
    counts_as_dense,
    random_low_rank,
)
from tests.helpers.models import Model, assert_log_close, random_log

STRUCTURED = FORMS[1:]
over_libraries = pytest.mark.parametrize("library", ["numpy", "torch"])


def in_band(matrix, offsets):
    """The matrix with -inf off the given diagonals."""
    num_states = matrix.shape[-1]
    i, j = np.indices((num_states, num_states))
    return np.where(np.isin(j - i, offsets), matrix, -np.inf)


def assert_same(library, model, form, offsets=None):
    tolerance = 1e-12 * model.scale
    for name in ("forward", "forward_backward", "viterbi", "pair_posteriors", "posterior_entropy"):
        expected, actual = call(library, name, model), call(library, name, model, form, offsets=offsets)
        expected, actual = (x if isinstance(x, tuple) else (x,) for x in (expected, actual))
        for one, other in zip(actual, expected, strict=True):
            assert_log_close(one, other, tolerance, name)
    counts = call(library, "expected_transitions", model, form, offsets=offsets)
    counts = counts_as_dense(form, counts, model.num_states, offsets)
    expected = call(library, "expected_transitions", model)
    # Only pairs the structure has can have counts, and no others had weight.
    assert_log_close(counts, expected, tolerance, "expected_transitions")


@over_libraries
@pytest.mark.parametrize("form", STRUCTURED)
@given(offsets=st.sampled_from([(0, 1), (0, 1, 2), (2, -1, 0), (1,), (-3, 4, 0)]), data=st.data())
def test_narrow_structures_are_their_dense_matrix(library, form, offsets, data):
    model = data.draw(models(num_steps=4, num_states=4, zeros=0.0))
    banded = model.with_(log_transition=in_band(model.log_transition, offsets))
    if form == "banded" or form == "sparse":
        assert_same(LIBRARIES[library], banded, form, offsets)
    else:
        assert_same(LIBRARIES[library], banded, form)


@over_libraries
@given(data=st.data())
def test_a_constant_matrix_in_every_layout(library, data):
    """(K, K), (1, K, K), (T-1, K, K), (B, 1, K, K), (B, T-1, K, K): one model."""
    model = data.draw(models(batch=(2,), transition="constant"))
    form, library = data.draw(st.sampled_from(FORMS)), LIBRARIES[library]
    matrix, slots = model.log_transition, model.num_steps - 1
    expected = call(library, "forward_backward", model)
    path = call(library, "viterbi", model)
    for lead in ((1,), (slots,), (2, 1), (2, slots), (1, slots), (1, 1)):
        repeated = model.with_(log_transition=np.broadcast_to(matrix, (*lead, *matrix.shape)))
        actual = call(library, "forward_backward", repeated, form)
        assert_log_close(actual.log_likelihood, expected.log_likelihood, 1e-12 * model.scale, str(lead))
        assert_log_close(actual.log_posteriors, expected.log_posteriors, 1e-12 * model.scale, str(lead))
        np.testing.assert_array_equal(call(library, "viterbi", repeated, form).states, path.states)


@over_libraries
@given(seed=seeds, rank=st.integers(1, 4), zeros=st.sampled_from([0.0, 0.3]), ragged=st.booleans())
def test_low_rank_is_the_product_of_its_factors(library, seed, rank, zeros, ragged):
    library, rng = LIBRARIES[library], np.random.default_rng(seed)
    steps, states = 4, 3
    left, right, dense = random_low_rank(rng, states, rank, zeros=zeros)
    emission = random_log(rng, (2, steps, states), spread=10.0)
    lengths = rng.integers(1, steps + 1, size=2) if ragged else None
    model = Model(random_log(rng, (states,)), dense, emission, lengths)
    args = [library.array(x) for x in (model.log_initial, dense, emission)]
    low_rank = hf.LowRank(library.array(left), library.array(right))
    tolerance = 1e-12 * model.scale
    for name in ("forward", "forward_backward", "viterbi"):
        expected = as_numpy(library, library.call(name, *args, lengths=lengths))
        actual = as_numpy(library, library.call(name, args[0], low_rank, args[2], lengths=lengths))
        for one, other in zip(actual, expected, strict=True):
            assert_log_close(one, other, tolerance, name)
    # A term r serves the pair (i, j) with probability left[i, r] right[r, j] / dense[i, j].
    pairs = np.exp(model.expected(lambda one: one.log_pairs, pad=-np.inf)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        share = np.exp(left[:, :, None] + right[None] - dense[:, None, :])
    terms = np.where(pairs[:, :, None, :] > 0, pairs[:, :, None, :] * share, 0.0)
    counts = as_numpy(library, library.call("expected_transitions", args[0], low_rank, args[2], lengths=lengths))
    assert_log_close(counts[0], terms.sum(axis=3), tolerance)
    assert_log_close(counts[1], terms.sum(axis=1), tolerance)


@pytest.mark.parametrize("beyond", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_band_entries_beyond_the_states_are_ignored(library, beyond):
    """Whatever they hold; NaN is the natural reading's hardest case."""
    library, rng = LIBRARIES[library], np.random.default_rng(3)
    log_bands = random_log(rng, (2, 3))
    log_bands[1, 2] = 0.5  # state 2 has no state 3 to go to
    log_initial, log_emission = random_log(rng, (3,)), random_log(rng, (4, 3))
    marred = log_bands.copy()
    marred[1, 2] = beyond

    def run(bands, name):
        transition = hf.Banded(library.array(bands), (0, 1))
        result = library.call(name, library.array(log_initial), transition, library.array(log_emission))
        return as_numpy(library, result)

    for name in ("log_likelihood", "expected_transitions", "pair_posteriors"):
        np.testing.assert_array_equal(run(marred, name), run(log_bands, name))
    assert run(marred, "expected_transitions")[1, 2] == 0


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("form", STRUCTURED)
def test_structures_with_dead_states(library, form):
    """States that nothing enters or leaves, and a graph with no edge out of the start."""
    library, rng = LIBRARIES[library], np.random.default_rng(5)
    matrix = random_log(rng, (4, 4))
    matrix[1], matrix[:, 2] = -np.inf, -np.inf
    emission = random_log(rng, (2, 4, 4))
    emission[1, 1, [0, 3]] = -np.inf  # leaves state 1 alone, which leads nowhere
    model = Model(np.zeros(4), matrix, emission)
    actual = call(library, "forward_backward", model, form)
    assert np.isneginf(actual.log_likelihood).tolist() == [False, True]
    assert_log_close(actual.log_likelihood, model.expected(lambda one: one.log_likelihood), 1e-12 * model.scale)
    assert_log_close(actual.log_posteriors, model.expected(lambda one: one.log_posteriors), 1e-12 * model.scale)
    np.testing.assert_array_equal(call(library, "viterbi", model, form).states[1], -1)


def banded_as_dense(transition, num_states):
    dense = np.full((num_states, num_states), -np.inf)
    for o, offset in enumerate(transition.offsets):
        for i in range(num_states):
            if 0 <= i + offset < num_states:
                dense[i, i + offset] = np.asarray(transition.log_bands)[o, i]
    return dense


@pytest.mark.parametrize("num_states", [1, 2, 5])
@pytest.mark.parametrize(("self_loop", "skip"), [(0.9, 0.0), (0.5, 0.2), (0.0, 0.0), (1.0, 0.0)])
def test_left_to_right(num_states, self_loop, skip):
    """The last state absorbs; what is not the self-loop or the skip goes to the next state."""
    dense = np.asarray(hf.left_to_right(num_states, self_loop=self_loop, skip=skip))
    expected = np.zeros((num_states, num_states))
    for i in range(num_states - 1):
        expected[i, i] = self_loop
        # Open in the contract: where the skip of the last state but one goes. Its row must still sum to one.
        expected[i, i + 1] = 1 - self_loop - (skip if i + 2 < num_states else 0)
        if i + 2 < num_states:
            expected[i, i + 2] = skip
    expected[-1, -1] = 1
    rows = np.arange(num_states) if skip == 0 else np.delete(np.arange(num_states), max(num_states - 2, 0))
    np.testing.assert_allclose(np.exp(dense)[rows], expected[rows], rtol=1e-6, atol=0)
    np.testing.assert_allclose(np.exp(dense).sum(axis=1), 1, rtol=1e-6)
    assert (np.tril(np.exp(dense), -1) == 0).all()
    structured = hf.left_to_right(num_states, self_loop=self_loop, skip=skip, structured=True)
    np.testing.assert_allclose(np.exp(banded_as_dense(structured, num_states)), np.exp(dense), rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_states", [1, 2, 5])
def test_ergodic_and_from_mask(num_states):
    matrix = np.exp(np.asarray(hf.ergodic(num_states, self_loop=0.7)))
    off = 0.3 / max(num_states - 1, 1)
    expected = np.where(np.eye(num_states) > 0, 0.7, off) if num_states > 1 else np.ones((1, 1))
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)
    mask = np.random.default_rng(num_states).random((num_states, num_states)) < 0.5
    mask |= np.eye(num_states, dtype=bool)
    allowed = np.exp(np.asarray(hf.from_mask(mask)))  # natural reading: each row shared evenly by what is allowed
    np.testing.assert_allclose(allowed, mask / mask.sum(axis=1, keepdims=True), rtol=1e-6)
    sparse = hf.from_mask(mask, structured=True)
    dense = np.zeros((num_states, num_states))
    dense[np.asarray(sparse.sources), np.asarray(sparse.targets)] = np.exp(np.asarray(sparse.log_weights))
    np.testing.assert_allclose(dense, allowed, rtol=1e-6)


def test_structures_are_pytrees():
    """They pass through torch's and JAX's tree functions with their static parts kept."""
    import jax
    from torch.utils import _pytree

    for library, tree_map in ((LIBRARIES["jax"], jax.tree.map), (TORCH, _pytree.tree_map)):
        banded = tree_map(lambda x: x + 1, hf.Banded(library.array(np.zeros((2, 3))), (0, 1)))
        assert banded.offsets == (0, 1)
        np.testing.assert_array_equal(library.numpy(banded.log_bands), 1)
        sparse = tree_map(lambda x: x + 1, hf.Sparse(library.array(np.zeros(2)), [0, 1], [1, 0], 2))
        np.testing.assert_array_equal(np.asarray(sparse.targets), [1, 0])
        np.testing.assert_array_equal(library.numpy(sparse.log_weights), 1)
        low = tree_map(lambda x: x + 1, hf.LowRank(*(library.array(np.zeros(s)) for s in ((3, 1), (1, 3)))))
        np.testing.assert_array_equal(library.numpy(low.log_left), 1)
    assert NUMPY.numpy(hf.Banded(np.zeros((1, 2)), (0,)).log_bands).shape == (1, 2)
