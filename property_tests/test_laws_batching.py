"""A sequence's answer does not depend on its batch, on its padding, or on how its batch axes came about."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import models, models_for, seeds
from tests.helpers.backends import LIBRARIES, NUMPY, TORCH, call
from tests.helpers.models import Model, assert_log_close, random_log

LIKELIHOODS = ("log_likelihood", "posterior_entropy", "expected_transitions")
over_libraries = pytest.mark.parametrize("library", ["numpy", "torch", "jax"])


def answers(library, model, **options):
    """Everything that has a value for each sequence or step, by name: (array, whether it has a time axis)."""
    smoothed = call(library, "forward_backward", model, **options)
    best = call(library, "viterbi", model, **options)
    found = {name: (call(library, name, model, **options), False) for name in LIKELIHOODS}
    found |= {
        "smoothed value": (smoothed.log_likelihood, False),
        "log_posteriors": (smoothed.log_posteriors, True),
        "log_filtered": (call(library, "forward", model, **options).log_filtered, True),
        "log_joint": (best.log_joint, False),
        "states": (best.states, True),
    }
    if model.log_final is None:
        found["lagged"] = (call(library, "smooth_fixed_lag", model, lag=1, **options), True)
        if model.constant:
            found["forecast"] = (call(library, "forecast", model, num_steps=2, **options), False)
    return found


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_alone_and_in_a_batch(library, data):
    """Cut to its length and alone, each sequence has the answer it has in its padded batch."""
    model = data.draw(models_for(library, batch=(3,), lengths=True))
    library, tolerance = LIBRARIES[library], 1e-12 * model.scale
    together = answers(library, model)
    for b in range(3):
        parts = model.sequence((b,))
        alone = answers(library, Model(*parts[:3], log_final=parts[3]))
        length = int(model.lengths[b])
        for name, (value, timed) in together.items():
            kept = value[b][:length] if timed else value[b]
            assert_log_close(kept, alone[name][0], tolerance, name)
            if timed:
                beyond = -1 if value.dtype == np.int64 else -np.inf
                np.testing.assert_array_equal(value[b][length:], beyond, err_msg=name)


@over_libraries
@given(data=st.data())
def test_padding_is_never_read(library, data):
    model = data.draw(models_for(library, batch=(3,), num_states=3, lengths=True))
    fill = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
    padded = model.with_(log_emission=np.where(model.kept[..., None], model.log_emission, fill))
    library = LIBRARIES[library]
    expected = answers(library, model)
    for name, (value, _) in answers(library, padded).items():
        np.testing.assert_array_equal(value, expected[name][0], err_msg=name)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_transitions_beyond_the_length_are_never_read(library, data):
    model = data.draw(models(batch=(3,), num_steps=4, transition="varying", lengths=True))
    slots = np.arange(3) < model.lengths[:, None] - 1
    padded = model.with_(log_transition=np.where(slots[..., None, None], model.log_transition, np.nan))
    library = LIBRARIES[library]
    expected = answers(library, model)
    for name, (value, _) in answers(library, padded).items():
        np.testing.assert_array_equal(value, expected[name][0], err_msg=name)


@over_libraries
@given(data=st.data())
def test_neighbours_do_not_matter(library, data):
    """A neighbour that is impossible or holds NaN changes nothing."""
    model = data.draw(models_for(library, batch=(3,), num_states=3, transition="constant", lengths=True))
    emission = np.array(model.log_emission)
    emission[1, 0] = data.draw(st.sampled_from([np.nan, -np.inf, 900.0]))
    library = LIBRARIES[library]
    expected = answers(library, model)
    for name, (value, _) in answers(library, model.with_(log_emission=emission)).items():
        assert_log_close(value[[0, 2]], expected[name][0][[0, 2]], 1e-12 * model.scale, name)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_leading_axes_broadcast(library, data):
    """Each argument may leave out batch axes or have them of size 1; the answers have the common shape."""
    rng = np.random.default_rng(data.draw(seeds))
    steps, states = 4, 2

    def lead():
        return data.draw(st.sampled_from([(), (1,), (3,), (2, 1), (1, 3), (2, 3)]))

    transition = data.draw(st.sampled_from([(), (1,), (steps - 1,), (3, 1), (2, 1, steps - 1), (1, 3, 1)]))
    model = Model(
        random_log(rng, (*lead(), states)),
        random_log(rng, (*transition, states, states)),
        random_log(rng, (*lead(), steps, states)),
        lengths=rng.integers(1, steps + 1, size=lead()) if data.draw(st.booleans()) else None,
        log_final=random_log(rng, (*lead(), states)) if data.draw(st.booleans()) else None,
    )
    shape, library, tolerance = model.batch_shape, LIBRARIES[library], 1e-12 * model.scale
    smoothed = call(library, "forward_backward", model)
    assert smoothed.log_posteriors.shape == (*shape, steps, states)
    assert_log_close(smoothed.log_likelihood, model.expected(lambda one: one.log_likelihood), tolerance)
    assert_log_close(smoothed.log_posteriors, model.expected(lambda one: one.log_posteriors, pad=-np.inf), tolerance)
    best = call(library, "viterbi", model)
    np.testing.assert_array_equal(best.states, model.expected(lambda one: one.viterbi[0], pad=-1))
    counts = call(library, "expected_transitions", model)
    assert_log_close(counts, model.expected(lambda one: one.expected_transitions), tolerance)
    pairs = call(library, "pair_posteriors", model)
    assert_log_close(pairs, model.expected(lambda one: one.log_pairs, pad=-np.inf), tolerance)
    assert_log_close(call(library, "posterior_entropy", model), model.expected(lambda one: one.entropy), tolerance)
    samples = call(library, "sample_posterior", model, rng=library.rng(0), num_samples=5)
    assert samples.shape == (5, *shape, steps)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_lengths_in_every_guise(library, batch):
    """A list, a NumPy array of any integer type, or an array of the library."""
    library = LIBRARIES[library]
    rng = np.random.default_rng(0)
    args = [library.array(random_log(rng, shape)) for shape in ((3,), (3, 3), (*batch, 4, 3))]
    lengths = np.array([2, 4]) if batch else np.array(3)
    expected = library.numpy(hf.log_likelihood(*args, lengths=library.array(lengths)))
    guises = [lengths, lengths.astype(np.int32), lengths.astype(np.uint8), library.array(lengths, np.int32)]
    guises.append(lengths.tolist())  # for one sequence a Python integer
    for guise in guises:
        np.testing.assert_array_equal(library.numpy(hf.log_likelihood(*args, lengths=guise)), expected)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_runs_repeat_bit_for_bit(library, data):
    model = data.draw(models_for(library))
    library = LIBRARIES[library]
    first = answers(library, model)
    for name, (value, _) in answers(library, model).items():
        np.testing.assert_array_equal(value, first[name][0], err_msg=name)


@given(data=st.data())
def test_padding_leaves_samples_alone(data):
    model = data.draw(models(batch=(3,), lengths=True))
    padded = model.with_(log_emission=np.where(model.kept[..., None], model.log_emission, np.nan))
    for library in (NUMPY, TORCH):
        expected, actual = (
            call(library, "sample_posterior", one, rng=library.rng(7), num_samples=4) for one in (model, padded)
        )
        np.testing.assert_array_equal(actual, expected)
        impossible = np.isneginf(model.expected(lambda one: one.log_likelihood))
        outside = ~model.kept | impossible[:, None]
        np.testing.assert_array_equal(actual < 0, np.broadcast_to(outside, actual.shape))
        np.testing.assert_array_equal(actual[:, outside], -1)
