"""Compiled CPU kernels in the life around them: threads, forks, workers, caches, memory, counts of passes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

import hmm_functional as hf
from hmm_functional.kernels import compiled, cpu, halves, plan, repeat, team, threads
from tests.helpers.dynamic_program import dynamic_program
from tests.test_operation_counts import Launches

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def model(batch=4, num_steps=300, num_states=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + num_steps + num_states)
    shapes = ((num_states,), (num_states, num_states), (batch, num_steps, num_states))
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def run(code, **environment):
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.fixture
def two_threads():
    """Two threads, whatever the tests' own number, and a low bar for using them."""
    before, bar = torch.get_num_threads(), plan.SERIAL_WORK
    torch.set_num_threads(2)
    plan.SERIAL_WORK = 0
    repeat.forget()
    yield
    torch.set_num_threads(before)
    plan.SERIAL_WORK = bar
    repeat.forget()


def results(arrays):
    smoothed = hf.forward_backward(*arrays, kernel="numba")
    return (smoothed.log_posteriors, smoothed.log_likelihood, hf.viterbi(*arrays).states)


def assert_same(one, other):
    for x, y in zip(one, other, strict=True):
        assert torch.equal(x, y)


# Threads and processes


@pytest.fixture(params=["torch's threads", "own threads"])
def both_kinds(request, two_threads, monkeypatch):
    """Two threads of torch's team, and two of our own."""
    if request.param == "own threads":
        monkeypatch.setattr(team, "find", lambda: None)
    elif team.find() is None:
        pytest.skip("torch has no GNU OpenMP here")


def test_two_threads_give_what_one_gives(both_kinds):
    arrays = model(batch=40)
    several = results(arrays)
    torch.set_num_threads(1)
    assert_same(several, results(arrays))


def test_threads_of_the_user_may_call_at_once(both_kinds):
    cases = [model(batch=3 + i, num_steps=50 + 30 * i) for i in range(6)]
    expected = [results(arrays) for arrays in cases]
    found = [None] * len(cases)

    def work(i):
        for _ in range(5):
            found[i] = results(cases[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("form", ["dense", "banded", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("lengths", "hard"), [(None, ""), ([61], ""), ([2], ""), (None, "impossible"), (None, "nan")])
def test_one_long_sequence_takes_two_threads(two_threads, monkeypatch, form, dtype, lengths, hard):
    """Its passes meet in the middle, from hard scores: equal to one pass after the other."""
    seen = []
    for name in ("meet", "go_on"):
        original = getattr(halves, name)
        monkeypatch.setattr(halves, name, lambda *args, f=original, n=name, **o: (seen.append(n), f(*args, **o))[1])
    initial, matrix, emission = model(batch=1, num_steps=90, num_states=5, dtype=dtype)
    emission = emission * 40
    if hard:
        emission[0, 70] = -torch.inf if hard == "impossible" else torch.nan

    def quantities(kernel):
        leaves = [x.clone().requires_grad_() for x in (initial, matrix, emission)]
        weights = leaves[1]
        if form == "banded":
            weights = hf.Banded(weights[:2], (0, 1))
        elif form == "sparse":
            sources, targets = [0, 1, 2, 3, 4, 0, 2, 4, 1], [0, 2, 2, 4, 1, 3, 3, 0, 4]
            weights = hf.Sparse(weights.flatten()[:9], sources, targets, 5)
        value = hf.log_likelihood(leaves[0], weights, leaves[2], lengths=lengths, kernel=kernel)
        value.sum().backward()
        with torch.no_grad():
            alone = hf.log_likelihood(leaves[0], weights, leaves[2], lengths=lengths, kernel=kernel)
            smoothed = hf.forward_backward(leaves[0], weights, leaves[2], lengths=lengths, kernel=kernel)
        gradients = [] if hard == "nan" else [x.grad for x in leaves]
        return value.detach(), alone, smoothed.log_likelihood, smoothed.log_posteriors.exp(), *gradients

    found = quantities("auto")
    assert seen == ["meet", "go_on", "meet", "meet", "go_on"]
    close = {"rtol": 1e-6, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-10}
    for x, y in zip(found, quantities("reference"), strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, **close)


def test_messages_that_meet_are_read_as_such_by_a_backward_with_other_threads(two_threads):
    arrays = [x.requires_grad_() for x in model(batch=1, num_steps=90, num_states=5)]
    value = hf.log_likelihood(*arrays)
    torch.set_num_threads(1)
    found = torch.autograd.grad(value.sum(), arrays)
    expected = torch.autograd.grad(hf.log_likelihood(*arrays).sum(), arrays)
    torch.testing.assert_close(found, expected)


def test_the_number_of_threads_is_torch_s(two_threads, monkeypatch):
    seen = []
    original = threads.run
    monkeypatch.setattr(threads, "run", lambda calls, count: (seen.append(count), original(calls, count)))
    hf.log_likelihood(*model())
    torch.set_num_threads(1)
    hf.log_likelihood(*model())
    assert [count for count in seen if count > 1] == [2]


def test_work_is_shared_by_the_threads_of_torch(two_threads):
    """Where torch has GNU OpenMP, as on Linux, no thread of our own is started."""
    if team.find() is None:
        pytest.skip("torch has no GNU OpenMP here")
    run(
        """
        import threading, torch, hmm_functional as hf
        from hmm_functional.kernels import plan, team, threads
        torch.set_num_threads(2)
        plan.SERIAL_WORK = 0
        counts, found = [], team.find()
        original = found._parallel
        found._parallel = lambda *words: (counts.append(words[2]), original(*words))
        hf.log_likelihood(torch.zeros(3), torch.zeros(3, 3), torch.randn(8, 50, 3))
        assert counts == [2] and threads._idle == [] and threading.active_count() == 1
        """
    )


def test_without_torch_threads_of_our_own_help():
    run(
        """
        import sys, numpy as np, hmm_functional as hf
        from hmm_functional.kernels import plan, threads
        threads.available = lambda: 2
        plan.SERIAL_WORK = 0
        arrays = (np.zeros(3), np.zeros((3, 3)), np.random.default_rng(0).normal(size=(8, 50, 3)))
        found = hf.log_likelihood(*arrays)
        assert "torch" not in sys.modules and len(threads._idle) == 1
        np.testing.assert_allclose(found, hf.log_likelihood(*arrays, kernel="reference"), rtol=1e-12)
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_starts_its_own_helpers():
    run(
        """
        import os, warnings, torch, hmm_functional as hf
        from hmm_functional.kernels import plan, threads
        warnings.simplefilter("ignore")
        torch.set_num_threads(2)
        plan.SERIAL_WORK = 0
        arrays = (torch.zeros(3), torch.zeros(3, 3), torch.randn(8, 50, 3))
        expected = hf.log_likelihood(*arrays)
        child = os.fork()
        if child == 0:
            same = torch.equal(hf.log_likelihood(*arrays), expected)
            os._exit(0 if same and len(threads._idle) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    )


class Likelihoods(torch.utils.data.Dataset):
    def __init__(self, arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays[2])

    def __getitem__(self, i):
        before = len(threads._idle)
        value = hf.log_likelihood(*self.arrays[:2], self.arrays[2][i])
        return value, torch.get_num_threads(), len(threads._idle) - before


def test_the_workers_of_a_data_loader_use_one_thread_each():
    """In a process of its own: JAX, where it is loaded, warns of every fork."""
    run(
        """
        import torch, hmm_functional as hf
        from hmm_functional.kernels import plan
        from tests.test_kernels_cpu import Likelihoods, model
        torch.set_num_threads(2)
        plan.SERIAL_WORK = 0
        arrays = model(batch=6)
        expected = hf.log_likelihood(*arrays)
        loader = torch.utils.data.DataLoader(Likelihoods(arrays), batch_size=3, num_workers=2)
        values, count, started = (torch.cat(parts) for parts in zip(*loader))
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
        assert count.tolist() == [1] * 6
        assert started.tolist() == [0] * 6
        """
    )


# Code on disk

CALL = """
import torch, hmm_functional as hf
print(hf.log_likelihood(*(torch.zeros(s) for s in ((2,), (2, 2), (9, 2)))).item())
"""

# code that is compiled in a third of the time
SMALL_CALL = """
import torch, hmm_functional as hf
zeros, ones = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
print(hf.gmm_log_likelihood(torch.zeros(3, 2), torch.zeros(1, 1), zeros, ones, covariance_type="diag").sum().item())
"""


def test_code_is_compiled_once_and_loaded_without_numba(tmp_path):
    cold = run(CALL, HMM_FUNCTIONAL_CACHE_DIR=str(tmp_path))
    assert cold.stderr.count("compiling CPU kernels") == 1
    assert list(tmp_path.glob("*.o"))
    warm = run(CALL + "import sys; assert 'numba' not in sys.modules", HMM_FUNCTIONAL_CACHE_DIR=str(tmp_path))
    assert (warm.stdout, warm.stderr) == (cold.stdout, "")


TOGETHER = """
import os, sys, time
from pathlib import Path
from hmm_functional.kernels import compiled
def compile(key):
    Path(sys.argv[1], f"{os.getpid()}.compiled").touch()
    time.sleep(0.5)
    return "symbol", b"code"
compiled._compile = compile
while not Path(sys.argv[1], "go").exists():
    time.sleep(0.01)
print(compiled._object(("messages", "f64")))
"""


def test_processes_that_begin_together_compile_once(tmp_path):
    environment = {**os.environ, "HMM_FUNCTIONAL_CACHE_DIR": str(tmp_path / "kept")}
    command = [sys.executable, "-c", TOGETHER, str(tmp_path)]
    started = [
        subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    (tmp_path / "go").touch()
    assert [one.communicate(timeout=60)[0] for one in started] == ["('symbol', b'code')\n"] * 3
    assert len(list(tmp_path.glob("*.compiled"))) == 1
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".o"]


def test_a_process_that_stands_still_is_not_waited_for(tmp_path, monkeypatch):
    """It holds the lock of what this one wants."""
    monkeypatch.setattr(compiled, "PATIENCE", 0.2)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "x.lock")], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        with compiled._alone(tmp_path / "x.o"):
            assert 0.2 <= time.monotonic() - began < 30
    finally:
        holder.communicate("", timeout=60)


HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_damaged_file_is_compiled_again(tmp_path):
    cold = run(SMALL_CALL, HMM_FUNCTIONAL_CACHE_DIR=str(tmp_path))
    for path in tmp_path.glob("*.o"):
        path.write_bytes(path.read_bytes()[:-100])
    mended = run(SMALL_CALL, HMM_FUNCTIONAL_CACHE_DIR=str(tmp_path))
    assert mended.stdout == cold.stdout
    assert mended.stderr.count("compiling CPU kernels") == 1


@pytest.mark.parametrize("directory", ["", "/proc/nowhere"])
def test_without_a_directory_to_write_it_works(directory):
    assert run(SMALL_CALL, HMM_FUNCTIONAL_CACHE_DIR=directory).stdout


def test_the_announcement_is_made_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(compiled, "_has_announced", False)
    with caplog.at_level(logging.WARNING, "hmm_functional"):
        compiled._announce(tmp_path)
        compiled._announce(tmp_path)
    assert len(caplog.records) == 1


def test_code_asks_nothing_unknown_of_the_process():
    with pytest.raises(RuntimeError, match="PyNothing"):
        compiled._machine_code("declare void @PyNothing()\ndefine void @f() {\n call void @PyNothing()\n ret void\n}\n")


# Arrays as they lie


@pytest.mark.parametrize("name", ["log_likelihood", "forward_backward", "viterbi"])
@pytest.mark.parametrize("kind", ["transposed", "every_other", "expanded", "flipped"])
def test_any_stride_is_handled(name, kind):
    initial, transition, emission = (x.numpy() for x in model(batch=20, num_steps=33, num_states=5))
    function = getattr(hf, name)
    if kind == "transposed":
        emission = np.asfortranarray(emission)
        transition = np.asfortranarray(transition)
    elif kind == "every_other":
        emission = np.repeat(emission, 2, axis=-1)[..., ::2]
        transition = np.repeat(transition, 3, axis=0)[::3]
        initial = np.repeat(initial, 2)[::2]
    elif kind == "expanded":
        emission = np.broadcast_to(emission[:1], emission.shape)
    else:
        emission = emission[:, ::-1, ::-1]
        transition = transition[::-1, ::-1]
    found = function(initial, transition, emission)
    expected = function(*(np.ascontiguousarray(x) for x in (initial, transition, emission)))
    for x, y in zip(
        found if isinstance(found, tuple) else (found,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def test_other_byte_orders_are_read_right():
    arrays = [x.numpy() for x in model(batch=2, num_steps=9)]
    found = hf.log_likelihood(*(x.astype(x.dtype.newbyteorder()) for x in arrays))
    np.testing.assert_array_equal(found, hf.log_likelihood(*arrays))


# Exactness where a kernel's own choices could lose it; the oracle is in extended precision


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("form", ["ergodic", "left_to_right"])
def test_many_states_keep_the_bounds(dtype, batch, form):
    """From 32 states on float32 is computed in float32; vectors hold states, or sequences where there are many.

    Left to right as a dense matrix, with scores of tens of nats, most sums fall below the guard.
    """
    rng = np.random.default_rng(batch)
    num_states, num_steps = 35, 70
    transition = np.log(rng.dirichlet(np.ones(num_states), num_states))
    if form == "left_to_right":
        transition = np.where(np.isin(np.subtract.outer(range(num_states), range(num_states)), (0, -1)), -0.7, -np.inf)
    arrays = (
        np.log(rng.dirichlet(np.ones(num_states))),
        transition,
        30 * rng.normal(size=(batch, num_steps, num_states)),
    )
    arrays = tuple(x.astype(dtype) for x in arrays)
    lengths = np.full(batch, num_steps)
    lengths[::2] -= 9
    found = hf.forward_backward(*arrays, lengths=lengths)
    best = hf.viterbi(*arrays, lengths=lengths)
    counts = hf.expected_transitions(*arrays, lengths=lengths)
    bound = 1e-6 if dtype is np.float32 else 1e-12
    for b in (0, batch - 1):
        emission = arrays[2][b, : lengths[b]]
        exact = dynamic_program(arrays[0], arrays[1], emission)
        size = np.abs(emission).max(-1).sum()
        assert abs(found.log_likelihood[b] - exact.log_likelihood) <= bound * size
        assert abs(best.log_joint[b] - exact.log_joint) <= bound * size
        posteriors = np.exp(exact.log_posteriors.astype(np.float64))
        close = {"rtol": 0, "atol": 2e-4 if dtype is np.float32 else 1e-10}
        np.testing.assert_allclose(np.exp(found.log_posteriors[b, : lengths[b]]), posteriors, **close)
        np.testing.assert_allclose(
            counts[b], exact.expected_transitions.astype(np.float64), rtol=0, atol=20 * close["atol"]
        )


def test_products_of_densities_do_not_cancel():
    """States a million standard deviations apart, in float32: the densities of the nearest are right."""
    means = np.array([[0.0], [1e6]], np.float32)
    x = np.array([[0.5], [1e6 + 1]], np.float32)
    found = hf.gaussian_log_prob(x, means, np.ones((2, 1), np.float32))
    np.testing.assert_allclose(np.diagonal(found), [-0.125 - 0.9189385, -0.5 - 0.9189385], rtol=1e-6)


# Counts that say where time goes


def test_passes_are_not_repeated(monkeypatch):
    """Each quantity's kernels, by their modules: one pass forward, and one back where it is needed."""
    seen = []
    original = compiled.entry
    monkeypatch.setattr(compiled, "entry", lambda *key: (seen.append(key[0]), original(*key))[1])

    def passes(function):
        seen.clear()
        function()
        return [name for name in seen if name != "matrix"]

    arrays = model()
    assert passes(lambda: hf.log_likelihood(*arrays)) == ["messages"]
    assert passes(lambda: hf.forward(*arrays)) == ["messages"]
    assert passes(lambda: hf.forward_backward(*arrays)) == ["messages", "backward"]
    assert passes(lambda: hf.viterbi(*arrays)) == ["viterbi"]
    for array in arrays:
        array.requires_grad_()
    likelihood = []
    assert passes(lambda: likelihood.append(hf.log_likelihood(*arrays).sum())) == ["messages"]
    assert passes(lambda: likelihood[0].backward()) == ["backward"]


@pytest.mark.parametrize(
    ("name", "most"), [("log_likelihood", 40), ("forward", 50), ("forward_backward", 45), ("viterbi", 45)]
)
def test_few_operations_are_launched_however_long_the_sequence(name, most):
    counts = []
    for num_steps in (100, 1000):
        with Launches() as counted:
            getattr(hf, name)(*model(num_steps=num_steps))
        counts.append(counted.count)
    assert counts[0] == counts[1] <= most


def test_a_training_step_takes_four_times_the_emissions():
    ran = run(
        """
        import torch, hmm_functional as hf
        from tests.helpers.memory import peak
        torch.set_num_threads(2)
        def step(num_steps):
            arrays = [torch.randn(s, requires_grad=True) for s in ((64,), (64, 64), (32, num_steps, 64))]
            before = peak()
            hf.log_likelihood(*arrays).sum().backward()
            return peak() - before, arrays[2].nbytes
        step(50)
        grown, size = step(8000)
        print(grown / size)
        """
    )
    # besides the emissions themselves: messages, and the gradient
    assert float(ran.stdout) < 3.0


def test_back_pointers_in_segments_find_the_same_path(monkeypatch):
    arrays = model(batch=20, num_steps=1000, num_states=4)
    whole = hf.viterbi(*arrays)
    monkeypatch.setattr(plan, "MOST_LANE_SCRATCH", 0)
    repeat.forget()
    assert plan.segment_of(1000, 32, 1) < 200
    pieces = hf.viterbi(*arrays)
    assert torch.equal(whole.states, pieces.states)
    assert torch.equal(whole.log_joint, pieces.log_joint)


def test_states_beyond_a_byte_have_wider_back_pointers():
    num_states = 300
    emission = np.full((1, 4, num_states), -50.0)
    path = [299, 0, 257, 298]
    emission[0, range(4), path] = 0.0
    found = hf.viterbi(np.zeros(num_states), np.zeros((num_states, num_states)), emission)
    assert found.states.tolist() == [path]


def test_a_long_sequence_among_short_ones_goes_alone():
    lengths = np.array([5, 9000, *[7] * 40])
    found = plan.plans("dense", True, lengths, len(lengths), 9000, 3, "f64", 2)
    assert [tasks.lanes for tasks in found] == [False, True]
    assert found[0].order.tolist() == [1]
    assert sorted([*found[0].order, *found[1].order]) == list(range(42))


def test_a_kernel_named_for_what_it_lacks_says_so():
    initial, _, emission = model(batch=1, num_steps=5, num_states=3)
    with pytest.raises(ValueError, match="low-rank"):
        hf.log_likelihood(initial, hf.LowRank(torch.zeros(3, 2), torch.zeros(2, 3)), emission, kernel="numba")
    with pytest.raises(ValueError, match="k-max"):
        hf.viterbi_k_best(initial, torch.zeros(3, 3), emission, k=2, kernel="numba")
    assert cpu.unsupported is not None


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_large_matrices_are_read_once_for_sequences_together(two_threads, monkeypatch, batch):
    """Where sequences would each read a matrix beyond a thread's cache, halves of all of them go together."""
    monkeypatch.setattr(plan, "OWN_CACHE", 0)
    seen = []
    original = halves.cuts
    monkeypatch.setattr(halves, "cuts", lambda *args, **o: (seen.append(o), original(*args, **o))[1])
    arrays = model(batch=batch, num_steps=50, num_states=9)
    found = hf.log_likelihood(*arrays)
    assert seen == [{"together": True}]
    torch.testing.assert_close(found, hf.log_likelihood(*arrays, kernel="reference"), rtol=1e-12, atol=1e-10)
