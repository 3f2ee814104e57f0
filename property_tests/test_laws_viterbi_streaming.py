"""Viterbi streams: the offline path however it is cut, each step as soon as it is certain, and what forcing does."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hmm_functional as hf
from hmm_functional.edges import build_edges, structure_from
from hmm_functional.kernels import compiled
from hmm_functional.kernels import trellis as kernel
from hmm_functional.streaming import trellis
from hmm_functional.structure import Dense
from property_tests.strategies import cuts, models, seeds
from tests.helpers import survivors
from tests.helpers.backends import FORMS, LIBRARIES, NUMPY, TORCH, build_transition, call
from tests.helpers.models import assert_log_close, random_log, random_model


def rounded(model):
    """The same with whole numbers, so that there are exact ties."""
    with np.errstate(invalid="ignore"):
        parts = (np.round(x) for x in (model.log_initial, model.log_transition, model.log_emission))
        return model.with_(**dict(zip(("log_initial", "log_transition", "log_emission"), parts, strict=True)))


def stream(library, model, form, sizes, *, max_delay=None, final=None):
    """States of each stream, the flushed score, the state before the flush, and the steps given out by each chunk."""
    transition = build_transition(library, form, model.log_transition)
    shared = model.log_emission.ndim - 1 - model.log_initial.ndim
    batch = model.log_emission.shape[:-2]
    state = hf.viterbi_stream_init(
        library.array(model.log_initial), transition, max_delay=max_delay, batch_shape=batch[:shared]
    )
    outputs, counts, start = [], [], 0
    for size in sizes:
        before = library.numpy(state.num_committed)
        chunk = library.array(model.log_emission[..., start : start + size, :])
        state, states = hf.viterbi_stream_step(state, chunk)
        outputs.append(library.numpy(states))
        counts.append(library.numpy(state.num_committed) - before)
        start += size
    flushed = hf.viterbi_stream_flush(state, log_final=None if final is None else library.array(final))
    given_out = [count.reshape(-1).tolist() for count in counts]
    outputs.append(library.numpy(flushed.states))
    counts.append(library.numpy(state.num_pending))
    num_streams = int(np.prod(batch))
    return survivors.states_of(outputs, counts, num_streams), library.numpy(flushed.log_joint), state, given_out


@pytest.mark.parametrize("library", ["numpy", "torch", "strict"])
@given(data=st.data())
def test_stream_is_viterbi(library, data):
    model = data.draw(models(transition="constant", lengths=False, final=False))
    library, sizes = LIBRARIES[library], data.draw(cuts(model.num_steps))
    if data.draw(st.booleans()):
        model = rounded(model)
    form = data.draw(st.sampled_from(FORMS))
    actual, score, state, _ = stream(library, model, form, sizes)
    expected = call(library, "viterbi", model)
    assert_log_close(score.reshape(model.batch_shape), expected.log_joint, 1e-12 * model.scale)
    assert_log_close(score, model.expected(lambda one: one.viterbi[1]), 1e-12 * model.scale)
    for states, path, value in zip(actual, expected.states.reshape(len(actual), -1), score.reshape(-1), strict=True):
        if value > -np.inf:
            assert states == path.tolist()
        assert len(states) == model.num_steps
    assert not library.numpy(state.num_forced).any()


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=min(25, settings.default.max_examples))
@given(seed=seeds, data=st.data())
def test_long_streams(form, seed, data):
    rng = np.random.default_rng(seed)
    num_states = data.draw(st.integers(2, 9))
    batch = data.draw(st.sampled_from([(), (2,)]))
    zeros = data.draw(st.sampled_from([0.0, 0.4]))
    model = random_model(rng, batch=batch, num_steps=61, num_states=num_states, spread=3.0, zeros=zeros)
    model = model.with_(log_emission=random_log(rng, model.log_emission.shape, spread=3.0))
    if data.draw(st.booleans()):
        model = rounded(model)
    if data.draw(st.booleans()) and batch:
        model = model.with_(log_initial=model.log_initial[0])
    actual, score, _, _ = stream(TORCH, model, form, data.draw(cuts(61)))
    expected = call(TORCH, "viterbi", model, form)
    assert_log_close(score, expected.log_joint, 1e-12 * model.scale)
    for states, path, value in zip(actual, expected.states.reshape(len(actual), -1), score.reshape(-1), strict=True):
        assert states == path.tolist() or value == -np.inf


@pytest.mark.parametrize("max_delay", [None, 0, 1, 4])
@given(seed=seeds, data=st.data())
def test_steps_are_given_out_as_soon_as_survivors_agree(max_delay, seed, data):
    """Chunk by chunk what the oracle gives out, forces and leaves alive."""
    rng = np.random.default_rng(seed)
    zeros = data.draw(st.sampled_from([0.0, 0.3]))
    size, num_states = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 5))
    model = random_model(rng, num_steps=size, num_states=num_states, spread=1.0, zeros=zeros)
    if data.draw(st.booleans()):
        model = rounded(model)
    sizes = data.draw(cuts(size))
    oracle = survivors.Chain(model.log_initial, model.log_transition, max_delay)
    given_out, start = [], 0
    for step in sizes:
        before = len(oracle.out)
        oracle.take(model.log_emission[start : start + step])
        start += step
        given_out.append(len(oracle.out) - before)
    final = random_log(rng, (num_states,), zeros=0.2)
    (actual,), score, state, counts = stream(NUMPY, model, "dense", sizes, max_delay=max_delay, final=final)
    assert [count for (count,) in counts] == given_out
    assert state.num_forced == oracle.num_forced
    assert np.flatnonzero(state.log_message > -np.inf).tolist() == sorted(oracle.survivors)
    expected = oracle.flush(lambda key: final[key])
    assert actual == expected
    if -1 not in expected:
        path = np.array(actual)
        joint = hf.log_joint(model.log_initial, model.log_transition, model.log_emission, states=path, log_final=final)
        assert_log_close(score, joint, 1e-12 * model.scale)
    else:
        assert score == -np.inf
    if max_delay is not None:
        assert state.num_pending <= max_delay


@settings(max_examples=min(25, settings.default.max_examples))
@given(seed=seeds, data=st.data())
def test_streams_of_a_batch_begin_pause_and_end_when_they_like(seed, data):
    """Each gives what it gives alone, after a reset of some, too."""
    rng = np.random.default_rng(seed)
    shape = data.draw(st.sampled_from([(3,), (2, 2)]))
    num_states, num_chunks = 3, data.draw(st.integers(1, 6))
    initial, transition = random_log(rng, (num_states,)), random_log(rng, (num_states, num_states), zeros=0.2)
    state = hf.viterbi_stream_init(*(TORCH.array(x) for x in (initial, transition)), batch_shape=shape)
    alone, expected = {}, {index: [] for index in np.ndindex(shape)}
    outputs, counts = [], []

    def note(states, before, after):
        outputs.append(TORCH.numpy(states))
        counts.append(np.asarray(after) - np.asarray(before))

    for _ in range(num_chunks):
        size = int(rng.integers(0, 6))
        emission = random_log(rng, (*shape, size, num_states), spread=2.0)
        lengths = rng.integers(0, size + 1, size=shape)
        padded = np.where(np.arange(size)[:, None] < lengths[..., None, None], emission, np.nan)
        before = state.num_committed
        state, states = hf.viterbi_stream_step(state, TORCH.array(padded), lengths)
        note(states, before, state.num_committed)
        for index in np.ndindex(shape):
            one = alone.setdefault(index, survivors.Chain(initial, transition))
            one.take(emission[index][: lengths[index]])
        ends = rng.random(shape) < 0.3
        flushed = hf.viterbi_stream_flush(state, ends)
        note(flushed.states, state.num_committed, np.where(ends, state.num_steps, state.num_committed))
        state = hf.viterbi_stream_reset(state, ends)
        for index in zip(*np.nonzero(ends), strict=True):
            expected[index] += alone.pop(index).flush()
    for index, one in alone.items():
        expected[index] += one.out
    assert survivors.states_of(outputs, counts, int(np.prod(shape))) == list(expected.values())


HARD = (np.nan, np.inf, np.nan, -np.inf)
SCALINGS = (trellis.Scaling(1, 0, True), trellis.Scaling(16, 0, False), trellis.Scaling(3, 2, True))


def scores(rng, shape, zeros, is_tied, huge, dtype):
    """Some -inf, with ties or without, of any size."""
    found = random_log(rng, shape, spread=2.0, zeros=zeros)
    with np.errstate(all="ignore"):
        return ((np.round(found) if is_tied else found) * huge).astype(dtype)


def by_both(function, *arguments):
    """What compiled code makes of it, which must be used, and what NumPy does; and that these are the same bits."""
    with mock.patch.object(kernel, "_call", wraps=kernel._call) as call:
        found = function(*arguments)
    assert call.called
    with (
        mock.patch.object(kernel, "can_run", return_value=False),
        mock.patch.object(kernel, "can_commit", return_value=False),
        np.errstate(all="ignore"),
    ):
        expected = function(*arguments)
    for name, one, other in zip(found._fields, found, expected, strict=True):
        assert one.dtype == other.dtype
        if name != "pointers":  # which may hold anything past the lengths
            np.testing.assert_array_equal(one, other, name)
    return found, expected


@pytest.mark.skipif(not compiled.is_available(), reason="needs Numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=min(75, settings.default.max_examples))
@given(seed=seeds, data=st.data())
def test_compiled_steps_are_those_of_numpy_to_the_bit(dtype, seed, data):
    """With ties, NaN and infinities anywhere, sums that overflow, ragged lengths, streams at different places."""
    rng = np.random.default_rng(seed)
    num_states = data.draw(st.sampled_from([1, 3, 8, 9, 17, 33, 50, 70]))
    size, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
    is_tied, zeros = data.draw(st.sampled_from([True, True, False])), data.draw(st.sampled_from([0.0, 0.3]))
    hard = data.draw(st.sampled_from([None, None, None, 0, 1, 2, 3]))
    huge = data.draw(st.sampled_from([1.0, 1.0, 1.0, 1e38, 1e308]))

    def draw(*shape):
        return scores(rng, shape, zeros, is_tied, huge, dtype)

    structure, base = Dense(num_states), (num_states, num_states)
    if data.draw(st.booleans()):
        is_edge = rng.random(base) < 0.3
        is_edge[0, 0] = True
        ends = np.nonzero(is_edge)
        structure, base = structure_from(*build_edges(*ends, num_states)), (len(ends[0]),)
    weights = draw(data.draw(st.sampled_from([1, size])), *base)
    arrays = [weights, draw(size, num_states), draw(size, num_states), draw(size, count, num_states)]
    if hard is not None:
        arrays[hard].reshape(-1)[rng.integers(arrays[hard].size)] = rng.choice(HARD)
    weights, initial, message, emission = arrays
    lengths = rng.integers(0, count + 1, size) if data.draw(st.booleans()) else np.full(size, count)
    steps = rng.integers(0, 20, size) * rng.integers(0, 2, size)
    pending = np.minimum(steps, rng.integers(0, 4, size))
    held = rng.integers(0, num_states, (int(pending.max()), size, num_states)).astype(np.int16)
    moves = trellis.Moves(structure, weights, size, dtype)
    origins = rng.integers(0, num_states, (size, num_states))
    scaling = data.draw(st.sampled_from(SCALINGS))
    streams = initial, message, origins, emission, lengths, steps, pending
    one, other = by_both(trellis.forward, moves, scaling, *streams)
    for b in range(size):
        np.testing.assert_array_equal(one.pointers[: lengths[b], b], other.pointers[: lengths[b], b])
    window = trellis.window(held, one.pointers, pending, lengths)
    delay = data.draw(st.sampled_from([None, 0, 1, 2]))
    by_both(trellis.commit, one.message, one.origins, window, steps + lengths, pending + lengths, delay)


def segment_model(rng, num_steps, num_states, longest, zeros):
    """A model without segments of one state in a row, which differ in rounding alone."""
    arrays = [
        random_log(rng, shape, zeros=zeros)
        for shape in ((num_states,), (num_states, num_states), (num_states, longest), (num_steps, num_states))
    ]
    np.fill_diagonal(arrays[1], -np.inf)
    return arrays


@pytest.mark.skipif(not compiled.is_available(), reason="needs Numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=min(75, settings.default.max_examples))
@given(seed=seeds, data=st.data())
def test_compiled_segments_are_those_of_numpy_to_the_bit(dtype, seed, data):
    """The whole state, after chunks of any size."""
    rng = np.random.default_rng(seed)
    num_states, longest = data.draw(st.sampled_from([1, 3, 8, 16, 19])), data.draw(st.sampled_from([1, 2, 5, 20]))
    size, count, zeros = (
        data.draw(st.integers(1, 2)),
        data.draw(st.integers(1, 12)),
        data.draw(st.sampled_from([0, 0.3])),
    )
    is_tied, huge = data.draw(st.booleans()), data.draw(st.sampled_from([1.0, 1.0, 1e37, 1e307]))

    def draw(*shape):
        return scores(rng, shape, zeros, is_tied, huge, dtype)

    arrays = [
        draw(num_states),
        draw(num_states, num_states),
        draw(num_states, longest),
        draw(size, 2 * count, num_states),
    ]
    hard = data.draw(st.sampled_from([None, None, 0, 1, 2, 3]))
    if hard is not None:
        arrays[hard].reshape(-1)[rng.integers(arrays[hard].size)] = rng.choice(HARD)
    emission = arrays.pop()
    lengths = rng.integers(0, count + 1, size)
    max_delay = data.draw(st.sampled_from([None, 0, 3]))

    def streamed():
        state = hf.semi_markov_viterbi_stream_init(*arrays, max_delay=max_delay, batch_shape=(size,))
        state, first = hf.semi_markov_viterbi_stream_step(state, emission[:, :count], lengths)
        state, second = hf.semi_markov_viterbi_stream_step(state, emission[:, count:])
        return [*first, *second, *state[:-1]]

    with np.errstate(all="ignore"):
        with (
            mock.patch.object(kernel, "segments", wraps=kernel.segments) as taken,
            mock.patch.object(kernel, "follow", wraps=kernel.follow) as followed,
        ):
            found = streamed()
        assert taken.called
        assert followed.called
        with (
            mock.patch.object(kernel, "can_run", return_value=False),
            mock.patch.object(kernel, "can_commit", return_value=False),
        ):
            expected = streamed()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("max_delay", [None, 0, 3])
@given(seed=seeds, data=st.data())
def test_segments_are_given_out_as_soon_as_survivors_agree(max_delay, seed, data):
    rng = np.random.default_rng(seed)
    size, num_states, longest = (
        data.draw(st.integers(1, 24)),
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 6)),
    )
    arrays = segment_model(rng, size, num_states, longest, data.draw(st.sampled_from([0.0, 0.2])))
    is_tied = data.draw(st.booleans())
    if is_tied:
        with np.errstate(invalid="ignore"):
            arrays = [np.round(x) for x in arrays]
    emission = arrays.pop()
    sizes = data.draw(cuts(size))
    censored = not is_tied and data.draw(st.booleans())
    oracle = survivors.Segments(*arrays, max_delay)
    state = hf.semi_markov_viterbi_stream_init(*arrays, max_delay=max_delay)
    actual, start = [], 0
    for step in sizes:
        oracle.take(emission[start : start + step])
        state, found = hf.semi_markov_viterbi_stream_step(state, emission[start : start + step])
        start += step
        actual += zip(found.states.tolist(), found.is_start.astype(int).tolist(), strict=True)
        # with whole numbers the sums of durations are not, and may tie in all but rounding
        if max_delay is None or not is_tied:
            assert len(actual) == len(oracle.out) == state.num_committed
    flushed = hf.semi_markov_viterbi_stream_flush(state, censored=censored)
    actual += zip(flushed.states.tolist(), flushed.is_start.astype(int).tolist(), strict=True)
    law = oracle.tail if censored else oracle.duration
    if is_tied and max_delay is not None:
        return
    expected = oracle.flush(lambda key: law[key])
    assert actual == expected
    assert state.num_forced == oracle.num_forced
    if max_delay is None:
        offline = hf.semi_markov_viterbi(*arrays, emission, censored=censored)
        if flushed.log_joint == -np.inf:  # which steps given out before did not know
            assert offline.log_joint == -np.inf
            return
        assert [state for state, _ in actual] == offline.states.tolist()
        assert [bool(begins) for _, begins in actual] == offline.is_start.tolist()
        np.testing.assert_allclose(flushed.log_joint, offline.log_joint, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("library", ["numpy", "torch", "strict"])
@settings(max_examples=min(25, settings.default.max_examples))
@given(seed=seeds, data=st.data())
def test_semi_markov_smoothing(library, seed, data):
    """Each step's posterior is that of the sequence that ends with its look-ahead."""
    rng, library = np.random.default_rng(seed), LIBRARIES[library]
    size, num_states, longest = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    arrays = segment_model(rng, size, num_states, longest, data.draw(st.sampled_from([0.0, 0.2])))
    lag = data.draw(st.integers(0, 8))
    batch = data.draw(st.sampled_from([(), (2,)]))
    emission = random_log(rng, (*batch, size, num_states), spread=3.0)
    args = [library.array(x) for x in arrays[:3]]
    state = hf.semi_markov_smooth_stream_init(*args, lag=lag, batch_shape=batch)
    rows, start = [], 0
    for step in data.draw(cuts(size)):
        state, found = hf.semi_markov_smooth_stream_step(state, library.array(emission[..., start : start + step, :]))
        start += step
        rows.append(library.numpy(found))
        assert sum(x.shape[-2] for x in rows) == max(start - lag, 0)
    rows.append(library.numpy(hf.semi_markov_smooth_stream_flush(state)))
    actual = np.concatenate(rows, axis=-2)
    for t in range(size):
        until = emission[..., : min(t + lag + 1, size), :]
        expected = hf.semi_markov_forward_backward(*arrays[:3], until, kernel="reference").log_posteriors[..., t, :]
        assert_log_close(actual[..., t, :], expected, 1e-9)


@settings(max_examples=min(10, settings.default.max_examples))
@given(seed=seeds, data=st.data())
def test_look_ahead_by_windows_is_look_ahead_by_rounds(seed, data):
    rng = np.random.default_rng(seed)
    model = random_model(rng, batch=(2,), num_steps=23, num_states=5, spread=30.0, zeros=0.2)
    model = model.with_(lengths=rng.integers(1, 24, size=2))
    lag, form = data.draw(st.integers(1, 30)), data.draw(st.sampled_from(FORMS))
    fast = call(TORCH, "smooth_fixed_lag", model, form, lag=lag)
    slow = call(TORCH, "smooth_fixed_lag", model, form, lag=lag, kernel="reference")
    assert_log_close(fast, slow, 1e-12 * model.scale)
