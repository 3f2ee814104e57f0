"""The gradient of the log-likelihood is the posteriors and the expected transitions, at padding and zeros too."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import models, models_for
from tests.helpers.backends import FORMS, JAX, TORCH, arguments, as_numpy, build_transition, call
from tests.helpers.models import assert_log_close


def torch_gradients(model, form, weights=None):
    """Gradients of the (weighted) summed log-likelihood: initial, transition's arrays, emission, final."""
    positional, keyword = arguments(TORCH, model, form)
    arrays = [positional[0], *leaves(positional[1]), positional[2]]
    arrays += [keyword["log_final"]] if "log_final" in keyword else []
    for array in arrays:
        array.requires_grad_()
    value = hf.log_likelihood(*positional, **keyword)
    value.backward(torch.ones_like(value) if weights is None else torch.from_numpy(weights))
    return [array.grad.numpy() for array in arrays]


def leaves(transition):
    return torch.utils._pytree.tree_leaves(transition)


def expected_gradients(model, form):
    """What they should be, by enumeration; impossible sequences have gradient zero."""
    posteriors = np.exp(model.expected(lambda one: one.log_posteriors, pad=-np.inf))
    pairs = np.exp(model.expected(lambda one: one.log_pairs, pad=-np.inf))
    last = np.take_along_axis(posteriors, model.full_lengths[..., None, None] - 1, axis=-2)[..., 0, :]
    return posteriors[..., 0, :], pairs, posteriors, last


def summed_to(value, shape):
    """Sum the axes that broadcasting an array of this shape added or widened."""
    value = value.sum(axis=tuple(range(value.ndim - len(shape))))
    wide = tuple(axis for axis, (have, want) in enumerate(zip(value.shape, shape, strict=True)) if have != want)
    return value.sum(axis=wide, keepdims=True)


@given(data=st.data())
def test_torch_gradient_is_posteriors_and_counts(data):
    model = data.draw(models())
    initial, pairs, posteriors, last = expected_gradients(model, "dense")
    actual = torch_gradients(model, "dense")
    pairs = summed_to(pairs, model.log_transition.shape)
    expected = [initial, pairs, posteriors] + ([last] if model.log_final is not None else [])
    for one, other in zip(actual, expected, strict=True):
        assert_log_close(one, other, 1e-12 * model.scale)


@pytest.mark.parametrize("form", FORMS[1:])
@given(data=st.data())
def test_torch_gradient_of_a_structure_is_its_counts(form, data):
    """Of constant weights: the counts of `expected_transitions`, summed over the batch."""
    model = data.draw(models(transition="constant"))
    counts = call(TORCH, "expected_transitions", model, form)
    parts = counts if isinstance(counts, tuple) else (counts,)
    actual = torch_gradients(model, form)[1 : 1 + len(parts)]
    for gradient, part in zip(actual, parts, strict=True):
        assert_log_close(gradient, summed_to(part, gradient.shape), 1e-12 * model.scale)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_jax_gradient_equals_torch(form, data):
    model = data.draw(models_for("jax"))
    positional, keyword = arguments(JAX, model, form)
    gradients = jax_gradient(*positional, keyword["lengths"], keyword["log_final"])
    actual = [JAX.numpy(x) for x in jax.tree.leaves(gradients)]
    for one, other in zip(actual, torch_gradients(model, form), strict=True):
        assert_log_close(one, other, 1e-12 * model.scale)


@jax.jit
def jax_gradient(log_initial, log_transition, log_emission, lengths, log_final):
    def value(*args):
        return hf.log_likelihood(*args[:3], lengths=lengths, log_final=args[3]).sum()

    return jax.grad(value, argnums=(0, 1, 2, 3))(log_initial, log_transition, log_emission, log_final)


@given(data=st.data())
def test_gradients_of_each_sequence_are_its_own(data):
    """Weights on the sequences weight their gradients; padding, NaN in it too, gets exactly zero."""
    model = data.draw(models(batch=(3,), transition="slot", lengths=True))
    padded = model.with_(log_emission=np.where(model.kept[..., None], model.log_emission, np.nan))
    weights = np.array([1.0, -2.0, 0.0])
    plain, weighted = torch_gradients(padded, "dense"), torch_gradients(padded, "dense", weights)
    for one, other in zip(plain, weighted, strict=True):
        shaped = weights.reshape(-1, *[1] * (one.ndim - 1))
        assert_log_close(other, one * shaped, 1e-12 * model.scale)
    assert (plain[2][~model.kept] == 0).all()
    assert_log_close(plain[2], torch_gradients(model, "dense")[2], 1e-12 * model.scale)


@given(data=st.data())
def test_gradients_through_posteriors_are_finite_and_match_enumeration_weights(data):
    """The gradient of E[f] under the posteriors is the covariance of f with each step's state."""
    model = data.draw(models(batch=(), zeros=data.draw(st.sampled_from([0.0, 0.3]))))
    positional, keyword = arguments(TORCH, model, "dense")
    emission = positional[2].requires_grad_()
    log_posteriors = hf.forward_backward(*positional, **keyword).log_posteriors
    steps, states = model.num_steps, model.num_states
    f = np.random.default_rng(0).standard_normal((steps, states))
    (torch.exp(log_posteriors) * torch.from_numpy(f)).sum().backward()

    def covariance(one):
        length, p = one.num_steps, one.path_probabilities
        values = f[np.arange(length), one.paths].sum(axis=1)
        centred = values - (p * values).sum()
        hits = one.paths[:, :, None] == np.arange(states)
        return np.einsum("n,n,ntk->tk", p, centred, hits)

    expected = model.expected(covariance, pad=0.0)
    assert_log_close(emission.grad.numpy(), expected, 1e-12 * model.scale * steps)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_posterior_gradients_agree_between_torch_and_jax(form, data):
    """Of entropy and of a weighted sum of finite log-posteriors, with structural zeros."""
    model = data.draw(models_for("jax"))
    positional, keyword = arguments(TORCH, model, form)
    arrays = [positional[0].requires_grad_(), *(x.requires_grad_() for x in leaves(positional[1]))]
    arrays += [positional[2].requires_grad_(), keyword["log_final"].requires_grad_()]
    torch_objective(hf, positional, keyword).backward()
    given = arguments(JAX, model, form)
    lengths, final = given[1]["lengths"], given[1]["log_final"]
    actual = [JAX.numpy(x) for x in jax.tree.leaves(jax_posterior_gradient(*given[0], lengths, final))]
    for one, other in zip(actual, arrays, strict=True):
        assert np.isfinite(one).all()
        # Gradients of log-posteriors are differences of conditional expectations, of size up to T.
        assert_log_close(one, other.grad.numpy(), 1e-11 * model.scale)


def torch_objective(functions, positional, keyword):
    posteriors = functions.forward_backward(*positional, **keyword).log_posteriors
    weights = torch.arange(1.0, posteriors[0].numel() + 1, dtype=torch.float64).reshape(posteriors.shape[1:])
    finite = torch.where(torch.isfinite(posteriors), posteriors, torch.zeros_like(posteriors))
    return (finite * weights).sum() / 10 + functions.posterior_entropy(*positional, **keyword).sum()


@jax.jit
def jax_posterior_gradient(log_initial, log_transition, log_emission, lengths, log_final):
    def value(*args):
        given = {"lengths": lengths, "log_final": args[3]}
        posteriors = hf.forward_backward(*args[:3], **given).log_posteriors
        weights = jax.numpy.arange(1.0, posteriors[0].size + 1).reshape(posteriors.shape[1:])
        finite = jax.numpy.where(jax.numpy.isfinite(posteriors), posteriors, 0.0)
        return (finite * weights).sum() / 10 + hf.posterior_entropy(*args[:3], **given).sum()

    return jax.grad(value, argnums=(0, 1, 2, 3))(log_initial, log_transition, log_emission, log_final)


@given(data=st.data())
def test_gradient_of_a_varying_transition_is_the_pair_posteriors(data):
    model = data.draw(models(transition="varying", normalised=False))
    actual = torch_gradients(model, "dense")[1]
    pairs = np.exp(model.expected(lambda one: one.log_pairs, pad=-np.inf))
    assert_log_close(actual, summed_to(pairs, actual.shape), 1e-12 * model.scale)
    assert as_numpy(TORCH, build_transition(TORCH, "dense", model.log_transition)).shape == actual.shape
