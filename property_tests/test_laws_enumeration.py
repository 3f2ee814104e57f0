"""Every chain function equals the enumeration of all paths, for each array library and form of transition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from property_tests.strategies import models_for
from tests.helpers.backends import FORMS, LIBRARIES, call, counts_as_dense
from tests.helpers.models import assert_log_close

CASES = [pytest.param(library, form, id=f"{library}-{form}") for library in LIBRARIES for form in FORMS]
over_cases = pytest.mark.parametrize(("library", "form"), CASES)
# JAX compiles each function for each form: the functions that only reuse others' messages run dense there.
FEWER = [case for case in CASES if case.values[0] != "jax" or case.values[1] == "dense"]
over_fewer_cases = pytest.mark.parametrize(("library", "form"), FEWER)


def tolerance_of(model):
    """NUMERICS.md: 1e-12 of the largest term."""
    return 1e-12 * model.scale


@over_cases
@given(data=st.data())
def test_log_likelihood(library, form, data):
    model = data.draw(models_for(library))
    actual = call(LIBRARIES[library], "log_likelihood", model, form)
    assert_log_close(actual, model.expected(lambda one: one.log_likelihood), tolerance_of(model))


@over_fewer_cases
@given(data=st.data())
def test_forward(library, form, data):
    model = data.draw(models_for(library))
    actual = call(LIBRARIES[library], "forward", model, form)
    tolerance = tolerance_of(model)
    assert_log_close(actual.log_likelihood, model.expected(lambda one: one.log_likelihood), tolerance)
    assert_log_close(actual.log_filtered, model.expected(lambda one: one.log_filtered, pad=-np.inf), tolerance)


@over_cases
@given(data=st.data())
def test_forward_backward(library, form, data):
    model = data.draw(models_for(library))
    actual = call(LIBRARIES[library], "forward_backward", model, form)
    tolerance = tolerance_of(model)
    assert_log_close(actual.log_likelihood, model.expected(lambda one: one.log_likelihood), tolerance)
    assert_log_close(actual.log_posteriors, model.expected(lambda one: one.log_posteriors, pad=-np.inf), tolerance)


@over_cases
@given(data=st.data())
def test_pair_posteriors_and_expected_transitions(library, form, data):
    model = data.draw(models_for(library))
    pairs = call(LIBRARIES[library], "pair_posteriors", model, form)
    assert_log_close(pairs, model.expected(lambda one: one.log_pairs, pad=-np.inf), tolerance_of(model))
    counts = call(LIBRARIES[library], "expected_transitions", model, form)
    counts = counts_as_dense(form, counts, model.num_states)
    expected = model.expected(lambda one: one.expected_transitions)
    assert_log_close(counts, expected, tolerance_of(model))


@over_cases
@given(data=st.data())
def test_viterbi(library, form, data):
    model = data.draw(models_for(library))
    actual = call(LIBRARIES[library], "viterbi", model, form)
    np.testing.assert_array_equal(actual.states, model.expected(lambda one: one.viterbi[0], pad=-1))
    assert_log_close(actual.log_joint, model.expected(lambda one: one.viterbi[1]), tolerance_of(model))
    assert actual.states.dtype == np.int64


@over_fewer_cases
@given(data=st.data())
def test_viterbi_k_best(library, form, data):
    model = data.draw(models_for(library))
    actual = call(LIBRARIES[library], "viterbi_k_best", model, form, k=5)
    states = model.expected(lambda one: one.k_best(5)[0].T, pad=-1).swapaxes(-1, -2)
    np.testing.assert_array_equal(actual.states, states)
    assert_log_close(actual.log_joint, model.expected(lambda one: one.k_best(5)[1]), tolerance_of(model))


@over_fewer_cases
@given(data=st.data())
def test_posterior_entropy(library, form, data):
    model = data.draw(models_for(library))
    actual = call(LIBRARIES[library], "posterior_entropy", model, form)
    assert_log_close(actual, model.expected(lambda one: one.entropy), tolerance_of(model))


@over_fewer_cases
@given(data=st.data())
def test_posterior_decode(library, form, data):
    model = data.draw(models_for(library))
    states = call(LIBRARIES[library], "posterior_decode", model, form)
    posteriors = model.expected(lambda one: one.log_posteriors, pad=-np.inf)
    decoded = posteriors.max(axis=-1) > -np.inf
    np.testing.assert_array_equal(states[~decoded], -1)
    assert ((states[decoded] >= 0) & (states[decoded] < model.num_states)).all()
    chosen = np.take_along_axis(posteriors, np.maximum(states, 0)[..., None], axis=-1)[..., 0]
    assert_log_close(chosen[decoded], posteriors.max(axis=-1)[decoded], tolerance_of(model))


@over_fewer_cases
@given(data=st.data())
def test_smooth_fixed_lag(library, form, data):
    # Open in the contract: whether log_final counts for the steps whose look-ahead reaches the end. Streams, whose
    # output equals this function's, have no log_final, so none is given here.
    model = data.draw(models_for(library, final=False))
    lag = data.draw(st.integers(0, 2 if library == "jax" else 6))
    actual = call(LIBRARIES[library], "smooth_fixed_lag", model, form, lag=lag)
    expected = model.expected(lambda one: one.log_smoothed(lag), pad=-np.inf)
    assert_log_close(actual, expected, tolerance_of(model))


@over_fewer_cases
@given(data=st.data())
def test_forecast(library, form, data):
    # Natural readings: the transition is constant (there is none beyond the last slot of a time-varying one), rows
    # are normalised whatever the weights, and log_final, which says that the chain ends, is not given.
    options = {} if library == "jax" else {"transition": data.draw(st.sampled_from(["constant", "slot"]))}
    model = data.draw(models_for(library, final=False, **options))
    actual = call(LIBRARIES[library], "forecast", model, form, num_steps=3)
    expected = model.expected(lambda one: one.forecast(3))
    assert_log_close(actual, expected, tolerance_of(model))


@over_fewer_cases
@given(data=st.data())
def test_log_joint(library, form, data):
    model = data.draw(models_for(library))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    states = rng.integers(0, model.num_states, size=(*model.batch_shape, model.num_steps))
    states = np.where(model.kept, states, -1)
    paths = iter(states.reshape(-1, model.num_steps))
    expected = model.expected(lambda one: one.log_joint(next(paths)[: one.num_steps]))
    actual = call(LIBRARIES[library], "log_joint", model, form, states=LIBRARIES[library].array(states))
    assert_log_close(actual, expected, tolerance_of(model))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_nan_inside_a_sequence_stays_in_that_sequence(library, data):
    model = data.draw(models_for(library, batch=(3,), zeros=0.0))
    emission = np.array(model.log_emission)
    step = data.draw(st.integers(0, int(model.full_lengths[1]) - 1))
    emission[1, step, data.draw(st.integers(0, model.num_states - 1))] = np.nan
    model, tolerance = model.with_(log_emission=emission), tolerance_of(model)
    library = LIBRARIES[library]
    smoothed = call(library, "forward_backward", model)
    assert_log_close(smoothed.log_likelihood, model.expected(lambda one: one.log_likelihood), tolerance)
    assert_log_close(smoothed.log_posteriors, model.expected(lambda one: one.log_posteriors, pad=-np.inf), tolerance)
    best = call(library, "viterbi", model)
    np.testing.assert_array_equal(best.states, model.expected(lambda one: one.viterbi[0], pad=-1))
    assert_log_close(best.log_joint, model.expected(lambda one: one.viterbi[1]), tolerance)
    counts = call(library, "expected_transitions", model)
    assert_log_close(counts, model.expected(lambda one: one.expected_transitions), tolerance)
    assert_log_close(call(library, "posterior_entropy", model), model.expected(lambda one: one.entropy), tolerance)
    filtered = call(library, "forward", model).log_filtered
    expected = model.expected(lambda one: one.log_filtered, pad=-np.inf)
    # The contract leaves the rows before the NaN open: compare the others.
    compared = np.ones(filtered.shape[:-1], bool)
    compared[1, :step] = False
    assert_log_close(filtered[compared], expected[compared], tolerance)
