"""Peak memory of training: of the order of the emissions, never of T x K x K."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

BATCH, STEPS, STATES = 4, 1200, 256
TAPE = BATCH * STEPS * STATES**2 * 4
"""Bytes of one float32 number a transition and step: 1.3 GB."""

LOSSES = {
    "log_likelihood": "hf.log_likelihood(i, A, e).sum()",
    "forward_backward": "hf.forward_backward(i, A, e).log_posteriors[:, 0, 0].sum()",
    "expected_transitions": "hf.expected_transitions(i, A, e)[:, 0, 0].sum()",
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_a_training_step_keeps_no_tape(library, loss):
    run = {
        "torch": f"""
            import torch
            torch.set_num_threads(1)
            arrays = [torch.randn(s, requires_grad=True) for s in shapes]
            def step(i, A, e):
                {LOSSES[loss]}.backward()
                assert all(x.grad.isfinite().all() for x in (i, A, e))
        """,
        "jax": f"""
            import jax, numpy as np
            draw = np.random.default_rng(0).normal
            arrays = [jax.numpy.asarray(draw(size=s), "float32") for s in shapes]
            grad = jax.jit(jax.grad(lambda i, A, e: {LOSSES[loss]}, argnums=(0, 1, 2)))
            def step(*arrays):
                assert all(np.isfinite(g).all() for g in grad(*arrays))
        """,
    }[library]
    code = f"""
        import hmm_functional as hf
        from tests.helpers.memory import peak
        shapes = [({STATES},), ({STATES}, {STATES}), ({BATCH}, {STEPS}, {STATES})]
        {textwrap.indent(textwrap.dedent(run), "        ").strip()}
        small = [x[..., :2, :] if x.ndim == 3 else x for x in arrays]
        if {library!r} == "torch":
            step(*(x.detach().requires_grad_() for x in small))
        before = peak()
        step(*arrays)
        print(peak() - before)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < TAPE / 2  # JAX compiles meanwhile


LONGEST = 200
OPEN = STEPS * 64 * LONGEST * 8
"""Bytes of one float64 number for each step, state and duration of a segment: 123 MB."""


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("quantity", ["gradient", "forward_backward", "viterbi"])
def test_segments_keep_no_table_of_durations(quantity, kernel):
    call = {
        "gradient": "hf.semi_markov_log_likelihood(*arrays, kernel=kernel).sum().backward()",
        "forward_backward": "hf.semi_markov_forward_backward(*(x.detach() for x in arrays), kernel=kernel)",
        "viterbi": "hf.semi_markov_viterbi(*(x.detach() for x in arrays), kernel=kernel)",
    }[quantity]
    code = f"""
        import torch
        import hmm_functional as hf
        from tests.helpers.memory import peak
        torch.set_num_threads(1)
        kernel = {kernel!r}
        def run(steps):
            shapes = [(64,), (64, 64), (64, {LONGEST}), (1, steps, 64)]
            arrays = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]
            {call}
        run({LONGEST})
        before = peak()
        run({STEPS})
        print(peak() - before)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < OPEN / 4
