"""Calls of a form seen before: the same as the first, for whatever the arguments hold and wherever they lie."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest
import torch

import hmm_functional as hf
from hmm_functional.kernels import plan, repeat
from hmm_functional.kernels.repeat import Recipe

QUANTITIES = ("log_likelihood", "forward", "forward_backward", "viterbi")


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    repeat.forget()
    yield
    repeat.forget()


@pytest.fixture
def runs(monkeypatch):
    """The repetitions so far, as a list that grows."""
    seen = []
    original = Recipe.run
    monkeypatch.setattr(Recipe, "run", lambda self, given: (seen.append(1), original(self, given))[1])
    return seen


def draw(rng, batch=3, num_steps=40, num_states=6, dtype=np.float64, library="torch"):
    shapes = ((num_states,), (num_states, num_states), (batch, num_steps, num_states))
    arrays = [(3 * rng.normal(size=shape)).astype(dtype) for shape in shapes]
    return [torch.from_numpy(x) for x in arrays] if library == "torch" else arrays


def assert_right(name, arrays, **options):
    found = getattr(hf, name)(*arrays, **options)
    expected = getattr(hf, name)(*arrays, **{**options, "kernel": "reference"})
    assert type(found) is type(expected)
    tolerance = 1e-10 if arrays[2].itemsize == 8 else 3e-4
    for x, y in zip(*((f if isinstance(f, tuple) else (f,)) for f in (found, expected)), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)
    return found


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("shape", [(1, 30, 3), (3, 40, 6), (40, 21, 9), (2, 7, 33), (1, 3000, 5)])
def test_repetitions_are_right(runs, library, dtype, name, shape):
    rng = np.random.default_rng(sum(shape))
    for i in range(5):
        arrays = draw(rng, *shape, dtype, library)
        if i == 3:
            arrays[2][0, shape[1] // 2] = -np.inf
        assert_right(name, arrays)
    assert len(runs) == 3


@pytest.mark.parametrize("name", QUANTITIES)
def test_where_arguments_lie_does_not_matter(runs, name):
    """Views with strides, batches of weights, final weights, unbatched arrays: right, repeated or not."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        initial, transition, emission = draw(rng)
        wide = torch.from_numpy(rng.normal(size=(3, 80, 9)))
        assert_right(name, (initial, transition.T, emission))
        assert_right(name, (initial, transition, wide[:, ::2, 2:8]))
        assert_right(name, (initial, transition, emission), log_final=initial.flip(0))
        assert_right(name, (initial, transition, emission[0]))
        assert_right(name, (initial.expand(3, 6), transition.expand(3, 1, 6, 6) * 1.0, emission))
        assert_right(name, (initial[None], transition.repeat(39, 1, 1), emission))
    assert len(runs) >= 8


@pytest.mark.parametrize("name", QUANTITIES)
def test_what_is_copied_or_shared_is_not_repeated(runs, name):
    rng = np.random.default_rng(0)
    for _ in range(4):
        initial, transition, emission = draw(rng)
        assert_right(name, (initial.float(), transition, emission))  # to one dtype
        assert_right(name, (initial, transition, emission.flip(-1).permute(0, 2, 1).contiguous().permute(0, 2, 1)))
        assert_right(name, (transition[0], transition, emission))  # inside of another argument
        assert_right(name, (initial, transition, emission), log_final=initial)
        assert_right(name, (initial, hf.Banded(transition[:2], (0, 1)), emission))
        assert_right(name, (initial, transition, emission), lengths=[40, 3, 17])
    assert runs == []


def test_results_are_the_caller_s(runs):
    rng = np.random.default_rng(0)
    given = [draw(rng) for _ in range(4)]
    kept = [hf.forward_backward(*arrays) for arrays in given]
    copies = [(x.log_posteriors.clone(), x.log_likelihood.clone()) for x in kept]
    kept[2].log_posteriors.fill_(0.0)
    again = hf.forward_backward(*given[3])
    assert torch.equal(again.log_posteriors, copies[3][0])
    assert torch.equal(kept[3].log_posteriors, copies[3][0])
    assert len(runs) == 3


def test_derivatives_are_asked_for_between_repetitions(runs):
    rng = np.random.default_rng(0)
    arrays = draw(rng)
    for _ in range(3):
        hf.log_likelihood(*arrays)
    leaf = arrays[2].clone().requires_grad_()
    value = hf.log_likelihood(*arrays[:2], leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(gradient, hf.forward_backward(*arrays).log_posteriors.exp())
    with torch.no_grad():
        assert not hf.log_likelihood(*arrays[:2], leaf).requires_grad
    assert torch.func.vmap(lambda e: hf.log_likelihood(*arrays[:2], e))(arrays[2]).shape == (3,)
    moved = torch.func.jvp(lambda e: hf.log_likelihood(*arrays[:2], e), (arrays[2],), (torch.ones_like(leaf),))[1]
    torch.testing.assert_close(moved, torch.full((3,), 40.0, dtype=torch.float64))
    assert len(runs) == 2


def test_errors_are_those_of_a_first_call():
    arrays = draw(np.random.default_rng(0))
    for _ in range(3):
        hf.viterbi(*arrays)
    with pytest.raises(ValueError, match="kernel"):
        hf.viterbi(*arrays, kernel="none such")
    with pytest.raises(ValueError, match="kernel"):
        hf.viterbi(*arrays, kernel=["numba"])
    with pytest.raises(TypeError, match="bogus"):
        hf.viterbi(*arrays, bogus=1)
    with pytest.raises(TypeError, match="log_initial"):
        hf.viterbi(None, *arrays[1:])
    with pytest.raises(ValueError, match="log_emission"):
        hf.viterbi(*arrays[:2], arrays[2][0, 0])
    for _ in range(3):
        with pytest.raises(ValueError, match="log_initial"):
            hf.viterbi(arrays[0][:4], *arrays[1:])


def test_threads_repeat_their_own_calls():
    rng = np.random.default_rng(0)
    given = [draw(rng, 1, 2500, 5) for _ in range(4)]
    expected = [hf.forward_backward(*arrays).log_posteriors for arrays in given]
    wrong = []

    def work(i):
        for _ in range(50):
            if not torch.equal(hf.forward_backward(*given[i]).log_posteriors, expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_signal_s_handler_may_make_the_same_call():
    rng = np.random.default_rng(0)
    here, there = draw(rng), draw(rng)
    expected, inside = hf.viterbi(*here).states, hf.viterbi(*there).states
    wrong, calls = [], []

    def handler(*_):
        calls.append(torch.equal(hf.viterbi(*there).states, inside))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 5e-3, 5e-3)
    try:
        for _ in range(4000):
            if not torch.equal(hf.viterbi(*here).states, expected):
                wrong.append(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert wrong == []
    assert calls
    assert all(calls)


def test_little_is_remembered(monkeypatch, runs):
    monkeypatch.setattr(repeat, "MOST_FORMS", 8)
    rng = np.random.default_rng(0)
    for num_steps in range(2, 60):
        hf.log_likelihood(*draw(rng, num_steps=num_steps))
    assert len(repeat._memory.calls) <= 8
    large = draw(rng, 1, 2, 800)
    for _ in range(4):
        hf.log_likelihood(*large)  # its matrix alone takes more than may be kept
    assert runs == []


def test_another_number_of_threads_is_another_form(runs, monkeypatch):
    monkeypatch.setattr(plan, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    arrays = draw(np.random.default_rng(0), 1, 300, 5)
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            for _ in range(3):
                assert_right("forward_backward", arrays)
    finally:
        torch.set_num_threads(before)
    assert len(runs) == 2
