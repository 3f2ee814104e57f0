"""Contenders that take NumPy or JAX arrays: hmmlearn's C++ core and dynamax. Signature as in `torch_contenders`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .cells import Problem
from .torch_contenders import Timed


def hmmlearn(problem: Problem, operation: str, dtype: str, *, scaling: bool = False) -> Timed:
    """Calls of its C++ core a sequence, as `implementation="log"` or `"scaling"` makes them; float64 whatever is asked.

    `forward_log(startprob, transmat, log_frameprob) -> (log_prob, lattice)`, `backward_log(same) -> lattice`,
    `compute_log_xi_sum(forward, transmat, backward, log_frameprob)`, `viterbi(same) -> (log_prob, states)`; scaling
    takes frame probabilities, returns scaling factors from the forward pass and wants them in the backward one.
    The gradient is what its EM step collects: posteriors and expected transitions.
    """
    from hmmlearn import _hmmc
    from hmmlearn.utils import log_normalize, normalize

    initial, transition = problem.probabilities()
    sequences = [np.ascontiguousarray(x) for x in problem.sequences()]

    def posteriors(frames: Any) -> tuple[Any, ...]:
        if scaling:
            frames = np.exp(frames)
            likelihood, forward, scales = _hmmc.forward_scaling(initial, transition, frames)
            backward = _hmmc.backward_scaling(initial, transition, frames, scales)
            out = forward * backward
            normalize(out, axis=1)
        else:
            likelihood, forward = _hmmc.forward_log(initial, transition, frames)
            backward = _hmmc.backward_log(initial, transition, frames)
            out = forward + backward
            log_normalize(out, axis=1)
            out = np.exp(out)
        return out, likelihood, forward, backward, frames

    def forward_backward() -> Any:
        return [posteriors(frames)[:2] for frames in sequences]

    def gradient() -> Any:
        rows, starts, counts = [], 0.0, 0.0
        for frames in sequences:
            row, _, forward, backward, frames = posteriors(frames)
            if scaling:
                counts = counts + _hmmc.compute_scaling_xi_sum(forward, transition, backward, frames)
            else:
                counts = counts + np.exp(_hmmc.compute_log_xi_sum(forward, transition, backward, frames))
            rows.append(row)
            starts = starts + row[0]
        return starts, counts, rows

    def read_gradient(out: Any) -> Any:
        starts, counts, rows = out
        counts = counts if problem.log_bands is None else problem.bands_of(counts)
        return starts, counts, problem.padded(rows)

    if operation == "forward_backward":
        return forward_backward, lambda out: (problem.padded([r for r, _ in out]), np.array([x for _, x in out]))
    if operation == "gradient":
        return gradient, read_gradient
    if operation == "viterbi":
        call = lambda: [_hmmc.viterbi(initial, transition, frames)[1] for frames in sequences]  # noqa: E731
        return call, problem.padded
    if scaling:
        return lambda: [_hmmc.forward_scaling(initial, transition, np.exp(x))[0] for x in sequences], np.array
    return lambda: [_hmmc.forward_log(initial, transition, x)[0] for x in sequences], np.array


def dynamax(problem: Problem, operation: str, dtype: str, *, smoother: str = "hmm_smoother") -> Timed:
    """`hmm_filter`, `hmm_smoother` and `hmm_posterior_mode(initial, transition, log_likelihoods)` under jit of vmap.

    The gradient is `jax.grad` of the summed marginal_loglik. Ragged: rows of zeros, which leave likelihoods and
    posteriors as they are; for Viterbi and gradients, which they do not, an end state.
    """
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", dtype == "float64")
    import dynamax.hidden_markov_model as library

    array = partial(jnp.asarray, dtype=dtype)
    has_end = problem.cell.kind == "ragged" and operation in ("viterbi", "gradient")
    size = problem.cell.states

    def batched(function: Any) -> Any:
        return jax.vmap(function, (None, None, 0))

    def summed(log_initial: Any, log_transition: Any, log_emission: Any) -> Any:
        initial, transition = jnp.exp(log_initial), jnp.exp(log_transition)
        if has_end:
            end = array(problem.end_emission())
            initial, transition = jnp.pad(initial, (0, 1)), jnp.pad(transition, (0, 1)).at[:, size].set(1.0)
            log_emission = jnp.concatenate([jnp.where(end == 0, -jnp.inf, log_emission), end], -1)
        return batched(library.hmm_filter)(initial, transition, log_emission).marginal_loglik.sum()

    def smooth(*inputs: Any) -> Any:
        out = batched(getattr(library, smoother))(*inputs)
        return out.smoothed_probs, out.marginal_loglik

    functions = {
        "log_likelihood": lambda *inputs: batched(library.hmm_filter)(*inputs).marginal_loglik,
        "forward_backward": smooth,
        "viterbi": batched(library.hmm_posterior_mode),
        "gradient": jax.grad(summed, (0, 1, 2)),
    }
    if operation == "gradient":
        inputs = (problem.log_initial, problem.log_transition, problem.log_emission)
    elif has_end:
        inputs = problem.with_end_state()
    else:
        inputs = (*problem.probabilities(), problem.log_emission)
    run, inputs = jax.jit(functions[operation]), tuple(array(x) for x in inputs)

    def read(out: Any) -> Any:
        out = tuple(np.asarray(x, np.float64) for x in out) if isinstance(out, tuple) else np.asarray(out)
        if operation == "gradient" and problem.log_bands is not None:
            return out[0], problem.bands_of(out[1]), out[2]
        return out

    return lambda: jax.block_until_ready(run(*inputs)), read
