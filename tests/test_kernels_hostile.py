"""Arrays and contexts that compiled code must not misread: what it cannot take goes to array code, or an operator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import hmm_functional as hf
from hmm_functional import arrays as arrays_module
from hmm_functional.kernels import plan, repeat

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    repeat.forget()
    yield
    repeat.forget()


def chain(batch=2, num_steps=30, num_states=4):
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_states,), (num_states, num_states), (batch, num_steps, num_states))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def child(code):
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def expected(arrays):
    return hf.log_likelihood(*arrays, kernel="reference")


def test_negated_views():
    initial, transition, emission = chain()
    negated = torch.complex(torch.zeros_like(transition), -transition).conj().imag
    assert negated.is_neg()
    for _ in range(3):
        torch.testing.assert_close(
            hf.log_likelihood(initial, negated, emission), expected((initial, transition, emission))
        )
    leaf = emission.clone().requires_grad_()
    value = hf.log_likelihood(initial, negated, leaf)
    torch.testing.assert_close(value, expected((initial, transition, emission)))


@pytest.mark.parametrize("place", [1, 2])
def test_fields_of_records_and_wide_numbers(place):
    arrays = [x.numpy() for x in chain()]
    right = expected(arrays)
    record = np.zeros(arrays[place].shape, [("x", "f8"), ("y", "i4")])
    record["x"] = arrays[place]
    for other in (record["x"], arrays[place].astype(np.longdouble), arrays[place].astype(">f8")):
        given = [*arrays[:place], other, *arrays[place + 1 :]]
        for _ in range(3):
            np.testing.assert_allclose(hf.log_likelihood(*given).astype(float), right, rtol=1e-12)


def test_another_default_device():
    arrays = chain()
    right, paths = expected(arrays), hf.viterbi(*arrays)
    leaf = arrays[2].clone().requires_grad_()
    with torch.device("meta"):
        for _ in range(3):
            found = hf.log_likelihood(*arrays)
            assert found.device.type == "cpu"
            torch.testing.assert_close(found, right)
            assert torch.equal(hf.viterbi(*arrays).states, paths.states)
        assert hf.log_likelihood(*arrays[:2], leaf).device.type == "cpu"


def test_tensors_without_storage():
    arrays = chain()
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in arrays]
        found = hf.log_likelihood(*fake)
        assert found.shape == (2,)
        assert hf.forward_backward(*fake).log_posteriors.shape == (2, 30, 4)


def test_traces_hold_the_recursion():
    arrays, others = chain(), [x + 0.5 for x in chain()]
    graph = make_fx(lambda i, a, e: hf.log_likelihood(i, a, e))(*arrays)
    torch.testing.assert_close(graph(*others), expected(others))
    warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of shapes that become constants
    traced = torch.jit.trace(lambda i, a, e: hf.log_likelihood(i, a, e), tuple(arrays), check_trace=False)
    torch.testing.assert_close(traced(*others), expected(others))


def test_functions_mapped_over_something_else():
    initial, transition, emission = chain()
    leaf = initial.clone().requires_grad_()
    found = torch.func.vmap(lambda w: w * hf.log_likelihood(leaf, transition, emission).sum())(
        torch.arange(3.0).double()
    )
    torch.testing.assert_close(found, torch.arange(3.0).double() * expected((leaf, transition, emission)).sum())
    means = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 2, dtype=torch.float64)
    found = torch.func.vmap(lambda w: w * hf.gaussian_log_prob(x, means, torch.ones_like(means)).sum())(torch.ones(3))
    assert found.shape == (3,)


def test_batched_gradients_of_the_old_kind():
    arrays = [x.requires_grad_() for x in chain()]
    value = hf.log_likelihood(*arrays)
    (batched,) = torch.autograd.grad(value, arrays[2], torch.eye(2).double(), is_grads_batched=True, retain_graph=True)
    for i in range(2):
        (one,) = torch.autograd.grad(value[i], arrays[2], retain_graph=True)
        torch.testing.assert_close(batched[i], one)


@pytest.mark.parametrize("without", [("forward",), ("statistics",), ()])
@pytest.mark.parametrize("lengths", [None, [41], [1]])
def test_messages_that_meet_are_understood_by_whoever_reads_them(monkeypatch, without, lengths):
    """Where the kernel serves only one of a value and its derivative, as transforms may have it."""
    monkeypatch.setattr(plan, "SERIAL_WORK", 0)
    original = arrays_module.Unpacked.fused
    calls = iter(("forward", "statistics"))
    monkeypatch.setattr(
        arrays_module.Unpacked, "fused", lambda self: None if next(calls) in without else original(self)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        leaves = [x.requires_grad_() for x in chain(1, 50)]
        value = hf.log_likelihood(*leaves, lengths=lengths)
        found = torch.autograd.grad(value.sum(), leaves)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(arrays_module.Unpacked, "fused", original)
    right = hf.log_likelihood(*leaves, lengths=lengths, kernel="reference")
    torch.testing.assert_close(value, right)
    torch.testing.assert_close(found, torch.autograd.grad(right.sum(), leaves))


@pytest.mark.parametrize("hard", ["impossible", "nan"])
def test_infinite_cotangents_of_halves(monkeypatch, hard):
    monkeypatch.setattr(plan, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = []
        for kernel in ("numba", "reference"):
            arrays = chain(1, 3)
            arrays[2][0, 0, 1] = torch.nan if hard == "nan" else 0.0
            if hard == "impossible":
                arrays[2][0, 1] = -torch.inf
            leaves = [x.requires_grad_() for x in arrays]
            (hf.log_likelihood(*leaves, kernel=kernel) ** 2).sum().backward()
            found.append([x.grad for x in leaves])
        for x, y in zip(*found, strict=True):
            assert torch.equal(x.isnan(), y.isnan())
            torch.testing.assert_close(x, y, equal_nan=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_an_interrupted_call_waits_for_its_helpers():
    """Without torch, where threads are our own: a handler that raises amid a call frees nothing they still write to."""
    child(
        """
        import signal, numpy as np, hmm_functional as hf
        from hmm_functional.kernels import threads
        threads.available = lambda: 2
        arrays = (np.zeros(32), np.zeros((32, 32)), np.random.default_rng(0).normal(size=(3, 20_000, 32)))
        right = hf.forward_backward(*arrays).log_posteriors
        class Stop(Exception):
            pass
        def handler(*_):
            raise Stop
        signal.signal(signal.SIGALRM, handler)
        stopped = 0
        for i in range(12):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-3 * (i + 1))
                hf.forward_backward(*arrays)
            except Stop:
                stopped += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert stopped
        assert np.array_equal(hf.forward_backward(*arrays).log_posteriors, right)
        """
    )


def test_threads_that_cannot_be_started_are_done_without(monkeypatch):
    from hmm_functional.kernels import team, threads

    monkeypatch.setattr(team, "find", lambda: None)
    monkeypatch.setattr(plan, "SERIAL_WORK", 0)
    monkeypatch.setattr(threads, "available", lambda: 4)
    monkeypatch.setattr(threads, "_idle", [])

    def refuse():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_Helper", refuse)
    arrays = chain(8)
    torch.testing.assert_close(hf.log_likelihood(*arrays), expected(arrays))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_amid_a_compilation_can_compile():
    child(
        """
        import os, threading, warnings, numpy as np, hmm_functional as hf
        from hmm_functional.kernels import compiled
        warnings.simplefilter("ignore")
        held, done = threading.Event(), threading.Event()
        def hold():
            with compiled._lock:
                held.set()
                done.wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            hf.log_likelihood(np.zeros(3), np.zeros((3, 3)), np.zeros((5, 3)))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """
    )
