"""Viterbi streams: known answers, what impossible ones do, errors, the state in files, and memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

import hmm_functional as hf
from hmm_functional.kernels import compiled
from hmm_functional.kernels import trellis as kernel
from tests.helpers.backends import LIBRARIES

LEFT_TO_RIGHT = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]).log()
START = torch.tensor([1.0, 0.0, 0.0]).log()


def ids(*path):
    return torch.tensor(path, dtype=torch.int64)


def test_what_comes_out_and_when():
    state = hf.viterbi_stream_init(START, LEFT_TO_RIGHT)
    near = 5.0 * torch.eye(3)
    state, out = hf.viterbi_stream_step(state, near[[0, 0]])
    assert out.tolist() == [0]  # the second step may be state 1 yet
    state, out = hf.viterbi_stream_step(state, near[[1, 1, 2]])
    assert out.tolist() == [0]  # the best path that stays in state 0 goes on
    assert state.num_steps == 5
    assert state.num_committed == 2
    assert state.num_pending == 3
    flushed = hf.viterbi_stream_flush(state)
    assert flushed.states.tolist() == [1, 1, 2]
    expected = hf.viterbi(START, LEFT_TO_RIGHT, near[[0, 0, 1, 1, 2]])
    torch.testing.assert_close(flushed.log_joint, expected.log_joint)
    torch.testing.assert_close(state.log_joint, expected.log_joint)
    final = torch.tensor([0.0, 9.0, 0.0])
    assert hf.viterbi_stream_flush(state, log_final=final).states.tolist() == [1, 1, 1]
    assert out.dtype == torch.int64


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_ties_go_as_offline(library):
    library = LIBRARIES[library]
    zeros = [library.array(np.zeros(shape)) for shape in ((3,), (3, 3), (40, 3))]
    state = hf.viterbi_stream_init(*zeros[:2])
    out = []
    for start in range(0, 40, 7):
        state, states = hf.viterbi_stream_step(state, zeros[2][start : start + 7])
        out += np.asarray(library.numpy(states)).tolist()
    out += library.numpy(hf.viterbi_stream_flush(state).states).tolist()
    assert out == library.numpy(hf.viterbi(*zeros).states).tolist() == [0] * 40


@pytest.mark.parametrize("form", [torch.float32, torch.float64, torch.float16])
def test_rounding_ties_as_offline(form):
    """Unobserved frames leave paths that differ in the order of their sums alone."""
    torch.manual_seed(0)
    for size in (5, 20):
        transition = (0.1 + torch.eye(size)).log().log_softmax(-1).to(form)
        emission = torch.randn(200, size).to(form)
        emission[torch.rand(200) < 0.7] = 0.0
        initial = torch.zeros(size, dtype=form)
        state = hf.viterbi_stream_init(initial, transition)
        out = []
        for chunk in emission.split(13):
            state, states = hf.viterbi_stream_step(state, chunk)
            out.append(states)
        flushed = hf.viterbi_stream_flush(state)
        expected = hf.viterbi(initial, transition, emission)
        assert torch.equal(torch.cat([*out, flushed.states]), expected.states)
        torch.testing.assert_close(flushed.log_joint.to(expected.log_joint), expected.log_joint, rtol=1e-3, atol=0)


def test_from_a_break_on_states_are_missing():
    transition = torch.zeros(2, 2)
    for bad in (torch.full((1, 2), -torch.inf), torch.tensor([[0.0, torch.nan]]), torch.tensor([[torch.inf, 0.0]])):
        state = hf.viterbi_stream_init(torch.zeros(2), transition, batch_shape=(2,))
        good = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        state, out = hf.viterbi_stream_step(state, good.expand(2, 3, 2))
        assert out.tolist() == [[0, 1]] * 2
        state, out = hf.viterbi_stream_step(state, torch.stack([torch.cat([good[:1], bad]), good[:2]]))
        assert out.tolist() == [[-1, -1, -1], [0, 0, -1]]
        assert state.num_committed.tolist() == [5, 4]
        state, out = hf.viterbi_stream_step(state, good.expand(2, 3, 2))
        assert out[0].tolist() == [-1, -1, -1]
        assert out[1].tolist() == [1, 0, 1]
        score = hf.viterbi_stream_flush(state).log_joint
        assert score[0].isnan() == (not (bad == -torch.inf).all())
        assert score[1] == 8.0
        state = hf.viterbi_stream_reset(state, [True, False])
        assert hf.viterbi_stream_step(state, good.expand(2, 3, 2))[1][0].tolist() == [0, 1, -1]


def test_nothing_taken_nothing_given():
    state = hf.viterbi_stream_init(torch.zeros(2), torch.zeros(2, 2))
    assert hf.viterbi_stream_flush(state).log_joint == 0
    again, out = hf.viterbi_stream_step(state, torch.zeros(0, 2))
    assert out.shape == (0,)
    assert again.num_steps == 0
    state = hf.viterbi_stream_init(torch.zeros(2), torch.zeros(2, 2), batch_shape=(3,))
    state, out = hf.viterbi_stream_step(state, torch.zeros(3, 2, 2), [0, 1, 2])
    assert state.num_steps.tolist() == [0, 1, 2]
    assert out.tolist() == [[-1], [-1], [0]]


def test_a_forced_path_is_one_path():
    """A late hint would have changed the past: what was forced is gone on from."""
    transition = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    emission = torch.tensor([[0.1, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 9.0]])
    free = hf.viterbi_stream_init(torch.zeros(2), transition)
    free, out = hf.viterbi_stream_step(free, emission[:3])
    assert len(out) == 0
    assert hf.viterbi_stream_flush(hf.viterbi_stream_step(free, emission[3:])[0]).states.tolist() == [1] * 4
    state = hf.viterbi_stream_init(torch.zeros(2), transition, max_delay=1)
    state, out = hf.viterbi_stream_step(state, emission[:3])
    assert out.tolist() == [0, 0, 0]  # once the first is forced, the others are certain
    assert state.num_forced == 1
    state, out = hf.viterbi_stream_step(state, emission[3:])
    assert out.tolist() == [0]
    torch.testing.assert_close(hf.viterbi_stream_flush(state).log_joint, torch.tensor(0.1))


@pytest.mark.parametrize("build", [hf.viterbi_stream_init, hf.semi_markov_viterbi_stream_init])
def test_errors(build):
    zeros = [torch.zeros(2), torch.zeros(2, 2), torch.zeros(2, 3)]
    given = zeros if build is hf.semi_markov_viterbi_stream_init else zeros[:2]
    step = hf.semi_markov_viterbi_stream_step if len(given) == 3 else hf.viterbi_stream_step
    flush = hf.semi_markov_viterbi_stream_flush if len(given) == 3 else hf.viterbi_stream_flush
    with pytest.raises(ValueError, match=r"max_delay: expected an integer of at least 0, got -1"):
        build(*given, max_delay=-1)
    with pytest.raises(ValueError, match=r"log_transition: expected one constant in time|log_transition: .*slot"):
        build(given[0], torch.zeros(4, 2, 2), *given[2:])
    state = build(*given)
    with pytest.raises(ValueError, match=r"log_emission_chunk: expected shape \(..., n, K\) with K = 2, got \(3,\)"):
        step(state, torch.zeros(3))
    with pytest.raises(TypeError, match="log_emission_chunk: expected a floating-point dtype"):
        step(state, torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="log_emission_chunk: expected an array of torch"):
        step(state, np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"lengths: expected values in 0..3, got 4..4"):
        step(state, torch.zeros(3, 2), 4)
    with pytest.raises(TypeError, match="lengths: expected integers"):
        step(state, torch.zeros(3, 2), 1.5)
    with pytest.raises(TypeError, match="is_ending: expected booleans"):
        flush(state, [1])
    with pytest.raises(TypeError, match="not traced"):
        torch.func.vmap(lambda x: step(state, x)[1])(torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match="batch axes must broadcast"):
        step(build(*given, batch_shape=(2,)), torch.zeros(3, 4, 2))


def test_jax():
    import jax
    import jax.numpy as jnp

    draw = np.random.default_rng(0).normal
    initial, transition, emission = (jnp.asarray(draw(size=s)) for s in ((3,), (3, 3), (2, 30, 3)))
    state = hf.viterbi_stream_init(initial, transition, batch_shape=(2,))
    state, out = hf.viterbi_stream_step(state, emission)
    leaves, tree = jax.tree.flatten(state)
    flushed = hf.viterbi_stream_flush(jax.tree.unflatten(tree, leaves))
    expected = hf.viterbi(initial, transition, emission)
    for b in range(2):
        found = [*out[b, : state.num_committed[b]].tolist(), *flushed.states[b, : state.num_pending[b]].tolist()]
        assert found == expected.states[b].tolist()
    np.testing.assert_allclose(flushed.log_joint, expected.log_joint)
    with pytest.raises(TypeError, match="not traced"):
        jax.jit(hf.viterbi_stream_step)(state, emission)
    duration = jnp.asarray(draw(size=(3, 4)))
    smooth = hf.semi_markov_smooth_stream_init(initial, transition, duration, lag=2)
    _, compiled = jax.jit(hf.semi_markov_smooth_stream_step)(smooth, emission[0, :5])
    arrays = [np.asarray(x) for x in (initial, transition, duration)]
    smooth = hf.semi_markov_smooth_stream_init(*arrays, lag=2)
    _, expected = hf.semi_markov_smooth_stream_step(smooth, np.asarray(emission[0, :5]))
    np.testing.assert_allclose(compiled, expected, rtol=1e-12, atol=1e-12)


def test_a_long_score_keeps_its_digits():
    """In float32, at 50,000 steps of tens of nats: by exact arithmetic."""
    emission = torch.full((1000, 1), -33.3)
    state = hf.viterbi_stream_init(torch.zeros(1), torch.full((1, 1), -1.3))
    for _ in range(50):
        state, _ = hf.viterbi_stream_step(state, emission)
    assert abs(float(state.log_message)) < 1000  # scaled as it goes
    exact = float(emission[0, 0]) * 50_000 + float(torch.tensor(-1.3)) * 49_999
    assert abs(float(state.log_scale.sum()) + float(state.log_message) - exact) < 1e-7 * abs(exact)


def test_inputs_are_not_written_to_and_states_not_shared():
    emission = torch.randn(2, 9, 3)
    state = hf.viterbi_stream_init(torch.zeros(3), torch.zeros(3, 3), batch_shape=(2,), max_delay=1)
    middle, _ = hf.viterbi_stream_step(state, emission)
    kept = [x.clone() for x in middle[:-1]]
    first = hf.viterbi_stream_step(middle, emission)
    hf.viterbi_stream_reset(middle)
    second = hf.viterbi_stream_step(middle, emission)
    assert all(torch.equal(a, b) for a, b in zip(middle[:-1], kept, strict=True))
    assert torch.equal(first[1], second[1])


RESUME = """
import sys
import numpy as np
import hmm_functional as hf
saved = np.load(sys.argv[1])
state = hf.viterbi_stream_init(saved["log_initial"], saved["log_transition"], max_delay=int(saved["max_delay"]))
state = state._replace(**{name: saved[name] for name in state._fields if name != "max_delay"})
state, states = hf.viterbi_stream_step(state, saved["chunk"])
flushed = hf.viterbi_stream_flush(state)
print([*states.tolist(), *flushed.states.tolist()], int(state.num_forced), float(flushed.log_joint).hex())
"""


def test_a_stream_goes_on_in_another_process(tmp_path):
    rng = np.random.default_rng(1)
    emission = rng.normal(size=(60, 4))
    state = hf.viterbi_stream_init(rng.normal(size=4), rng.normal(size=(4, 4)), max_delay=3)
    state, _ = hf.viterbi_stream_step(state, emission[:37])
    assert state.num_pending > 0
    np.savez(tmp_path / "stream.npz", **state._asdict(), chunk=emission[37:])
    ran = subprocess.run(
        [sys.executable, "-c", RESUME, str(tmp_path / "stream.npz")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    state, states = hf.viterbi_stream_step(state, emission[37:])
    flushed = hf.viterbi_stream_flush(state)
    here = [*states.tolist(), *flushed.states.tolist()], int(state.num_forced), float(flushed.log_joint).hex()
    assert ran.stdout.strip() == "{} {} {}".format(*here)


@pytest.mark.parametrize("max_delay", [None, 20])
def test_memory_does_not_grow(max_delay):
    """Paths that never meet keep back-pointers, at most `max_delay` of them; others none."""
    transition = np.log(np.full((6, 6), 0.02) + 0.88 * np.eye(6))
    if max_delay is not None:
        transition = np.where(np.eye(6) > 0, 0.0, -np.inf)
    state = hf.viterbi_stream_init(np.zeros(6), transition, max_delay=max_delay)
    rng, sizes = np.random.default_rng(0), []
    tracemalloc.start()
    try:
        for i in range(400):
            state, _ = hf.viterbi_stream_step(state, rng.normal(size=(40, 6)))
            if i % 100 == 99:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert state.num_steps == 16_000
    assert state.num_pending <= 200
    assert sizes[-1] - sizes[0] < 60_000  # pointers of 12,000 steps would be 144,000; the interpreter keeps some blocks


def test_flags_of_more_streams_than_there_are() -> None:
    state = hf.viterbi_stream_init(torch.zeros(2), torch.zeros(2, 2), batch_shape=(2,))
    with pytest.raises(ValueError, match=r"is_ended: expected booleans of the streams, whose batch shape is \(2,\)"):
        hf.viterbi_stream_reset(state, [[True, False]] * 3)
    with pytest.raises(ValueError, match=r"is_ending: expected booleans .* got \(3, 2\)"):
        hf.viterbi_stream_flush(state, [[True, False]] * 3)


def test_bfloat16_is_read_on_the_host() -> None:
    scores = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.bfloat16)
    state, states = hf.viterbi_stream_step(hf.viterbi_stream_init(torch.zeros(2), torch.zeros(2, 2)), scores)
    assert states.tolist() == [1]
    assert float(state.log_joint) == 3.0
    assert hf.ctc_prefix_search(scores).labels.tolist() == [[1]]


needs_numba = pytest.mark.skipif(not compiled.is_available(), reason="needs Numba")


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["dense", "banded"])
def test_steps_are_taken_by_compiled_code(dtype, form, monkeypatch) -> None:
    seen, original = [], compiled.entry
    monkeypatch.setattr(compiled, "entry", lambda *key: (seen.append(key), original(*key))[1])
    transition = torch.zeros(40, 40, dtype=dtype)
    if form == "banded":
        transition = hf.Banded(transition[:2], (0, 1))
    state = hf.viterbi_stream_init(torch.zeros(40, dtype=dtype), transition)
    hf.viterbi_stream_step(state, torch.randn(5, 40, dtype=dtype))
    element = "f32" if dtype == torch.float32 else "f64"
    assert seen == [("trellis", "forward", element), ("trellis", "commit")]


@pytest.mark.parametrize("max_delay", [None, 1])
def test_without_numba_numpy_does_the_same(max_delay, monkeypatch) -> None:
    torch.manual_seed(0)
    transition, emission = torch.randn(6, 6).log_softmax(-1), torch.randn(2, 50, 6)

    def streamed():
        state, found = hf.viterbi_stream_init(torch.zeros(6), transition, batch_shape=(2,), max_delay=max_delay), []
        for chunk in emission.split(7, dim=1):
            state, states = hf.viterbi_stream_step(state, chunk, [chunk.shape[1], 1])
            found.append(states)
        return [x.tolist() for x in (*found, state.num_committed, state.num_forced)], state.log_joint

    expected, score = streamed()
    monkeypatch.setattr(compiled, "is_available", lambda: False)
    monkeypatch.setattr(kernel, "_call", lambda *_: pytest.fail("compiled code was called"))
    found, other = streamed()
    assert found == expected
    torch.testing.assert_close(other, score)  # messages are in float32 then


@needs_numba
def test_pointers_of_many_states() -> None:
    """More than 16 bits tell apart, along bands."""
    num_states, generator = 2**15 + 3, np.random.default_rng(0)
    arrays = [generator.normal(size=shape) for shape in ((num_states,), (2, num_states), (6, num_states))]
    transition = hf.Banded(arrays[1], (0, 1))
    state = hf.viterbi_stream_init(arrays[0], transition, max_delay=0)
    state, states = hf.viterbi_stream_step(state, arrays[2])
    assert state.back_pointers.dtype == np.int32
    right = hf.viterbi(arrays[0], transition, arrays[2], kernel="reference")
    np.testing.assert_array_equal(states, right.states)


@needs_numba
def test_a_damaged_state_is_no_way_out_of_memory() -> None:
    transition = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    state, _ = hf.viterbi_stream_step(hf.viterbi_stream_init(torch.zeros(2), transition), torch.zeros(3, 2))
    assert state.num_pending == 3
    for value in (2, -1, 2**15 - 1):
        damaged = state._replace(back_pointers=torch.full_like(state.back_pointers, value), max_delay=0)
        with pytest.raises(ValueError, match=r"state: expected back_pointers in 0..1, got others"):
            hf.viterbi_stream_step(damaged, torch.tensor([[0.0, 0.0]]))
    for lost in (1, -1):
        damaged = state._replace(num_committed=torch.tensor(-40 * lost), max_delay=0)
        hf.viterbi_stream_step(damaged, torch.zeros(1, 2))  # whatever comes out
