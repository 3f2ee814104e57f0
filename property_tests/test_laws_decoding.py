"""Ties, and the law of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import models, possible_models, seeds
from tests.helpers.backends import FORMS, JAX, LIBRARIES, assert_declines, call, kernel_names
from tests.helpers.models import Model, random_log, random_model

NUM_SAMPLES = 4000


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("form", ["dense", "banded", "sparse"])  # a low-rank sum of exps makes no exact ties
@given(seed=seeds, levels=st.sampled_from([1, 2, 3]))
def test_ties_go_to_the_lowest_predecessor_then_the_lowest_last_state(library, form, seed, levels):
    """Small integers are exact in floating point, and so are their ties."""
    rng = np.random.default_rng(seed)

    def weights(*shape):
        values = -rng.integers(0, levels, size=shape).astype(np.float64)
        values[rng.random(shape) < 0.2] = -np.inf
        return values

    model = Model(weights(3, 3), weights(3, 3), weights(3, 4, 3), np.array([4, 1, 3]), weights(3, 3))
    actual = call(LIBRARIES[library], "viterbi", model, form)
    np.testing.assert_array_equal(actual.states, model.expected(lambda one: one.viterbi[0], pad=-1))
    np.testing.assert_array_equal(actual.log_joint, model.expected(lambda one: one.viterbi[1]))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("kernel", kernel_names())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_paths_tied_over_many_steps(library, kernel, dtype):
    """Every path of a chain of zeros ties, so each state is 0; the same with an exact weight on each step."""
    library = LIBRARIES[library]
    for weight in (0.0, -0.5, 3.0):
        parts = [np.zeros(4), np.full((4, 4), weight), np.full((67, 4), weight)]
        try:
            best = library.call("viterbi", *(library.array(x, dtype) for x in parts), kernel=kernel)
        except ValueError as error:
            assert_declines(kernel, error)
            return
        np.testing.assert_array_equal(library.numpy(best.states), 0)
        assert float(best.log_joint) == weight * 133


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_k_best_ties_hold_every_tied_path_once(library, data):
    """The order among ties is open, but none may be lost or come twice."""
    model = data.draw(models(num_steps=3, num_states=2, zeros=0.0, lengths=False, batch=()))
    model = model.with_(
        log_initial=np.round(model.log_initial),
        log_transition=np.zeros((2, 2)),
        log_emission=np.zeros((3, 2)),
        log_final=None,
    )
    best = call(LIBRARIES[library], "viterbi_k_best", model, k=8)
    assert len(np.unique(best.states, axis=0)) == 8
    np.testing.assert_array_equal(np.sort(best.log_joint), np.sort(model.log_initial[best.states[:, 0]]))


def assert_follows(samples, paths, probabilities):
    """Samples (n, T) only of possible paths, and each path as often as its probability says, within 5 sigma."""
    codes = {tuple(path): n for n, path in enumerate(paths.tolist())}
    counts = np.bincount([codes[tuple(row)] for row in samples.tolist()], minlength=len(paths))
    assert (counts[probabilities == 0] == 0).all()
    sigma = np.sqrt(len(samples) * probabilities * (1 - probabilities)) + 1  # + 1: rare paths are Poisson
    assert (np.abs(counts - len(samples) * probabilities) < 5 * sigma).all()


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("form", FORMS)
def test_posterior_samples_follow_the_posterior(library, form):
    """Whole paths, not only their marginals, with zeros, log_final, lengths and one impossible sequence."""
    rng = np.random.default_rng(11)
    model = random_model(rng, batch=(4,), num_steps=4, num_states=3, zeros=0.15, normalised=False)
    emission = np.where(np.isneginf(model.log_emission), -5.0, model.log_emission)
    emission[0, 2] = [-np.inf, 0.0, -1.0]
    emission[3, 1] = -np.inf
    final = random_log(rng, (3,))
    model = model.with_(log_initial=rng.standard_normal((4, 3)), log_emission=emission, log_final=final)
    model = model.with_(lengths=np.array([4, 2, 1, 4]))
    library = LIBRARIES[library]
    samples = call(library, "sample_posterior", model, form, rng=library.rng(0), num_samples=NUM_SAMPLES)
    assert samples.shape == (NUM_SAMPLES, 4, 4)
    assert samples.dtype == np.int64
    for b in range(3):
        length = int(model.lengths[b])
        model_paths = []
        model.with_().expected(lambda one, keep=model_paths: (keep.append(one), 0.0)[1])
        one = model_paths[b]
        assert not one.impossible
        assert_follows(samples[:, b, :length], one.paths, one.path_probabilities.astype(np.float64))
        np.testing.assert_array_equal(samples[:, b, length:], -1)
    np.testing.assert_array_equal(samples[:, 3], -1)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_samples_have_positive_probability_and_repeat(library, data):
    model = data.draw(possible_models())
    library = LIBRARIES[library]
    first, again, other = (
        call(library, "sample_posterior", model, rng=library.rng(seed), num_samples=20) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert other.shape == first.shape
    joint = call(library, "log_joint", model, states=library.array(first[0]))
    assert np.isfinite(joint).all()


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_prior_samples_follow_the_chain(library):
    library = LIBRARIES[library]
    initial = np.log([0.5, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        matrix = np.log([[0.0, 1.0, 0.0], [0.1, 0.2, 0.7], [0.6, 0.0, 0.4]])
    args = (library.array(initial), library.array(matrix))
    samples = library.call("sample", *args, num_steps=3, rng=library.rng(0), batch_shape=(NUM_SAMPLES,))
    samples = library.numpy(samples)
    assert samples.shape == (NUM_SAMPLES, 3)
    one = []
    Model(initial, matrix, np.zeros((3, 3))).expected(lambda e: (one.append(e), 0.0)[1])
    assert_follows(samples, one[0].paths, one[0].path_probabilities.astype(np.float64))
    alone = library.numpy(library.call("sample", *args, num_steps=5, rng=library.rng(1)))
    assert alone.shape == (5,)  # natural reading: batch_shape defaults to ()
    assert set(alone.tolist()) <= {0, 1, 2}


def test_samples_differ_between_sequences_samples_and_seeds():
    """Each draw is its own: a uniform chain of 50 steps repeats with probability 1e-15."""
    for library in LIBRARIES.values():
        args = [library.array(np.zeros(shape)) for shape in ((2,), (2, 2), (3, 50, 2))]
        draws = [
            library.numpy(library.call("sample_posterior", *args, rng=library.rng(seed), num_samples=2))
            for seed in (0, 1)
        ]
        assert len(np.unique(np.concatenate(draws).reshape(-1, 50), axis=0)) == 12
        if library is JAX:
            assert isinstance(hf.sample_posterior(*args, rng=library.rng(0), num_samples=1).shape, tuple)
