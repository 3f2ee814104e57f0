"""A batch of no sequences gives results of no sequences, from every function."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import hmm_functional as hf

ZEROS = {"numpy": np.zeros, "torch": lambda shape: torch.zeros(shape), "jax": jnp.zeros}
SHAPES = {
    "log_likelihood": (0,),
    "forward": (0, 7, 3),
    "forward_backward": (0, 7, 3),
    "pair_posteriors": (0, 6, 3, 3),
    "expected_transitions": (0, 3, 3),
    "posterior_entropy": (0,),
    "posterior_decode": (0, 7),
    "viterbi": (0, 7),
}


@pytest.mark.parametrize("library", ZEROS)
@pytest.mark.parametrize("kernel", ["reference", "parallel"])
def test_shapes(library, kernel):
    zeros = ZEROS[library]
    given = (zeros((3,)), zeros((3, 3)), zeros((0, 7, 3)))
    for name, shape in SHAPES.items():
        result = getattr(hf, name)(*given, kernel=kernel)
        assert (result[0] if isinstance(result, tuple) else result).shape == shape
    assert hf.viterbi_k_best(*given, k=2).states.shape == (0, 2, 7)
    assert hf.smooth_fixed_lag(*given, lag=2).shape == (0, 7, 3)
    assert hf.forecast(*given, num_steps=2).shape == (0, 2, 3)
    banded = hf.Banded(zeros((2, 3)), (0, 1))
    assert hf.log_likelihood(given[0], banded, given[2]).shape == (0,)


@pytest.mark.parametrize("library", ZEROS)
def test_shapes_of_semi_markov_models(library):
    zeros = ZEROS[library]
    chain = (zeros((3,)), zeros((3, 3)), zeros((3, 4)))
    for num_steps in (2, 17):  # shorter than the longest duration, and several times as long
        given = (*chain, zeros((0, num_steps, 3)))
        assert hf.semi_markov_log_likelihood(*given).shape == (0,)
        found = hf.semi_markov_forward_backward(*given)
        shapes = [(0, num_steps, 3), (0, 3, 4), (0, 3, 3), (0,), (0, 3, 4)]
        assert [tuple(x.shape) for x in found] == shapes
        assert hf.semi_markov_viterbi(*given).states.shape == (0, num_steps)
        assert hf.semi_markov_forward(*given).log_filtered.shape == (0, num_steps, 3)
        state = hf.semi_markov_stream_init(*chain, batch_shape=(0,))
        assert hf.semi_markov_stream_step(state, given[3])[1].expected_remaining.shape == (0, num_steps, 3)
        assert hf.semi_markov_remaining(state).shape == (0, 3, 4)
        state = hf.semi_markov_smooth_stream_init(*chain, lag=1, batch_shape=(0,))
        assert hf.semi_markov_smooth_stream_step(state, given[3])[1].shape == (0, num_steps - 1, 3)
        state = hf.semi_markov_viterbi_stream_init(*chain, batch_shape=(0,))
        assert hf.semi_markov_viterbi_stream_step(state, given[3])[1].states.shape == (0, 0)
        state = hf.viterbi_stream_init(*chain[:2], batch_shape=(0,))
        assert hf.viterbi_stream_step(state, given[3])[1].shape == (0, 0)


def test_gradients_are_zero():
    transition = torch.zeros(3, 3, requires_grad=True)
    hf.log_likelihood(torch.zeros(3), transition, torch.zeros(0, 7, 3)).sum().backward()
    assert torch.equal(transition.grad, torch.zeros(3, 3))
