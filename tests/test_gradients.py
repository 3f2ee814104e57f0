"""First, second and forward-mode derivatives in torch and JAX, under their transforms and torch.compile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

import hmm_functional as hf
from tests.helpers.backends import FORMS, bands_of, random_low_rank, sparse_edges
from tests.helpers.enumeration import Enumeration
from tests.helpers.models import Model, assert_log_close

# torch compiles its own forward-mode rules by what it itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

BATCH, STEPS, STATES = 2, 3, 2
OFFSETS = (0, 1)
CHECKED = ("forward", "forward_backward", "pair_posteriors", "expected_transitions", "posterior_entropy")


def weights_of(form, rng):
    """Random arrays of a form, one -inf where it has more than two entries."""
    if form == "low_rank":
        left, right, _ = random_low_rank(rng, STATES, 2)
        left[1, 0] = -np.inf
        return left, right
    matrix = rng.standard_normal((STATES, STATES))
    if form == "dense":
        matrix[1, 0] = -np.inf
        return (matrix,)
    if form == "varying":
        varying = rng.standard_normal((STEPS - 1, STATES, STATES))
        varying[1, 0, 1] = -np.inf
        return (varying,)
    return (bands_of(matrix, OFFSETS),) if form == "banded" else (matrix[sparse_edges(STATES)],)


def transition_of(form, weights):
    if form == "banded":
        return hf.Banded(weights[0], OFFSETS)
    if form == "sparse":
        return hf.Sparse(weights[0], *sparse_edges(STATES), STATES)
    return hf.LowRank(*weights) if form == "low_rank" else weights[0]


def inputs(form="dense", *, seed=0, zeros=True):
    """NumPy arrays initial, emission, final, then the form's weights; sequence 1 is one step shorter."""
    rng = np.random.default_rng(seed)
    initial, emission, final = (rng.standard_normal(shape) for shape in ((STATES,), (BATCH, STEPS, STATES), (STATES,)))
    if zeros:
        emission[0, 1, 0] = -np.inf
        emission[1, 0, 1] = -np.inf
    weights = weights_of(form, rng) if zeros else tuple(np.maximum(w, -9.0) for w in weights_of(form, rng))
    return initial, emission, final, *weights


LENGTHS = (3, 2)


def evaluate(name, form, initial, emission, final, *weights, **options):
    options = {"log_final": final, **options}
    return getattr(hf, name)(initial, transition_of(form, weights), emission, lengths=np.array(LENGTHS), **options)


class Finite:
    """A function of the finite entries alone, which is what can be differentiated; outputs' infinities become 0."""

    def __init__(self, name, form, arrays, **options):
        self.name, self.form, self.options = name, form, options
        self.full = [torch.from_numpy(array) for array in arrays]
        self.masks = [torch.isfinite(array) for array in self.full]

    @property
    def start(self):
        return tuple(array[mask].clone().requires_grad_() for array, mask in zip(self.full, self.masks, strict=True))

    def __call__(self, *finite):
        arrays = [
            full.clone().masked_scatter(mask, values)
            for full, mask, values in zip(self.full, self.masks, finite, strict=True)
        ]
        result = evaluate(self.name, self.form, *arrays, **self.options)
        results = result if isinstance(result, tuple) else (result,)
        # The infinite entries are of structural zeros and of padding; a cotangent of 0 reaches them.
        kept = tuple(torch.where(torch.isfinite(one), one, 0.0) for one in results if one.is_floating_point())
        return kept if len(kept) > 1 else kept[0]


@pytest.mark.parametrize("form", [*FORMS, "varying"])
def test_log_likelihood_gradcheck(form):
    function = Finite("log_likelihood", form, inputs(form))
    assert gradcheck(function, function.start, check_forward_ad=True)
    assert gradgradcheck(function, function.start)


@pytest.mark.parametrize("kernel", ["reference", "parallel"])
def test_log_likelihood_gradcheck_of_kernels(kernel):
    function = Finite("log_likelihood", "dense", inputs(), kernel=kernel)
    assert gradcheck(function, function.start, check_forward_ad=True)
    assert gradgradcheck(function, function.start)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("form", [*FORMS, "varying"])
def test_gradcheck(name, form):
    function = Finite(name, form, inputs(form))
    assert gradcheck(function, function.start, check_forward_ad=True)


@pytest.mark.parametrize("name", ["viterbi", "viterbi_k_best", "log_joint", "smooth_fixed_lag", "forecast"])
def test_gradcheck_of_the_other_outputs(name):
    """The contract: every floating-point output is differentiable."""
    arrays = inputs(zeros=False)
    states = torch.tensor([[0, 1, 1], [1, 0, -1]])
    options = {
        "viterbi_k_best": {"k": 2},
        "log_joint": {"states": states},
        "smooth_fixed_lag": {"lag": 1},
        "forecast": {"num_steps": 2},
    }.get(name, {})
    if name in ("smooth_fixed_lag", "forecast"):  # log_final has no agreed place in them
        arrays = (*arrays[:2], np.full(STATES, -np.inf), *arrays[3:])
        options["log_final"] = None
    function = Finite(name, "dense", arrays, **options)
    assert gradcheck(function, function.start, check_forward_ad=True)


def test_gradcheck_of_stationary():
    matrix = torch.log_softmax(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3))), dim=-1)

    def function(logits):
        return hf.stationary(torch.log_softmax(logits, dim=-1))

    assert gradcheck(function, (matrix.clone().requires_grad_(),))
    given = jnp.asarray(matrix.numpy())
    actual = jax.jit(jax.jacrev(lambda x: hf.stationary(jax.nn.log_softmax(x, -1))))(given)
    expected = torch.autograd.functional.jacobian(function, matrix)
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-10)


@pytest.mark.parametrize("name", ["forward_backward", "posterior_entropy", "expected_transitions"])
def test_second_derivatives_of_posteriors_are_right_or_raise(name):
    """That is the third derivative of the log-likelihood: the contract asks for two, and never a silent zero."""
    function = Finite(name, "dense", inputs())

    def smooth(*finite):  # probabilities and values, so that nothing is near -inf
        result = function(*finite)
        return result[0].exp() if isinstance(result, tuple) else result

    try:
        assert gradgradcheck(smooth, function.start, raise_exception=True)
    except GradcheckError:
        raise  # a wrong derivative
    except (RuntimeError, NotImplementedError) as error:
        assert str(error), "refused, with words"  # noqa: PT017


def test_third_derivatives_are_right_or_raise():
    """Of log sum_k exp(a_k), whose third derivative by a_0 is p (1 - p) (1 - 2 p): never silently zero."""
    emission = torch.log(torch.tensor([[0.2, 0.8]], dtype=torch.float64)).requires_grad_()
    start, matrix = torch.zeros(2, dtype=torch.float64), torch.zeros((2, 2), dtype=torch.float64)
    p = 0.2
    value = hf.log_likelihood(start, matrix, emission)
    (first,) = torch.autograd.grad(value, emission, create_graph=True)
    assert first[0, 0].item() == pytest.approx(p)
    (second,) = torch.autograd.grad(first[0, 0], emission, create_graph=True)
    assert second[0, 0].item() == pytest.approx(p * (1 - p))
    try:
        (third,) = torch.autograd.grad(second[0, 0], emission)
    except RuntimeError as error:
        assert str(error)  # noqa: PT017
    else:
        assert third[0, 0].item() == pytest.approx(p * (1 - p) * (1 - 2 * p))


def test_third_derivatives_in_jax_are_right_or_raise():
    start, matrix = jnp.zeros(2), jnp.zeros((2, 2))

    def value(a):
        return hf.log_likelihood(start, matrix, jnp.stack([a, jnp.log(0.8)])[None])

    p = 0.2
    assert jax.grad(jax.grad(value))(jnp.log(p)) == pytest.approx(p * (1 - p))
    try:
        third = jax.grad(jax.grad(jax.grad(value)))(jnp.log(p))
    except (TypeError, NotImplementedError, ValueError) as error:
        assert str(error)  # noqa: PT017
    else:
        assert third == pytest.approx(p * (1 - p) * (1 - 2 * p))


# Posteriors that underflow


def buried():
    """State 1 has a posterior of about exp(-800) at step 1: its probability is 0 in float64, its log is not."""
    rng = np.random.default_rng(5)
    emission = rng.standard_normal((4, 3))
    emission[1, 1] = -800
    emission[2, 2] = -1500
    return rng.standard_normal(3), rng.standard_normal((3, 3)), emission


@pytest.mark.parametrize(("step", "state"), [(1, 1), (2, 2)])
def test_gradient_of_a_log_posterior_that_underflows(step, state):
    """Right where exp(log posterior) is 0: torch, JAX and differences of the enumeration agree."""
    parts = buried()
    log_posteriors = Enumeration(*parts).log_posteriors
    assert log_posteriors[step, state] < -750

    def exact(index, array, change):
        moved = [np.array(x, np.longdouble) for x in parts]
        moved[array][index] += change
        return Enumeration(*moved).log_posteriors[step, state]

    expected = []
    for array, part in enumerate(parts):
        gradient = np.zeros(part.shape)
        for index in np.ndindex(*part.shape):
            change = np.longdouble(1e-5)
            gradient[index] = (exact(index, array, change) - exact(index, array, -change)) / (2 * change)
        expected.append(gradient)

    given = [torch.from_numpy(x).requires_grad_() for x in parts]
    actual = torch.autograd.grad(hf.forward_backward(*given).log_posteriors[step, state], given)
    one = [torch.from_numpy(x) for x in parts]

    def value(*args):
        return hf.forward_backward(*args).log_posteriors[step, state]

    traced = torch.func.grad(value, argnums=(0, 1, 2))(*one)
    in_jax = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*(jnp.asarray(x) for x in parts))
    for array, gradient in enumerate(expected):
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(actual[array].numpy(), gradient, atol=1e-8)
        np.testing.assert_allclose(traced[array].numpy(), gradient, atol=1e-8)
        np.testing.assert_allclose(np.asarray(in_jax[array]), gradient, atol=1e-8)


def test_gradient_of_a_filtered_and_a_pair_probability_that_underflow():
    """The same of `forward` and `pair_posteriors`, by central differences of their own, exact in value."""
    parts = [torch.from_numpy(x) for x in buried()]

    def filtered(emission):
        return hf.forward(parts[0], parts[1], emission).log_filtered[2, 2]

    def pair(emission):
        return hf.pair_posteriors(parts[0], parts[1], emission)[0, 0, 1]

    for function in (filtered, pair):
        assert function(parts[2]) < -750
        gradient = torch.func.grad(function)(parts[2])
        for index in np.ndindex(4, 3):
            step = torch.zeros((4, 3), dtype=torch.float64)
            step[index] = 1e-4
            difference = (function(parts[2] + step) - function(parts[2] - step)) / 2e-4
            # Values of size 1500 round to 2e-13, which the difference divides by 2e-4.
            assert gradient[index].item() == pytest.approx(difference.item(), abs=2e-8)


# Impossible sequences


@pytest.mark.parametrize("form", [*FORMS, "varying"])
def test_impossible_sequences_have_zero_gradient_and_leave_others_alone(form):
    """Value -inf, gradients exactly zero, first and second, in the shared parameters too."""
    arrays = inputs(form)
    arrays[1][1, 1] = -np.inf
    alone = [array.copy() for array in arrays]
    alone[1] = alone[1][:1]
    weights = torch.arange(1.0, 1 + STEPS * STATES, dtype=torch.float64).reshape(STEPS, STATES)

    def gradients(arrays, lengths):
        given = [torch.from_numpy(x).requires_grad_() for x in arrays]
        transition = transition_of(form, given[3:])
        value = hf.log_likelihood(given[0], transition, given[1], lengths=lengths, log_final=given[2])
        first = torch.autograd.grad(value.sum(), given, create_graph=True)
        bent = sum((g * torch.arange(g.numel(), dtype=g.dtype).reshape(g.shape)).sum() for g in first)
        second = torch.autograd.grad(bent, given)
        smoothed = hf.forward_backward(given[0], transition, given[1], lengths=lengths, log_final=given[2])
        through = torch.autograd.grad((smoothed.log_posteriors.exp() * weights).sum(), given)
        return value.detach().numpy(), [first, second, through]

    value, together = gradients(arrays, [3, 2])
    assert np.isneginf(value).tolist() == [False, True]
    _, single = gradients(alone, [3])
    for all_of, one_of in zip(together, single, strict=True):
        for place, (one, other) in enumerate(zip(all_of, one_of, strict=True)):
            one = one.detach().numpy()
            if place == 1:
                np.testing.assert_array_equal(one[1], 0.0)
                one = one[:1]
            assert_log_close(one, other.detach().numpy(), 1e-13)


def test_all_sequences_impossible():
    """Gradients are zero for every input, and for JAX as for torch."""
    parts = [np.zeros(2), np.zeros((2, 2)), np.full((3, 2), -np.inf)]
    given = [torch.from_numpy(x).requires_grad_() for x in parts]
    value = hf.log_likelihood(*given)
    assert value == -np.inf
    for gradient in torch.autograd.grad(value, given):
        np.testing.assert_array_equal(gradient.numpy(), 0.0)
    for gradient in jax.grad(hf.log_likelihood, argnums=(0, 1, 2))(*(jnp.asarray(x) for x in parts)):
        np.testing.assert_array_equal(np.asarray(gradient), 0.0)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_padding_has_zero_gradient_in_both_orders(bad):
    arrays = inputs(zeros=False)
    arrays[1][1, 2] = bad
    given = [torch.from_numpy(x).requires_grad_() for x in arrays]
    first = torch.autograd.grad(evaluate("log_likelihood", "dense", *given).sum(), given, create_graph=True)
    second = torch.autograd.grad(sum((g * g).sum() for g in first), given)
    for gradients in (first, second):
        assert all(torch.isfinite(g).all() for g in gradients)
        np.testing.assert_array_equal(gradients[1][1, 2].detach().numpy(), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_inputs_give_finite_gradients(dtype):
    """Magnitudes of 1e30 and the like, -inf beside them: no NaN in values, first or second gradients."""
    for size in (1e4, 1e20, 9e29):
        emission = torch.tensor([[0.0, -size], [-size, 0.0], [0.0, -np.inf], [-size, -size]], dtype=dtype)
        given = [torch.zeros(2, dtype=dtype), torch.tensor([[0.0, -np.inf], [-size, 0.0]], dtype=dtype), emission]
        given = [x.requires_grad_() for x in given]
        value = hf.log_likelihood(*given)
        assert not torch.isnan(value)
        first = torch.autograd.grad(value, given, create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in first), given)
        assert all(torch.isfinite(g).all() for g in (*first, *second))
        assert not torch.isnan(hf.forward_backward(*given).log_posteriors).any()


# torch's transforms


def simple(seed=0):
    """Finite inputs of one sequence as tensors: initial, transition, emission."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(shape)) for shape in ((3,), (3, 3), (5, 3))]


def test_torch_func_grad_and_jacobians():
    given = simple()
    posteriors = hf.forward_backward(*given).log_posteriors.exp()
    gradient = torch.func.grad(hf.log_likelihood, argnums=(0, 1, 2))(*given)
    torch.testing.assert_close(gradient[2], posteriors, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient[1], hf.expected_transitions(*given), rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient[0], posteriors[0], rtol=0, atol=1e-13)

    def smoothed(emission):
        return hf.forward_backward(*given[:2], emission).log_posteriors

    def value(emission):
        return hf.log_likelihood(*given[:2], emission)

    reverse, forward = torch.func.jacrev(smoothed)(given[2]), torch.func.jacfwd(smoothed)(given[2])
    torch.testing.assert_close(reverse, forward, rtol=0, atol=1e-12)
    expected = torch.autograd.functional.jacobian(smoothed, given[2])
    torch.testing.assert_close(reverse, expected, rtol=0, atol=1e-12)
    hessian = torch.func.hessian(value)(given[2])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(value, given[2]), rtol=0, atol=1e-12)
    assert hessian.abs().max() > 1e-2
    direction = torch.ones_like(given[2])
    direction[0, 0] = 3.0
    out, tangent = torch.func.jvp(value, (given[2],), (direction,))
    torch.testing.assert_close(tangent, (posteriors * direction).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(out, value(given[2]), rtol=1e-14, atol=0)


def test_hessian_is_the_covariance_of_the_states():
    """By enumeration: the second derivative by emissions is cov(1[z_t = i], 1[z_s = j])."""
    given = simple()
    one = Enumeration(*(x.numpy() for x in given))
    hits = (one.paths[:, :, None] == np.arange(3)).reshape(len(one.paths), -1)
    centred = hits - one.path_probabilities @ hits
    expected = np.einsum("n,ni,nj->ij", one.path_probabilities, centred, centred)
    hessian = torch.func.hessian(lambda e: hf.log_likelihood(*given[:2], e))(given[2])
    np.testing.assert_allclose(hessian.reshape(15, 15).numpy(), expected.astype(float), atol=1e-13)
    in_jax = jax.jit(jax.hessian(lambda e: hf.log_likelihood(*(jnp.asarray(x.numpy()) for x in given[:2]), e)))
    np.testing.assert_allclose(
        np.asarray(in_jax(jnp.asarray(given[2].numpy()))).reshape(15, 15), hessian.reshape(15, 15), atol=1e-13
    )


@pytest.mark.parametrize("name", ["log_likelihood", "forward", "forward_backward", "viterbi", "posterior_entropy"])
def test_torch_vmap(name):
    """vmap over sequences, over models, and over both equals the batch axes."""
    function = getattr(hf, name)
    emission = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 5, 3)))
    matrices = torch.from_numpy(np.random.default_rng(2).standard_normal((4, 3, 3)))
    initial, matrix, _ = simple()

    def parts(result):
        return result if isinstance(result, tuple) else (result,)

    cases = [
        (torch.vmap(lambda e: function(initial, matrix, e))(emission), function(initial, matrix, emission)),
        (
            torch.vmap(lambda m: function(initial, m, emission[0]))(matrices),
            function(initial, matrices[:, None], emission[0]),
        ),
        (
            torch.vmap(lambda m, e: function(initial, m, e))(matrices, emission),
            function(initial, matrices[:, None], emission),
        ),
    ]
    for actual, expected in cases:
        for one, other in zip(parts(actual), parts(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_torch_vmap_of_grad():
    """Gradients for each sequence of parameters they share."""
    initial, matrix, _ = simple()
    emission = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 5, 3)))
    value = lambda m, e: hf.log_likelihood(initial, m, e)  # noqa: E731
    per_sequence = torch.vmap(torch.func.grad(value), in_dims=(None, 0))(matrix, emission)
    torch.testing.assert_close(per_sequence, hf.expected_transitions(initial, matrix, emission), rtol=0, atol=1e-13)
    curvature = torch.vmap(torch.func.hessian(value), in_dims=(None, 0))(matrix, emission)
    alone = torch.func.hessian(value)(matrix, emission[2])
    torch.testing.assert_close(curvature[2], alone, rtol=0, atol=1e-12)


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("name", ["log_likelihood", "forward_backward", "viterbi"])
def test_torch_compile_whole(name):
    """fullgraph=True: one graph forward, and one backward where there is a gradient. Traced without Inductor."""
    function = getattr(hf, name)
    compiled = torch.compile(lambda *args: function(*args, lengths=lengths), fullgraph=True, backend="aot_eager")
    lengths = torch.tensor([5, 3])
    initial, matrix, _ = simple()
    emission = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 5, 3)))
    results = []
    for run in (compiled, lambda *args: function(*args, lengths=lengths)):
        given = [x.clone().requires_grad_() for x in (initial, matrix, emission)]
        result = run(*given)
        outputs = result if isinstance(result, tuple) else (result,)
        total = sum(torch.where(torch.isfinite(o), o, 0.0).sum() for o in outputs if o.is_floating_point())
        results.append((*outputs, *torch.autograd.grad(total, given)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_of_func_grad():
    given = simple()
    compiled = torch.compile(torch.func.grad(hf.log_likelihood, argnums=2), fullgraph=True, backend="aot_eager")
    expected = hf.forward_backward(*given).log_posteriors.exp()
    torch.testing.assert_close(compiled(*given), expected, rtol=0, atol=1e-13)


def test_no_gradient_where_none_is_asked():
    given = simple()
    assert not hf.log_likelihood(*given).requires_grad
    with torch.no_grad():
        assert not hf.forward_backward(*(x.clone().requires_grad_() for x in given)).log_posteriors.requires_grad
    best = hf.viterbi(*(x.clone().requires_grad_() for x in given))
    assert not best.states.requires_grad
    assert best.log_joint.requires_grad


# JAX


def in_jax(given):
    return [jnp.asarray(x.numpy()) for x in given]


def test_jax_transforms_agree_with_torch():
    given = simple()
    emission = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 5, 3)))
    a, m, e = in_jax([*given[:2], emission])
    value = hf.log_likelihood
    gradient = jax.jit(jax.vmap(jax.grad(value, argnums=(0, 1, 2)), in_axes=(None, None, 0)))(a, m, e)
    smoothed = hf.forward_backward(given[0], given[1], emission).log_posteriors.exp().numpy()
    np.testing.assert_allclose(gradient[2], smoothed, atol=1e-13)
    np.testing.assert_allclose(gradient[0], smoothed[:, 0], atol=1e-13)
    np.testing.assert_allclose(gradient[1], hf.expected_transitions(*given[:2], emission).numpy(), atol=1e-13)

    def by_matrix(m):
        return value(a, m, e[0])

    expected = torch.func.hessian(lambda m: hf.log_likelihood(given[0], m, emission[0]))(given[1]).numpy()
    np.testing.assert_allclose(jax.jit(jax.hessian(by_matrix))(m), expected, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacrev(jax.jacrev(by_matrix)))(m), expected, atol=1e-12)
    out, tangent = jax.jit(lambda m: jax.jvp(by_matrix, (m,), (jnp.ones_like(m),)))(m)
    assert float(out) == pytest.approx(hf.log_likelihood(*given[:2], emission[0]).item(), rel=1e-13)
    assert float(tangent) == pytest.approx(4.0, rel=1e-12)  # T - 1 transitions in all


@pytest.mark.parametrize("name", ["forward", "forward_backward", "posterior_entropy"])
def test_jax_jacobians_agree_with_torch(name):
    given = simple()

    def first(result):
        return result[0] if isinstance(result, tuple) else result

    expected = torch.func.jacrev(lambda e: first(getattr(hf, name)(*given[:2], e)))(given[2]).numpy()
    a, m, e = in_jax(given)

    def function(e):
        return first(getattr(hf, name)(a, m, e))

    np.testing.assert_allclose(jax.jit(jax.jacrev(function))(e), expected, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(function))(e), expected, atol=1e-12)


def test_jax_vmap_of_lengths_and_structures():
    rng = np.random.default_rng(0)
    emission, bands = jnp.asarray(rng.standard_normal((4, 5, 3))), jnp.asarray(rng.standard_normal((4, 2, 3)))
    lengths, start = jnp.asarray([5, 1, 3, 2]), jnp.zeros(3)

    def one(bands, emission, length):
        return hf.forward_backward(start, hf.Banded(bands, (0, 1)), emission, lengths=length)

    actual = jax.jit(jax.vmap(one))(bands, emission, lengths)
    expected = hf.forward_backward(start, hf.Banded(bands[:, None], (0, 1)), emission, lengths=lengths)
    for x, y in zip(actual, expected, strict=True):
        assert_log_close(x, y, 1e-12)


def test_the_oracle_of_this_file_has_what_it_claims():
    """The masked inputs are possible, so that the checks above differentiate something."""
    for form in ("dense", "varying"):
        initial, emission, final, matrix = inputs(form)
        model = Model(initial, matrix, emission, np.array(LENGTHS), final)
        assert np.isfinite(model.expected(lambda one: one.log_likelihood)).all()


@pytest.mark.parametrize("scale", [1e17, 1e30])
def test_enormous_scores_keep_gradients_finite(scale):
    """Rounding errors of such scores are themselves enormous: nothing may exponentiate one."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(s, generator=generator) * scale for s in ((3,), (3, 3), (2, 5, 3))]
    arrays = [x.requires_grad_() for x in draw]
    hf.log_likelihood(*arrays).sum().backward()
    assert all(x.grad.isfinite().all() for x in arrays)
    torch.testing.assert_close(arrays[2].grad.sum(-1), torch.ones(2, 5))
    assert arrays[1].grad.sum().item() == pytest.approx(2 * 4)
    second = torch.func.hessian(lambda e: hf.log_likelihood(arrays[0].detach(), arrays[1].detach(), e).sum())
    assert second(arrays[2].detach()).isfinite().all()
