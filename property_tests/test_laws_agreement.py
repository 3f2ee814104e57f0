"""Sequential = time-parallel = every kernel = every array library, on chains too long to enumerate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from property_tests.strategies import seeds
from tests.helpers.backends import FORMS, LIBRARIES, assert_declines, call, counts_as_dense, kernel_names
from tests.helpers.dynamic_program import dynamic_program
from tests.helpers.models import assert_log_close, random_log, random_model

FUNCTIONS = ("forward", "forward_backward", "viterbi", "expected_transitions", "posterior_entropy")


def long_model(data, *, num_steps, num_states, transition):
    """Two sequences with structural zeros, of which one state is always open, the second one shorter."""
    rng = np.random.default_rng(data.draw(seeds))
    zeros, spread = data.draw(st.sampled_from([0.0, 0.3])), data.draw(st.sampled_from([1.0, 100.0]))
    model = random_model(
        rng,
        batch=(2,),
        num_steps=num_steps,
        num_states=num_states,
        transition=transition,
        spread=spread,
        normalised=False,
        zeros=zeros,
    )
    for array in (model.log_initial, model.log_transition, model.log_emission):
        array[..., 0] = np.where(np.isneginf(array[..., 0]), -1.0, array[..., 0])
    final = random_log(rng, (2, num_states))
    return model.with_(lengths=np.array([num_steps, int(rng.integers(1, num_steps))]), log_final=final)


def assert_equals_dynamic_program(model, form, results, tolerance):
    """The five functions' answers for both sequences against the plain loops."""
    filtered, smoothed, best, counts, entropy = results
    counts = counts_as_dense(form, counts, model.num_states)
    for b, length in enumerate(model.lengths):
        exact = dynamic_program(*model.sequence((b,)))
        assert_log_close(filtered.log_likelihood[b], exact.log_likelihood, tolerance)
        assert_log_close(smoothed.log_likelihood[b], exact.log_likelihood, tolerance)
        assert_log_close(filtered.log_filtered[b, :length], exact.log_filtered, tolerance)
        assert_log_close(smoothed.log_posteriors[b, :length], exact.log_posteriors, tolerance)
        assert_log_close(counts[b], exact.expected_transitions, tolerance)
        np.testing.assert_array_equal(best.states[b, :length], exact.states)
        assert_log_close(best.log_joint[b], exact.log_joint, tolerance)
        np.testing.assert_array_equal(best.states[b, length:], -1)
    assert (entropy >= -tolerance).all()


def answers(library, model, form, kernel):
    return [call(library, name, model, form, kernel=kernel) for name in FUNCTIONS]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_every_library_and_form_equals_plain_loops(library, form, data):
    transition = data.draw(st.sampled_from(["constant", "slot", "varying"]))
    model = long_model(data, num_steps=data.draw(st.integers(2, 40)), num_states=3, transition=transition)
    assert_equals_dynamic_program(model, form, answers(LIBRARIES[library], model, form, "auto"), 1e-12 * model.scale)


@pytest.mark.parametrize("form", ["dense", "banded"])
@given(data=st.data())
def test_jax_equals_plain_loops(form, data):
    model = long_model(data, num_steps=23, num_states=3, transition="constant")
    assert_equals_dynamic_program(model, form, answers(LIBRARIES["jax"], model, form, "auto"), 1e-12 * model.scale)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("kernel", kernel_names())
@given(data=st.data())
def test_kernels_agree_with_plain_loops(library, kernel, data):
    """Steps around powers of two, and around multiples of K: chunked forms have their seams there."""
    num_steps = data.draw(st.sampled_from([2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 67]))
    transition = data.draw(st.sampled_from(["constant", "varying"]))
    model = long_model(data, num_steps=num_steps, num_states=data.draw(st.integers(1, 4)), transition=transition)
    try:
        results = answers(LIBRARIES[library], model, "dense", kernel)
    except ValueError as error:
        assert_declines(kernel, error)
        return
    assert_equals_dynamic_program(model, "dense", results, 1e-12 * model.scale)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("kernel", ["reference", "parallel", "numba"])
@given(data=st.data())
def test_float32_is_within_its_bounds(library, kernel, data):
    """The bound of NUMERICS.md, against the float64 answer for the same float32 inputs."""
    model = long_model(data, num_steps=23, num_states=3, transition="constant")
    model = model.with_(
        log_initial=model.log_initial.astype(np.float32),
        log_transition=model.log_transition.astype(np.float32),
        log_emission=model.log_emission.astype(np.float32),
        log_final=model.log_final.astype(np.float32),
    )
    try:
        actual = call(LIBRARIES[library], "forward_backward", model, kernel=kernel)
        best = call(LIBRARIES[library], "viterbi", model, kernel=kernel)
    except ValueError as error:
        assert library == "jax"
        assert_declines(kernel, error)
        return
    assert actual.log_likelihood.dtype == actual.log_posteriors.dtype == best.log_joint.dtype == np.float32
    for b, length in enumerate(model.lengths):
        exact = dynamic_program(*model.sequence((b,)))
        emission = np.abs(model.log_emission[b, :length])
        size = max(
            np.abs(float(exact.log_likelihood)), np.max(emission, -1, where=np.isfinite(emission), initial=0).sum()
        )
        # The sum of emissions may be smaller than the transitions' own terms, hence at least 10.
        bound = 1e-6 * max(size, 10.0)
        assert_log_close(actual.log_likelihood[b], exact.log_likelihood, bound)
        assert_log_close(best.log_joint[b], exact.log_joint, bound)
        np.testing.assert_allclose(
            np.exp(actual.log_posteriors[b, :length]),
            np.exp(exact.log_posteriors.astype(np.float64)),
            rtol=0,
            atol=1e-4,
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_half_precision_computes_and_returns_float32(library, dtype):
    library = LIBRARIES[library]
    model = random_model(np.random.default_rng(1), batch=(2,), num_steps=6, num_states=3)
    wide = [library.array(x, np.float32) for x in (model.log_initial, model.log_transition, model.log_emission)]
    half_type = getattr(library.namespace, dtype)
    half = [x.to(half_type) if library.name == "torch" else x.astype(half_type) for x in wide]
    back = [x.float() if library.name == "torch" else x.astype(np.float32) for x in half]
    for name in ("log_likelihood", "forward_backward", "viterbi", "posterior_entropy", "pair_posteriors"):
        actual, expected = library.call(name, *half), library.call(name, *back)
        actual, expected = (x if isinstance(x, tuple) else (x,) for x in (actual, expected))
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(library.numpy(one), library.numpy(other))
    assert library.call("log_likelihood", *half).dtype == library.namespace.float32
