"""JAX with 64-bit types off, its default: every chain function under jit, vmap and grad, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hmm_functional as hf

ROOT = Path(__file__).resolve().parents[1]
BATCH, STEPS, STATES = 2, 5, 3
OPTIONS = {
    "log_likelihood": {},
    "forward": {},
    "forward_backward": {},
    "pair_posteriors": {},
    "expected_transitions": {},
    "viterbi": {},
    "viterbi_k_best": {"k": 3},
    "posterior_entropy": {},
    "smooth_fixed_lag": {"lag": 1},
    "posterior_decode": {},
    "forecast": {"num_steps": 2},
}
WITHOUT_FINAL = ("smooth_fixed_lag", "forecast")
VALUES = ("log_likelihood", "posterior_entropy", "forward_backward", "expected_transitions")


def inputs():
    rng = np.random.default_rng(0)
    shapes = ((STATES,), (STATES, STATES), (BATCH, STEPS, STATES), (STATES,))
    parts = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    parts[1][2, 0] = -np.inf
    return parts, np.array([5, 3])


def script(folder):
    """Runs in the child: results of every function, each checked for its type there, saved to an archive."""
    import jax
    import jax.numpy as jnp

    assert not jax.config.jax_enable_x64
    (initial, transition, emission, final), lengths = inputs()
    given = [jnp.asarray(x) for x in (initial, transition, emission)]
    lengths, final = jnp.asarray(lengths), jnp.asarray(final)
    saved = {}

    def keep(name, result):
        for place, leaf in enumerate(jax.tree.leaves(result)):
            kind = jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.int32
            assert leaf.dtype == kind, f"{name}[{place}] is {leaf.dtype}"
            saved[f"{name}.{place}"] = np.asarray(leaf)

    for name, options in OPTIONS.items():
        extra = {} if name in WITHOUT_FINAL else {"log_final": final}

        def call(a, t, e, n, name=name, options=options, extra=extra):
            return getattr(hf, name)(a, t, e, lengths=n, **extra, **options)

        keep(name, jax.jit(call)(*given, lengths))
        keep(f"vmap.{name}", jax.jit(jax.vmap(call, in_axes=(None, None, 0, 0)))(*given, lengths))
        if name in VALUES:

            def value(*args, call=call):
                leaves = jax.tree.leaves(call(*args, lengths))
                return sum(jnp.where(jnp.isfinite(leaf), leaf, 0).sum() for leaf in leaves)

            keep(f"grad.{name}", jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*given))
    keep("log_joint", jax.jit(hf.log_joint)(*given, states=jnp.asarray(saved["viterbi.0"]), lengths=lengths))
    keep("stationary", jax.jit(hf.stationary)(jax.nn.log_softmax(given[1])))
    key = jax.random.key(0)
    drawn = jax.jit(lambda k: hf.sample_posterior(*given, lengths=lengths, rng=k, num_samples=4))(key)
    keep("sample_posterior", drawn)
    prior = (jax.nn.log_softmax(given[0]), jax.nn.log_softmax(given[1]))
    keep("sample", jax.jit(lambda k: hf.sample(*prior, num_steps=6, rng=k, batch_shape=(3,)))(key))
    state = hf.stream_init(given[0], given[1], lag=1, batch_shape=(BATCH,), like=given[2])
    rows = []
    for part in (given[2][:, :2], given[2][:, 2:]):
        state, row = jax.jit(hf.stream_step)(state, part)
        rows.append(row)
    keep("stream", jnp.concatenate([*rows, hf.stream_flush(state)], axis=-2))
    for build in (
        lambda: hf.Banded(jnp.asarray(np.stack([np.diagonal(transition), np.zeros(3, np.float32)])), (0, 1)),
        lambda: hf.LowRank(jnp.asarray(initial[:, None]), jnp.asarray(final[None])),
        lambda: hf.Sparse(jnp.asarray(initial), [0, 1, 2], [1, 2, 0], 3),
    ):
        structure = build()
        name = type(structure).__name__
        keep(name, jax.jit(hf.forward_backward)(given[0], structure, given[2], lengths=lengths))
        keep(f"{name}.viterbi", jax.jit(hf.viterbi)(given[0], structure, given[2], lengths=lengths))
    np.savez(Path(folder) / "results.npz", **saved)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The child's results; any warning there is an error."""
    folder = tmp_path_factory.mktemp("x64_off")
    code = f"import tests.test_jax_x64_off as t; t.script({str(folder)!r})"
    environment = {**os.environ, "JAX_ENABLE_X64": "0", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as conftest.py, to compile sooner
    command = [sys.executable, "-W", "error::UserWarning", "-W", "error::FutureWarning", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(folder / "results.npz") as archive:
        return dict(archive)


def leaves_of(result):
    return result if isinstance(result, tuple) else (result,)


def assert_close(actual, expected):
    """float32 accuracy: rounding of terms of a few nats."""
    assert actual.shape == expected.shape
    if actual.dtype == np.int32:
        np.testing.assert_array_equal(actual, expected)
    else:
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def numpy_answer(name):
    (initial, transition, emission, final), lengths = inputs()
    given = [x.astype(np.float64) for x in (initial, transition, emission)]
    extra = {} if name in WITHOUT_FINAL else {"log_final": final.astype(np.float64)}
    return leaves_of(getattr(hf, name)(*given, lengths=lengths, **extra, **OPTIONS[name]))


@pytest.mark.parametrize("name", OPTIONS)
def test_function_agrees_with_numpy_in_float64(results, name):
    for place, expected in enumerate(numpy_answer(name)):
        assert_close(results[f"{name}.{place}"], expected)
        assert_close(results[f"vmap.{name}.{place}"], expected)


@pytest.mark.parametrize("name", VALUES)
def test_gradient_agrees_with_torch_in_float64(results, name):
    import torch

    (initial, transition, emission, final), lengths = inputs()
    given = [torch.from_numpy(x).double().requires_grad_() for x in (initial, transition, emission)]
    parts = leaves_of(getattr(hf, name)(*given, lengths=lengths, log_final=torch.from_numpy(final).double()))
    total = sum(torch.where(torch.isfinite(part), part, 0.0).sum() for part in parts)
    for place, expected in enumerate(torch.autograd.grad(total, given)):
        actual = results[f"grad.{name}.{place}"]
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_paths_samples_and_streams(results):
    (initial, transition, emission, _), lengths = inputs()
    given = [x.astype(np.float64) for x in (initial, transition, emission)]
    joint = hf.log_joint(*given, states=results["viterbi.0"].astype(np.int64), lengths=lengths)
    assert_close(results["log_joint.0"], joint)
    normalised = given[1] - np.logaddexp.reduce(given[1], axis=-1, keepdims=True)
    assert_close(results["stationary.0"], hf.stationary(normalised))
    samples = results["sample_posterior.0"]
    assert samples.shape == (4, BATCH, STEPS)
    np.testing.assert_array_equal(samples[:, 1, 3:], -1)
    assert (samples[:, 0] >= 0).all()
    assert results["sample.0"].shape == (3, 6)
    assert_close(results["stream.0"], hf.smooth_fixed_lag(*given, lag=1))


def test_structures(results):
    (initial, transition, emission, final), lengths = inputs()
    start, matrix, scores = (x.astype(np.float64) for x in (initial, transition, emission))
    structures = {
        "Banded": hf.Banded(np.stack([np.diagonal(matrix), np.zeros(3)]), (0, 1)),
        "LowRank": hf.LowRank(start[:, None], final[None].astype(np.float64)),
        "Sparse": hf.Sparse(start, [0, 1, 2], [1, 2, 0], 3),
    }
    for name, structure in structures.items():
        for suffix, function in (("", hf.forward_backward), (".viterbi", hf.viterbi)):
            for place, expected in enumerate(function(start, structure, scores, lengths=lengths)):
                assert_close(results[f"{name}{suffix}.{place}"], expected)
