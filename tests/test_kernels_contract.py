"""Every registered kernel, through the public functions: each dtype, form, direction, and the edge sizes."""

from __future__ import annotations

import numpy as np
import pytest

import hmm_functional as hf
from hmm_functional.kernels import registry
from tests.helpers.backends import (
    ALWAYS,
    FORMS,
    LIBRARIES,
    arguments,
    assert_declines,
    call,
    counts_as_dense,
    kernel_names,
)
from tests.helpers.models import assert_log_close, random_log, random_model

LIBRARY_NAMES = ("numpy", "torch", "jax")
SIZES = [(1, 3), (1, 1), (5, 1), (2, 2), (3, 4), (5, 3)]


def case(num_steps, num_states, transition="constant", zeros=0.25):
    """Three sequences of every length, the third impossible, with a weight on the end."""
    rng = np.random.default_rng(num_steps * 10 + num_states)
    options = {"num_steps": num_steps, "num_states": num_states, "transition": transition, "zeros": zeros}
    model = random_model(rng, batch=(3,), normalised=False, spread=20.0, **options)
    emission = np.array(model.log_emission)
    emission[2, 0] = -np.inf
    lengths = np.array([num_steps, max(1, num_steps - 2), num_steps])
    return model.with_(
        log_emission=emission, lengths=lengths, log_final=random_log(rng, (num_states,), zeros=zeros / 2)
    )


def served(kernel, *args, always=ALWAYS, **kwargs):
    """The call's result, or None where the kernel declines and says why."""
    try:
        return call(*args, kernel=kernel, **kwargs)
    except ValueError as error:
        assert_declines(kernel, error, always)
        return None


def cast(model, dtype):
    """The model that the library sees: the oracle works on the same rounded inputs."""
    fields = {name: getattr(model, name).astype(dtype) for name in ("log_initial", "log_transition", "log_emission")}
    return model.with_(**fields, log_final=model.log_final.astype(dtype))


def assert_right(kernel, library, model, form, dtype):
    """Forward alone (filter), both directions (smoother, pairs, counts, entropy) and the max semiring."""
    model = cast(model, dtype)
    # float32: 1e-6 of the terms, as NUMERICS.md bounds the value; posteriors are sums of two such messages.
    tolerance = (1e-12 if dtype is np.float64 else 2e-6) * model.scale
    filtered = served(kernel, library, "forward", model, form, dtype=dtype)
    if filtered is not None:
        assert_log_close(filtered.log_likelihood, model.expected(lambda one: one.log_likelihood), tolerance)
        assert_log_close(filtered.log_filtered, model.expected(lambda one: one.log_filtered, pad=-np.inf), tolerance)
        assert filtered.log_filtered.dtype == dtype
    smoothed = served(kernel, library, "forward_backward", model, form, dtype=dtype)
    if smoothed is not None:
        expected = model.expected(lambda one: one.log_posteriors, pad=-np.inf)
        assert_log_close(smoothed.log_posteriors, expected, tolerance)
        assert smoothed.log_posteriors.dtype == dtype
    counts = served(kernel, library, "expected_transitions", model, form, dtype=dtype)
    if counts is not None:
        counts = counts_as_dense(form, counts, model.num_states)
        assert_log_close(counts, model.expected(lambda one: one.expected_transitions), tolerance)
    best = served(kernel, library, "viterbi", model, form, dtype=dtype)
    if best is not None:
        np.testing.assert_array_equal(best.states, model.expected(lambda one: one.viterbi[0], pad=-1))
        assert_log_close(best.log_joint, model.expected(lambda one: one.viterbi[1]), tolerance)
    entropy = served(kernel, library, "posterior_entropy", model, form, dtype=dtype)
    if entropy is not None:
        assert_log_close(entropy, model.expected(lambda one: one.entropy), tolerance)


@pytest.mark.parametrize("kernel", kernel_names())
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_equals_enumeration(kernel, form, dtype, library):
    for num_steps, num_states in SIZES:
        for transition in ("constant", "varying"):
            assert_right(kernel, LIBRARIES[library], case(num_steps, num_states, transition), form, dtype)


@pytest.mark.parametrize("kernel", registry.names())
@pytest.mark.parametrize(("form", "dtype"), [*((form, np.float64) for form in FORMS), ("dense", np.float32)])
def test_equals_enumeration_in_jax(kernel, form, dtype):
    """One size, since each is compiled."""
    assert_right(kernel, LIBRARIES["jax"], case(5, 3), form, dtype)


@pytest.mark.parametrize("kernel", registry.names())
@pytest.mark.parametrize("library", LIBRARY_NAMES)
@pytest.mark.parametrize("name", ["sample_posterior", "viterbi_k_best", "posterior_decode", "smooth_fixed_lag"])
def test_the_other_functions_take_a_kernel(kernel, library, name):
    """Their values are tested elsewhere; any kernel gives those of the reference, to rounding."""
    library = LIBRARIES[library]
    options = {"viterbi_k_best": {"k": 3}, "smooth_fixed_lag": {"lag": 2}}.get(name, {})
    model = case(4, 3, zeros=0.0)
    if name == "sample_posterior":
        options = {"num_samples": 4}
    # ARCHITECTURE.md: kernels carry the semirings log, max and expectation, and need not carry k-max.
    always = ("auto", "reference") if name == "viterbi_k_best" else ALWAYS
    results = []
    for chosen in (kernel, "reference"):
        rng = {"rng": library.rng(0)} if name == "sample_posterior" else {}
        results.append(served(chosen, library, name, model, always=always, **options, **rng))
    if results[0] is None:
        return
    one, other = (result if isinstance(result, tuple) else (result,) for result in results)
    for x, y in zip(one, other, strict=True):
        assert_log_close(x, y, 1e-12 * model.scale)


@pytest.mark.parametrize("kernel", kernel_names())
def test_gradients_of_every_kernel(kernel):
    """Reverse mode, and through posteriors: equal to the reference's."""
    import torch

    library, model = LIBRARIES["torch"], case(5, 3)
    gradients = []
    for chosen in (kernel, "reference"):
        positional, keyword = arguments(library, model)
        for array in positional:
            array.requires_grad_()
        try:
            value = hf.log_likelihood(*positional, **keyword, kernel=chosen)[:2].sum()
            posteriors = hf.forward_backward(*positional, **keyword, kernel=chosen).log_posteriors
        except ValueError as error:
            assert_declines(chosen, error)
            return
        weights = torch.arange(posteriors.numel(), dtype=torch.float64).reshape(posteriors.shape)
        total = value + (torch.exp(posteriors) * weights).sum()
        gradients.append(torch.autograd.grad(total, positional))
    for one, other in zip(*gradients, strict=True):
        assert_log_close(one.numpy(), other.numpy(), 1e-11 * model.scale)  # weights of up to 45


def test_a_kernel_that_declines_raises_with_its_reason():
    """By name it raises; "auto" goes past it. The registry is put back afterwards."""
    declining = registry.Kernel(
        name="declining",
        priority=lambda call: 10**9,
        unsupported=lambda call: "it is Sunday",
        messages=lambda call: pytest.fail("called in spite of declining"),
    )
    registry.register(declining)
    try:
        model = case(3, 2)
        with pytest.raises(ValueError, match=r"'declining'.*it is Sunday"):
            call(LIBRARIES["numpy"], "log_likelihood", model, kernel="declining")
        expected = call(LIBRARIES["numpy"], "log_likelihood", model, kernel="reference")
        np.testing.assert_array_equal(call(LIBRARIES["numpy"], "log_likelihood", model), expected)
    finally:
        registry._KERNELS.pop("declining")


def test_names_hold_the_documented_ones():
    assert {"reference", "parallel"} <= set(registry.names())
