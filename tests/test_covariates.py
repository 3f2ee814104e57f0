"""Transitions that depend on inputs: values by the definition, M-steps by scipy, and the module that learns them."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import numpy as np
import pytest
import torch
from scipy import optimize

import hmm_functional as hf
from pytorch_hmm import (
    BaseHMM,
    CategoricalEmission,
    EmissionHMM,
    GaussianEmission,
    InputDrivenHMM,
    MixtureGaussianEmission,
    NotConverged,
    ProductEmission,
    StreamingHMMProcessor,
    pseudo_residuals,
)
from tests.helpers.backends import LIBRARIES
from tests.helpers.models import normalise

K, P, T = 3, 2, 6


def law(seed=0, zeros=True):
    rng = np.random.default_rng(seed)
    weights, biases = rng.normal(size=(K, K, P)), rng.normal(size=(K, K))
    if zeros:
        biases[0, 2] = biases[2, 1] = -np.inf
    return weights, biases


def by_definition(inputs, weights, biases):
    """(T-1, K, K) log-probabilities, entry by entry."""
    found = np.empty((len(inputs) - 1, *biases.shape))
    for t, i, j in np.ndindex(found.shape):
        found[t, i, j] = biases[i, j] + weights[i, j] @ inputs[t + 1]
    return normalise(found)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("form", ["dense", "banded", "sparse"])
def test_transitions(name, form):
    library, (weights, biases) = LIBRARIES[name], law()
    inputs = np.random.default_rng(1).normal(size=(2, T, P))
    biases[[1, 2, 2], [0, 0, 1]] = -np.inf  # left to right
    expected = np.stack([by_definition(x, weights, biases) for x in inputs])
    if form == "dense":
        found = library.numpy(hf.logistic_transitions(*map(library.array, (inputs, weights, biases))))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-14)
        return
    i, j = np.nonzero(biases > -np.inf)
    if form == "sparse":
        given = hf.Sparse(library.array(biases[i, j]), i, j, K)
        found = hf.logistic_transitions(library.array(inputs), library.array(weights[i, j]), given)
        np.testing.assert_allclose(library.numpy(found.log_weights), expected[..., i, j], rtol=1e-12, atol=1e-14)
        return
    beyond = np.full((2, K), 7.0), np.full((2, K, P), 7.0)
    for o, k in itertools.product(range(2), range(K)):
        if k + o < K:
            beyond[0][o, k], beyond[1][o, k] = biases[k, k + o], weights[k, k + o]
    given = hf.Banded(library.array(beyond[0]), (0, 1))
    found = hf.logistic_transitions(library.array(inputs), library.array(beyond[1]), given)
    for o, k in itertools.product(range(2), range(K)):
        if k + o < K:
            values = library.numpy(found.log_bands)[..., o, k]
            np.testing.assert_allclose(values, expected[..., k, k + o], rtol=1e-12, atol=1e-14)


def test_under_vmap():
    weights, biases = (torch.from_numpy(x) for x in law())
    inputs = torch.randn(3, T, P, dtype=torch.float64)
    found = torch.vmap(lambda x: hf.logistic_transitions(x, weights, biases))(inputs)
    torch.testing.assert_close(found, hf.logistic_transitions(inputs, weights, biases))


def test_gradients():
    weights, biases = (torch.from_numpy(x).requires_grad_() for x in law(zeros=False))
    inputs = torch.randn(4, P, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hf.logistic_transitions, (inputs, weights, biases))
    forbidden = torch.from_numpy(law()[1]).requires_grad_()
    hf.logistic_transitions(inputs, weights, forbidden).exp().square().sum().backward()
    assert forbidden.grad.isfinite().all()
    assert (forbidden.grad[forbidden.isinf()] == 0).all()


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_padding_has_no_part_in_gradients(name):
    """NaN beyond the end: values and gradients are those of the sequence cut there."""
    rng, (weights, biases) = np.random.default_rng(3), law(zeros=False)
    inputs, emission, initial = rng.normal(size=(2, T, P)), rng.normal(size=(2, T, K)), normalise(np.zeros(K))
    inputs[1, 4:] = np.nan

    def value(x, lengths, array, w, b, emission):
        transitions = hf.logistic_transitions(array(x), w, b, lengths=lengths)
        return hf.log_likelihood(array(initial), transitions, array(emission), lengths=lengths).sum()

    def gradients(x, lengths, emission):
        if name == "jax":
            array = LIBRARIES["jax"].array
            return jax.grad(lambda w, b: value(x, lengths, array, w, b, emission), (0, 1))(weights, biases)
        given = [torch.from_numpy(a).requires_grad_() for a in (weights, biases)]
        return torch.autograd.grad(value(x, lengths, torch.from_numpy, *given, emission), given)

    found = gradients(inputs, [T, 4], emission)
    alone = gradients(inputs[:1], None, emission[:1]), gradients(inputs[1:, :4], None, emission[1:, :4])
    for one, *parts in zip(found, *alone, strict=True):
        np.testing.assert_allclose(one, np.asarray(parts[0]) + np.asarray(parts[1]), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"lengths: expected values in 1\.\.6"):
        hf.logistic_transitions(inputs, weights, biases, lengths=[T, 7])
    with pytest.raises(ValueError, match="must broadcast"):
        hf.logistic_transitions(inputs, weights, biases, lengths=[T, 4, 2])


def expected_value(pairs, inputs, weights, biases, ridge=0.0):
    log_p = by_definition(inputs, weights, biases)
    return (pairs * np.where(pairs > 0, log_p, 0.0)).sum() - 0.5 * ridge * (weights**2).sum()


def problem(seed=0, size=60):
    rng = np.random.default_rng(seed)
    weights, biases = law(seed)
    pairs = rng.gamma(0.5, size=(size, K, K)) * (biases > -np.inf)
    return pairs, rng.normal(size=(size + 1, P)), weights, biases


def by_scipy(pairs, inputs, biases, ridge, is_free_weight, is_free_bias, start_weights, start_biases):
    def unpacked(theta):
        weights, b = start_weights.copy(), start_biases.copy()
        count = is_free_weight.sum()
        weights[is_free_weight], b[is_free_bias] = theta[:count], theta[count:]
        return weights, b

    def loss(theta):
        return -expected_value(pairs, inputs, *unpacked(theta), ridge)

    theta = np.concatenate([start_weights[is_free_weight], start_biases[is_free_bias]])
    return -optimize.minimize(loss, theta, method="BFGS", options={"gtol": 1e-7, "maxiter": 500}).fun


@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("is_reference", [False, True])
def test_m_step_is_the_maximum_scipy_finds(ridge, is_reference):
    pairs, inputs, weights, biases = problem()
    is_weight, is_bias = np.repeat((biases > -np.inf)[..., None], P, -1), biases > -np.inf
    fixed = None
    if is_reference:  # the self-loop of every row
        held = np.eye(K, dtype=bool)
        weights[held], biases[held] = 0.0, 0.0
        fixed = hf.LogisticTransitions(np.repeat(held[..., None], P, -1), held)
        is_weight, is_bias = is_weight & ~held[..., None], is_bias & ~held
    weights = np.where((biases > -np.inf)[..., None], weights, 0.0)
    found = hf.maximize_logistic_transitions(pairs, inputs, weights, biases, ridge=ridge, fixed=fixed)
    top = by_scipy(pairs, inputs, biases, ridge, is_weight, is_bias, weights, biases)
    value = expected_value(pairs, inputs, *found, ridge)
    assert value >= top - 1e-9
    np.testing.assert_allclose(value, top, rtol=1e-7)
    np.testing.assert_array_equal(np.isinf(found.biases), np.isinf(biases))
    if is_reference:
        assert (found.weights[held] == 0).all()
        assert (found.biases[held] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 5.0, 25.0])
@pytest.mark.parametrize("seed", range(3))
def test_m_step_finds_the_maximum_from_any_start(scale, seed):
    pairs, inputs, weights, biases = problem(seed)
    zeros = np.zeros_like(weights), np.where(np.isinf(biases), biases, 0.0)
    is_free = biases > -np.inf
    top = by_scipy(pairs, inputs, biases, 0.0, np.repeat(is_free[..., None], P, -1), is_free, *zeros)
    found = hf.maximize_logistic_transitions(pairs, inputs, scale * weights, scale * biases)
    np.testing.assert_allclose(expected_value(pairs, inputs, *found), top, rtol=1e-8)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("bias", [-5.0, -22.0, -50.0, -800.0, 30.0])
def test_m_step_leaves_saturation(name, bias):
    """Of ten transitions one stays, whatever the start held for impossible."""
    pairs, biases = np.array([[[1.0, 9.0], [0.0, 0.0]]] * 3), np.array([[0.0, bias], [0.0, 0.0]])
    given = map(LIBRARIES[name].array, (pairs, np.zeros((4, 0)), np.zeros((2, 2, 0)), biases))
    found = LIBRARIES[name].numpy(hf.maximize_logistic_transitions(*given).biases)[0]
    np.testing.assert_allclose(found[1] - found[0], np.log(9.0), atol=1e-4)


def test_m_step_leaves_saturation_under_jit():
    pairs, biases = np.array([[[1.0, 9.0], [0.0, 0.0]]] * 3), np.array([[0.0, -22.0], [0.0, 0.0]])
    given = pairs, np.zeros((4, 0)), np.zeros((2, 2, 0)), biases
    found = jax.jit(hf.maximize_logistic_transitions)(*given).biases[0]
    np.testing.assert_allclose(found[1] - found[0], np.log(9.0), atol=1e-4)


@pytest.mark.parametrize("name", LIBRARIES)
def test_m_steps_agree(name):
    library = LIBRARIES[name]
    given = problem(1)
    expected = hf.logistic_transitions(given[1], *hf.maximize_logistic_transitions(*given))
    found = hf.maximize_logistic_transitions(*map(library.array, given))
    found = library.numpy(hf.logistic_transitions(library.array(given[1]), *found))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_m_step_under_jit():
    given = problem(1)
    found = jax.jit(lambda *args: hf.maximize_logistic_transitions(*args, num_steps=20))(*given)
    expected = hf.maximize_logistic_transitions(*given)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-6, atol=1e-8)


def test_separable_transitions_do_not_diverge():
    """The sign of the input decides: no maximum. Again and again from where it stopped, nothing moves any more."""
    x = np.linspace(-1, 1, 20)
    pairs = np.zeros((20, 2, 2))
    pairs[:, 0, 0], pairs[:, 0, 1] = x < 0, x > 0
    inputs = np.append(0.0, x)[:, None]
    found = hf.LogisticTransitions(np.zeros((2, 2, 1)), np.zeros((2, 2)))
    before = -np.inf
    for _ in range(5):
        found = hf.maximize_logistic_transitions(pairs, inputs, *found, num_steps=100)
        value = (pairs * hf.logistic_transitions(inputs, *found)).sum()
        assert value >= before
        before = value
        assert np.isfinite(found.weights).all()
        assert np.abs(found.weights).max() < 1000
    assert -1e-7 < value <= 0
    again = hf.maximize_logistic_transitions(pairs, inputs, *found, num_steps=100)
    np.testing.assert_array_equal(again.weights, found.weights)
    assert (found.weights[1] == 0).all()  # never left
    pairs[:, 0] = 0.8 * pairs[:, 0] + 0.1  # softer counts, for which those odds of 1e11 are far too sure
    is_free = np.array([[True, True], [False, False]])
    top = by_scipy(pairs, inputs, None, 0.0, is_free[..., None], is_free, np.zeros((2, 2, 1)), np.zeros((2, 2)))
    found = hf.maximize_logistic_transitions(pairs, inputs, *found)
    np.testing.assert_allclose((pairs * hf.logistic_transitions(inputs, *found)).sum(), top, rtol=1e-8)


def test_dependent_inputs_and_padding():
    """Inputs given twice share one weight's work; NaN where no transition is expected is not read."""
    pairs, inputs, _, biases = problem(2)
    twice = np.concatenate([inputs, inputs[:, :1], np.ones_like(inputs[:, :1])], -1)
    zeros = np.zeros((K, K, 4))
    pairs[-3:] = 0.0
    twice[-3:] = np.nan
    found = hf.maximize_logistic_transitions(pairs, twice, zeros, biases)
    once = hf.maximize_logistic_transitions(pairs, inputs, zeros[..., :2], biases)
    kept = slice(0, -3)
    np.testing.assert_allclose(
        hf.logistic_transitions(twice[kept], *found), hf.logistic_transitions(inputs[kept], *once), rtol=1e-6, atol=1e-8
    )


ERRORS = {
    "weights": ({"weights": np.zeros((K, K))}, ValueError, "weights: expected shape"),
    "inputs": ({"inputs": np.zeros((T, 5))}, ValueError, "weights: expected shape"),
    "biases": ({"biases": np.zeros((K, 2))}, ValueError, r"biases: expected shape \(K, K\)"),
    "low rank": ({"biases": hf.LowRank(np.zeros((K, 1)), np.zeros((1, K)))}, TypeError, "LowRank"),
    "integers": ({"inputs": np.zeros((T, P), int)}, TypeError, "inputs: expected a floating-point dtype"),
    "libraries": ({"inputs": torch.zeros(T, P)}, TypeError, "torch"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    changes, error, words = ERRORS[name]
    weights, biases = law()
    with pytest.raises(error, match=words):
        hf.logistic_transitions(**{"inputs": np.zeros((T, P)), "weights": weights, "biases": biases, **changes})


# The module


def module(seed=0, **options):
    torch.manual_seed(seed)
    model = InputDrivenHMM(2, GaussianEmission(2, obs_dim=2), P, **options).double()
    model.emission.means = [[-1.0, 0.0], [1.0, 0.5]]
    return model


def data(seed=0, batch=3, num_steps=20):
    rng = torch.Generator().manual_seed(seed)
    x, context = (torch.randn(batch, num_steps, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    return x, context, [num_steps, num_steps - 7, 1][:batch]


def test_zero_weights_are_the_plain_model():
    model, (x, context, lengths) = module(), data()
    plain = EmissionHMM(2, model.emission.law, transition=model.transition.detach()).double()
    torch.testing.assert_close(model(x, lengths, context), plain(x, lengths))
    torch.testing.assert_close(model.filter(x, lengths, context), plain.filter(x, lengths))
    for one, other in zip(model.forward_backward(x, lengths, context), plain.forward_backward(x, lengths), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(model.viterbi_decode(x, lengths, context), plain.viterbi_decode(x, lengths), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(model.emission_log_prob(x, lengths, context), plain.emission_log_prob(x, lengths))


def test_likelihood_is_the_sum_over_paths():
    model, (x, context, _) = module(), data(num_steps=5)
    weights = np.random.default_rng(0).normal(size=(2, 2, P))
    model.transition_weights = weights
    emission = model.emission_log_prob(x, context=context).detach().numpy()
    biases, initial = model.log_transition.detach().numpy(), model.log_initial.detach().numpy()
    for b in range(3):
        terms = []
        for path in itertools.product(range(2), repeat=5):
            total = initial[path[0]] + emission[b, 0, path[0]]
            for t in range(1, 5):
                scores = [biases[path[t - 1], j] + weights[path[t - 1], j] @ context[b, t].numpy() for j in range(2)]
                total += scores[path[t]] - np.logaddexp.reduce(scores) + emission[b, t, path[t]]
            terms.append(total)
        np.testing.assert_allclose(model(x, context=context)[b].item(), np.logaddexp.reduce(terms), rtol=1e-12)
    alone = model(x[0], context=context[0])
    torch.testing.assert_close(alone, model(x, context=context)[0])


def test_em_is_monotone_and_ends_where_the_gradient_vanishes():
    model, (x, context, lengths) = module(ridge=0.3), data(1)
    x = x + 1.5 * context[..., :1].sign()
    report = model.fit(
        x, lengths, context=context, init="keep", num_iterations=300, tolerance=1e-10, variance_floor=0.05
    )
    steps = np.diff(report.history)
    assert (steps > -1e-9 * abs(report.history[0])).all()
    assert report.history[-1] > report.history[0] + 1.0
    loss = model(x, lengths, context).sum() - 0.15 * model.transition_weights.square().sum()
    torch.testing.assert_close(report.history[-1], loss.item())
    loss.backward()
    slopes = [model.transition_slopes.values, model.transition_distribution.logits]
    assert all(p.grad.abs().max() < 1e-2 for p in slopes)
    assert report.dead_states == []


def test_learning_finds_inputs_that_switch():
    """Drawn from a model whose input says where to go: EM finds that the weights point there."""
    true = module()
    true.transition_weights = [[[0.0, 0.0], [3.0, 0.0]], [[0.0, 0.0], [3.0, 0.0]]]
    true.emission.means = [[-3.0, 0.0], [3.0, 0.5]]
    context = torch.randn(10, 200, P, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states, x = true.sample(200, 10, torch.Generator().manual_seed(1), context)
    assert states.shape == (10, 200)
    model = module()
    report = model.fit(x, context=context, init="keep", num_iterations=20, tolerance=1e-3)
    found = model.transition_weights.detach()
    differences = found[:, 1] - found[:, 0]
    np.testing.assert_allclose(differences[:, 0], 3.0, atol=0.6)
    np.testing.assert_allclose(differences[:, 1], 0.0, atol=0.3)
    assert report.log_likelihood > true(x, context=context).sum().item() - 1e-3


@pytest.mark.parametrize("self_loop", [0.5, 0.9, 0.99, 0.993, 0.999])
def test_fits_do_not_depend_on_the_first_self_loop(self_loop):
    """States told by the frames change nine times of ten: where Newton's steps overshot, they never did."""
    rng = np.random.default_rng(0)
    states = np.cumsum(rng.random(400) < 0.9) % 2
    x = torch.from_numpy(10.0 * states - 5.0 + rng.normal(size=400))[:, None]
    context = torch.from_numpy(rng.normal(size=(400, 1)))
    start = [[self_loop, 1 - self_loop], [1 - self_loop, self_loop]]
    model = InputDrivenHMM(2, GaussianEmission(2, 1), 1, transition=start).double()
    model.emission.means = [[-5.0], [5.0]]
    report = model.fit(x, context=context, init="keep", num_iterations=50, tolerance=1e-6)
    moved = (states[1:] != states[:-1])[:, None].astype(float)
    loss = -np.log(np.mean(moved)) * moved.sum() - np.log(np.mean(1 - moved)) * (1 - moved).sum()
    scale = [x[states == k].std(correction=0).item() for k in range(2)]
    sizes = [int((states == k).sum()) for k in range(2)]
    density = -sum(n * (np.log(s) + 0.5 * np.log(2 * np.pi * np.e)) for n, s in zip(sizes, scale, strict=True))
    assert report.converged
    assert density - loss < report.log_likelihood < density - loss + 10.0  # known states, the same odds at any input


def test_fits_of_lists_labels_weights_and_gradients():
    model, (x, context, _) = module(), data(2)
    one = {"init": "keep", "num_iterations": 3, "tolerance": 0}
    lists = module().fit([x[0], x[1, :9]], context=[context[0], context[1, :9]], **one)
    padded = model.fit(x[:2], [20, 9], context=context[:2], **one)
    np.testing.assert_allclose(lists.history, padded.history, rtol=1e-12)
    batches = [torch.cat([x[:1], context[:1]], -1), (torch.cat([x[1:2], context[1:2]], -1), [9])]
    np.testing.assert_allclose(module().fit(batches, **one).history, padded.history, rtol=1e-12)
    twice = module().fit(x[:2], [20, 9], context=context[:2], sample_weights=[2.0, 1.0], **one)
    repeated = module().fit(x[[0, 0, 1]], [20, 20, 9], context=context[[0, 0, 1]], **one)
    np.testing.assert_allclose(twice.history, repeated.history, rtol=1e-12)
    labels = (context[..., 0] > 0).long()
    known = module()
    with pytest.warns(NotConverged):
        known.fit(x, context=context, labels=labels, init="keep", num_iterations=1, tolerance=1e-9)
    found = known.transition_weights.detach()
    assert ((found[:, 1] - found[:, 0])[:, 0] > 3).all()
    slow = module()
    report = slow.fit(x, context=context, method="gradient", num_iterations=8, init="keep", tolerance=0)
    assert report.history[-1] > report.history[0]
    assert slow.transition_weights.abs().max() > 0
    start = module().fit(x, context=context, num_iterations=2, tolerance=0, generator=torch.Generator().manual_seed(0))
    assert np.isfinite(start.history).all()


@pytest.mark.parametrize("start", ["initialize_from_data", "initialize_randomly"])
def test_starts_take_the_inputs_beside(start):
    x, context, lengths = data(5)
    plain = EmissionHMM(2, GaussianEmission(2, obs_dim=2)).double()
    getattr(plain, start)(x, lengths, generator=torch.Generator().manual_seed(0))
    for given in ((x, context), (torch.cat([x, context], -1), None)):
        model = module(transition_weights=np.ones((2, 2, P)))
        rng = torch.Generator().manual_seed(0)
        assert getattr(model, start)(given[0], lengths, context=given[1], generator=rng) is model
        assert (model.transition_weights == 0).all()
        torch.testing.assert_close(model.emission.means, plain.emission.means)


def test_warnings_name_the_line_that_fits():
    x, context, _ = data(1)
    plain = EmissionHMM(2, GaussianEmission(2, obs_dim=2)).double()
    for fit in (partial(module().fit, context=context), plain.fit):
        with pytest.warns(NotConverged) as found:
            fit(x, num_iterations=1, tolerance=1e-9)
        assert [warning.filename for warning in found] == [__file__]


def test_fixed_entries_stay_and_structural_zeros():
    x, context, _ = data(3)
    model = module(transition=[[0.5, 0.5], [0.0, 1.0]], initial=[1.0, 0.0])
    model.fix("transition_weights", [[[True], [False]], [[True], [True]]])
    model.fit(x, context=context, init="keep", num_iterations=3, tolerance=0)
    assert (model.transition_weights[0, 0] == 0).all()
    assert (model.transition_weights[1] == 0).all()
    assert model.transition_weights[0, 1].abs().min() > 0
    assert model.log_transition[1, 0] == -torch.inf
    frozen = module()
    before = frozen.log_transition.clone()
    frozen.fit(x, context=context, init="keep", num_iterations=2, tolerance=0, frozen=["log_transition"])
    torch.testing.assert_close(frozen.log_transition, before, rtol=0, atol=0)
    assert frozen.transition_weights.abs().min() > 0
    held = module().fix("log_transition", [[True, False], [False, False]])
    held.fit(x, context=context, init="keep", num_iterations=2, tolerance=0)
    torch.testing.assert_close(held.transition[0], torch.tensor([0.5, 0.5], dtype=torch.float64))
    still = module(learnable=False)
    still.fit(x, context=context, init="keep", num_iterations=2, tolerance=0)
    assert (still.transition_weights == 0).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_of_free_parameters(seed):
    model = module()
    count = 1 + 2 + 2 * P + 8  # initial, rows, weights a row and input, means and variances
    assert model.num_free_parameters() == count
    assert module(learnable=False).num_free_parameters() == 8
    model.fix("transition_weights", torch.eye(2, dtype=torch.bool)[..., None])
    assert model.num_free_parameters() == count
    model.fix("transition_weights", True)
    assert model.num_free_parameters() == count - 2 * P
    x, context, _ = data(seed)
    value = model(x, context=context).sum().item()
    np.testing.assert_allclose(model.aic(x, context=context).item(), 2 * (count - 4) - 2 * value)
    np.testing.assert_allclose(model.bic(x, context=context).item(), (count - 4) * np.log(60) - 2 * value)


EMISSIONS = {
    "symbols": (lambda: CategoricalEmission(2, 4), lambda: torch.randint(4, (3, 20))),
    "mixtures": (lambda: MixtureGaussianEmission(2, 2, 2), lambda: torch.randn(3, 20, 2)),
    "products": (
        lambda: ProductEmission([GaussianEmission(2, 1), CategoricalEmission(2, 3)]),
        lambda: torch.cat([torch.randn(3, 20, 1), torch.randint(3, (3, 20, 1)).float()], -1),
    ),
}


@pytest.mark.parametrize("name", EMISSIONS)
def test_any_emission(name, tmp_path):
    torch.manual_seed(0)
    emission, x = (make() for make in EMISSIONS[name])
    model, context = InputDrivenHMM(2, emission, P, ridge=0.1), torch.randn(3, 20, P)
    plain = EmissionHMM(2, emission)
    torch.testing.assert_close(model(x, [20, 5, 1], context), plain(x, [20, 5, 1]))
    report = model.fit(x, [20, 5, 1], context=context, num_iterations=3, tolerance=0)
    assert report.history[-1] > report.history[0]
    states, drawn = model.sample(20, 3, context=context)
    assert (states.shape, drawn.shape, drawn.dtype) == ((3, 20), x.shape, x.dtype)
    assert model(drawn, context=context).isfinite().all()
    path = tmp_path / "model.safetensors"
    model.save(path)
    for cls in (InputDrivenHMM, BaseHMM):
        again = cls.load(path)
        assert repr(again) == repr(model)
        assert torch.equal(again(x, context=context), model(x, context=context))


def test_missing_observations_are_not_missing_inputs():
    model, (x, context, lengths) = module(missing="nan"), data(4)
    model.transition_weights = np.random.default_rng(0).normal(size=(2, 2, P))
    x[0, 3] = torch.nan
    x[0, 4, 1] = torch.nan
    emission = model.emission_log_prob(x, context=context)
    assert (emission[0, 3] == 0).all()
    expected = hf.log_likelihood(model.log_initial, model.transitions(context), emission, lengths=lengths)
    torch.testing.assert_close(model(x, lengths, context), expected)
    report = model.fit(x, lengths, context=context, init="keep", num_iterations=5, tolerance=0)
    assert (np.diff(report.history) > -1e-9).all()
    np.testing.assert_allclose(report.history[-1], model(x, lengths, context).sum().item(), rtol=1e-12)
    context[1, 15] = torch.nan  # padding
    assert model(x, lengths, context).isfinite().all()
    context[0, 3] = torch.nan
    with pytest.raises(ValueError, match=r"context\[0, 3\]: expected finite inputs"):
        model(x, lengths, context)


def test_what_is_not_there_says_so():
    model, (x, context, _) = module(), data()
    calls = {
        "context: expected": lambda: model(x),
        "context: expected shape": lambda: model(x, context=context[:2]),
        "expected 'em' or 'gradient'": lambda: model.fit(x, context=context, method="viterbi", init="keep"),
        "got 'stepwise'": lambda: model.fit(x, context=context, method="stepwise", init="keep"),
        "emission: expected one of single frames": lambda: InputDrivenHMM(2, _lagged(), 1),
        "ridge: expected": lambda: module(ridge=-1.0),
        "a list of as many": lambda: model.fit([x[0]], context=context),
        "context: expected shape .* got None": lambda: model.sample(4),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(NotImplementedError, match="partial_fit"):
        model.partial_fit(x)
    with pytest.raises(NotImplementedError, match="residuals"):
        pseudo_residuals(model, x)
    with pytest.raises(TypeError, match="depends on inputs"):
        StreamingHMMProcessor(model)


def _lagged():
    from pytorch_hmm import LinearRegressionEmission

    return LinearRegressionEmission(2, 1, num_lags=1)


def test_dtypes_promote():
    torch.manual_seed(0)
    model = InputDrivenHMM(3, GaussianEmission(3, obs_dim=2), 2, transition_weights=torch.randn(3, 3, 2))
    x, context = torch.randn(2, 20, 2), torch.randn(2, 20, 2)
    wanted = model(x, context=context)
    for data, inputs in ((x.double(), context.double()), (x, context.double()), (x.double(), context)):
        torch.testing.assert_close(
            model(data, context=inputs), wanted.double(), rtol=1e-5, atol=1e-5, check_dtype=False
        )
    report = model.fit(x.double(), context=context.double(), method="gradient", num_iterations=2, tolerance=0)
    assert report.history[-1] > report.history[0]
    found = hf.logistic_transitions(context.double(), model.transition_weights, model.log_transition)
    assert found.dtype == torch.float64
    assert hf.prosodic(hf.left_to_right(3), context.double(), torch.zeros(2)).dtype == torch.float64


def test_a_context_of_each_sequence_is_no_context_of_each_frame():
    model = InputDrivenHMM(2, GaussianEmission(2, obs_dim=1), 1)
    with pytest.raises(ValueError, match=r"context: expected shape \(4, 4, 1\)"):
        model(torch.randn(4, 4, 1), context=torch.randn(4, 1))
