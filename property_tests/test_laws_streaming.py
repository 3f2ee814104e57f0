"""A stream's output equals the offline functions', whatever the chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import cuts, models, seeds
from tests.helpers.backends import JAX, LIBRARIES, TORCH, build_transition, call
from tests.helpers.models import assert_log_close, random_model


def stream(library, model, form, lag, sizes, step=hf.stream_step):
    """The concatenated output, and the number of rows of each chunk's."""
    transition = build_transition(library, form, model.log_transition)
    emission = library.array(model.log_emission)
    # Natural reading, as of `sample`: batch_shape gives the axes in front of those the parameters have.
    shared = model.log_emission.ndim - 1 - model.log_initial.ndim
    batch = model.log_emission.shape[:shared]
    state = hf.stream_init(library.array(model.log_initial), transition, lag=lag, batch_shape=batch, like=emission)
    outputs, start = [], 0
    for size in sizes:
        state, rows = step(state, library.array(model.log_emission[..., start : start + size, :]))
        outputs.append(library.numpy(rows))
        start += size
    outputs.append(library.numpy(hf.stream_flush(state)))
    return np.concatenate(outputs, axis=-2), [rows.shape[-2] for rows in outputs]


@pytest.mark.parametrize("library", ["numpy", "strict", "torch"])
@given(data=st.data())
def test_stream_equals_offline(library, data):
    model = data.draw(models(transition="constant", lengths=False, final=False))
    library, steps = LIBRARIES[library], model.num_steps
    lag, form = data.draw(st.integers(0, 6)), data.draw(st.sampled_from(["dense", "banded", "sparse", "low_rank"]))
    sizes = data.draw(cuts(steps))
    actual, rows = stream(library, model, form, lag, sizes)
    assert_log_close(actual, call(library, "smooth_fixed_lag", model, lag=lag), 1e-12 * model.scale)
    assert_log_close(actual, model.expected(lambda one: one.log_smoothed(lag)), 1e-12 * model.scale)
    if lag == 0:
        assert_log_close(actual, call(library, "forward", model).log_filtered, 1e-12 * model.scale)
    given = np.cumsum(sizes)
    assert np.cumsum(rows)[:-1].tolist() == np.maximum(given - lag, 0).tolist(), "a step is out as soon as it is final"


@pytest.mark.parametrize("lag", [0, 3])
@given(seed=seeds, data=st.data())
def test_long_streams(lag, seed, data):
    rng = np.random.default_rng(seed)
    model = random_model(rng, batch=(2,), num_steps=61, num_states=3, spread=50.0)
    sizes = data.draw(cuts(61))
    if data.draw(st.booleans()):  # parameters that all streams share
        model = model.with_(log_initial=model.log_initial[0])
    actual, _ = stream(TORCH, model, "dense", lag, sizes)
    assert_log_close(actual, call(TORCH, "smooth_fixed_lag", model, lag=lag), 1e-12 * model.scale)


@pytest.mark.parametrize("lag", [0, 2])
def test_stream_steps_compile_in_jax(lag):
    """The count of pending steps is static, so that shapes are known under jit."""
    import jax

    step = jax.jit(hf.stream_step)
    model = random_model(np.random.default_rng(lag), batch=(2,), num_steps=12, num_states=3)
    expected = call(JAX, "smooth_fixed_lag", model, lag=lag)
    for sizes in ([3, 3, 3, 3], [1] * 12):
        actual, _ = stream(JAX, model, "dense", lag, sizes, step=step)
        assert_log_close(actual, expected, 1e-12 * model.scale)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_streams_do_not_touch_their_state(library):
    """A pure state machine: the same state can be stepped twice, and pass through a copy."""
    library = LIBRARIES[library]
    model = random_model(np.random.default_rng(0), batch=(2,), num_steps=8, num_states=3)
    first, second = (library.array(model.log_emission[:, part]) for part in (slice(0, 4), slice(4, 8)))
    args = library.array(model.log_initial[0]), library.array(model.log_transition)
    start = hf.stream_init(*args, lag=2, batch_shape=(2,), like=first)
    middle, _ = hf.stream_step(start, first)
    once = library.numpy(hf.stream_step(middle, second)[1])
    hf.stream_flush(middle)
    twice = library.numpy(hf.stream_step(middle, second)[1])
    np.testing.assert_array_equal(once, twice)
    import copy

    np.testing.assert_array_equal(library.numpy(hf.stream_step(copy.deepcopy(middle), second)[1]), once)
    assert isinstance(middle, tuple), "a NamedTuple"


def test_stream_of_an_impossible_start_stays_in_its_sequence():
    model = random_model(np.random.default_rng(2), batch=(2,), num_steps=6, num_states=3)
    emission = np.array(model.log_emission)
    emission[1, 2] = -np.inf
    model = model.with_(log_emission=emission)
    actual, _ = stream(TORCH, model, "dense", 1, [1] * 6)
    assert_log_close(actual, model.expected(lambda one: one.log_smoothed(1)), 1e-12 * model.scale)
    assert np.isneginf(actual[1, 1:]).all()
    assert np.isfinite(np.logaddexp.reduce(actual[0], axis=-1)).all()


def test_empty_and_missing_flushes():
    """Flushing a filter gives no rows; a stream without a step gives none either."""
    args = TORCH.array(np.zeros(3)), TORCH.array(np.zeros((3, 3)))
    for lag in (0, 2):
        state = hf.stream_init(*args, lag=lag, batch_shape=(2,), like=args[0])
        assert tuple(hf.stream_flush(state).shape) == (2, 0, 3)
    state, rows = hf.stream_step(hf.stream_init(*args, like=args[0]), TORCH.array(np.zeros((4, 3))))
    assert tuple(rows.shape) == (4, 3)
    assert tuple(hf.stream_flush(state).shape) == (0, 3)
