"""Laws that relate answers to each other, on inputs too long to enumerate as well as short ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import models_for, possible_models, seeds
from tests.helpers.backends import LIBRARIES, NUMPY, TORCH, call
from tests.helpers.models import assert_log_close, log_of, random_log

over_libraries = pytest.mark.parametrize("library", ["numpy", "torch", "jax"])


def possible_for(library, **options):
    return models_for(library, zeros=0.0, **options) if library == "jax" else possible_models(**options)


def log_total(values, axis):
    return np.logaddexp.reduce(values, axis=axis)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_states_can_be_renamed(library, data):
    model = data.draw(models_for(library))
    order = np.random.default_rng(data.draw(seeds)).permutation(model.num_states)
    renamed = model.with_(
        log_initial=model.log_initial[..., order],
        log_transition=model.log_transition[..., order, :][..., order],
        log_emission=model.log_emission[..., order],
        log_final=None if model.log_final is None else model.log_final[..., order],
    )
    library, tolerance = LIBRARIES[library], 1e-12 * model.scale
    before, after = call(library, "forward_backward", model), call(library, "forward_backward", renamed)
    assert_log_close(after.log_likelihood, before.log_likelihood, tolerance)
    assert_log_close(after.log_posteriors, before.log_posteriors[..., order], tolerance)
    counts = call(library, "expected_transitions", model)[..., order, :][..., order]
    assert_log_close(call(library, "expected_transitions", renamed), counts, tolerance)
    best, found = call(library, "viterbi", model), call(library, "viterbi", renamed)
    assert_log_close(found.log_joint, best.log_joint, tolerance)
    np.testing.assert_array_equal(np.where(found.states < 0, -1, order[found.states]), best.states)


@over_libraries
@given(data=st.data())
def test_a_constant_added_to_a_step_adds_to_the_value_alone(library, data):
    model = data.draw(models_for(library))
    shift = 50 * np.random.default_rng(data.draw(seeds)).standard_normal((*model.batch_shape, model.num_steps))
    shifted = model.with_(log_emission=model.log_emission + shift[..., None])
    library, tolerance = LIBRARIES[library], 1e-12 * shifted.scale
    before, after = call(library, "forward_backward", model), call(library, "forward_backward", shifted)
    added = np.sum(shift, axis=-1, where=model.kept)
    assert_log_close(after.log_likelihood, before.log_likelihood + added, tolerance)
    assert_log_close(after.log_posteriors, before.log_posteriors, tolerance)
    best, moved = call(library, "viterbi", model), call(library, "viterbi", shifted)
    assert_log_close(moved.log_joint, best.log_joint + added, tolerance)
    np.testing.assert_array_equal(moved.states, best.states)


@over_libraries
@given(data=st.data())
def test_a_shift_of_minus_a_million_shifts_the_value_alone(library, data):
    # The emissions are multiples of 2^-20 below 2^12, so that the shifted ones are exact in float64. The answers still
    # round to 1e-10 where a message of size 1e6 meets an emission: hence 1e-9 nats, not 1e-12.
    model = data.draw(models_for(library))
    exact = np.round(np.clip(model.log_emission, -4000, 4000) * 2.0**20) / 2.0**20
    model = model.with_(log_emission=np.where(np.isneginf(model.log_emission), -np.inf, exact))
    shifted = model.with_(log_emission=model.log_emission - 1e6)
    library = LIBRARIES[library]
    before, after = call(library, "forward_backward", model), call(library, "forward_backward", shifted)
    expected = before.log_likelihood - 1e6 * model.full_lengths
    assert_log_close(after.log_likelihood, expected, 1e-12 * shifted.scale)
    assert_log_close(after.log_posteriors, before.log_posteriors, 1e-9)
    best, moved = call(library, "viterbi", model), call(library, "viterbi", shifted)
    np.testing.assert_array_equal(moved.states, best.states)
    entropy = call(library, "posterior_entropy", model)
    assert_log_close(call(library, "posterior_entropy", shifted), entropy, 1e-8)


@over_libraries
@given(data=st.data())
def test_weights_of_start_and_end_scale_the_value_alone(library, data):
    model = data.draw(models_for(library))
    final = np.zeros(model.num_states) if model.log_final is None else model.log_final
    scaled = model.with_(log_initial=model.log_initial + 7.25, log_final=final - 2.5)
    library, tolerance = LIBRARIES[library], 1e-12 * (model.scale + 10)
    before, after = call(library, "forward_backward", model), call(library, "forward_backward", scaled)
    assert_log_close(after.log_likelihood, before.log_likelihood + 4.75, tolerance)
    assert_log_close(after.log_posteriors, before.log_posteriors, tolerance)
    filtered = call(library, "forward", scaled)
    assert_log_close(filtered.log_filtered, call(library, "forward", model).log_filtered, tolerance)
    assert_log_close(filtered.log_likelihood, after.log_likelihood, tolerance)


@over_libraries
@given(data=st.data())
def test_zero_log_final_is_none(library, data):
    model = data.draw(models_for(library, final=False))
    ended = model.with_(log_final=np.zeros((*model.batch_shape, model.num_states)))
    library = LIBRARIES[library]
    before, after = call(library, "forward_backward", model), call(library, "forward_backward", ended)
    assert_log_close(after.log_likelihood, before.log_likelihood, 1e-12 * model.scale)
    assert_log_close(after.log_posteriors, before.log_posteriors, 1e-12 * model.scale)


@over_libraries
@given(data=st.data())
def test_probabilities_sum_to_one(library, data):
    model = data.draw(possible_for(library))
    library, tolerance = LIBRARIES[library], 1e-12 * model.scale
    smoothed = call(library, "forward_backward", model).log_posteriors
    filtered = call(library, "forward", model).log_filtered
    total = np.where(model.kept, 0.0, -np.inf)
    assert_log_close(log_total(smoothed, -1), total, tolerance)
    assert_log_close(log_total(filtered, -1), total, tolerance)
    pairs = call(library, "pair_posteriors", model)
    between = model.kept[..., 1:]
    assert_log_close(log_total(pairs, -1), np.where(between[..., None], smoothed[..., :-1, :], -np.inf), tolerance)
    assert_log_close(log_total(pairs, -2), smoothed[..., 1:, :], tolerance)
    counts = call(library, "expected_transitions", model)
    assert_log_close(counts, np.exp(pairs).sum(axis=-3), tolerance)
    assert_log_close(counts.sum((-2, -1)), model.full_lengths - 1.0, tolerance)


@over_libraries
@given(data=st.data())
def test_the_best_path_scores_below_the_likelihood(library, data):
    model = data.draw(possible_for(library))
    library, tolerance = LIBRARIES[library], 1e-12 * model.scale
    best = call(library, "viterbi", model)
    assert (best.log_joint <= call(library, "log_likelihood", model) + tolerance).all()
    joint = call(library, "log_joint", model, states=library.array(best.states))
    assert_log_close(joint, best.log_joint, tolerance)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(data=st.data())
def test_k_best_is_sorted_distinct_and_complete(library, data):
    model = data.draw(possible_models(num_steps=3, num_states=3))
    library, tolerance = LIBRARIES[library], 1e-12 * model.scale
    k = data.draw(st.sampled_from([1, 2, 30]))
    best = call(library, "viterbi_k_best", model, k=k)
    assert best.states.shape == (*model.batch_shape, k, 3)
    with np.errstate(invalid="ignore"):  # -inf - -inf, of the places with no path
        assert not (np.diff(best.log_joint, axis=-1) > 0).any()
    found = best.log_joint > -np.inf
    for index in np.ndindex(*model.batch_shape):
        paths = best.states[index][found[index]]
        assert len(np.unique(paths, axis=0)) == len(paths)
        for path, score in zip(paths, best.log_joint[index], strict=False):
            args = [None if x is None else library.array(np.ascontiguousarray(x)) for x in model.sequence(index)]
            states = library.array(path[: args[2].shape[0]])
            joint = library.call("log_joint", *args[:3], log_final=args[3], states=states)
            assert_log_close(library.numpy(joint), score, tolerance)
    np.testing.assert_array_equal(best.states[~found], -1)
    if k == 30:  # more than the 27 paths there are, so they make up the likelihood
        assert_log_close(log_total(best.log_joint, -1), call(library, "log_likelihood", model), tolerance)
    first = call(library, "viterbi", model)
    np.testing.assert_array_equal(best.states[..., 0, :], first.states)
    assert_log_close(best.log_joint[..., 0], first.log_joint, tolerance)


@over_libraries
@given(data=st.data())
def test_entropy_is_within_its_bounds_and_is_the_mean_surprise(library, data):
    model = data.draw(possible_for(library, transition="constant"))
    library, tolerance = LIBRARIES[library], 1e-12 * model.scale
    entropy = call(library, "posterior_entropy", model)
    assert (entropy >= -tolerance).all()
    assert (entropy <= model.full_lengths * np.log(model.num_states) + tolerance).all()
    # H = log p(x) - E[log p(x, z)], the expectation taken by the posteriors and the counts.
    smoothed = call(library, "forward_backward", model)
    posteriors, counts = np.exp(smoothed.log_posteriors), call(library, "expected_transitions", model)
    last = np.take_along_axis(posteriors, model.full_lengths[..., None, None] - 1, axis=-2)[..., 0, :]
    final = np.zeros(model.num_states) if model.log_final is None else model.log_final

    def mean(weights, logs, axes):
        return np.sum(weights * np.where(weights > 0, logs, 0.0), axis=axes)

    matrix = model.log_transition if model.log_transition.ndim == 2 else model.log_transition[..., 0, :, :]
    energy = mean(posteriors[..., 0, :], model.log_initial, -1) + mean(last, final, -1)
    energy = energy + mean(posteriors, model.log_emission, (-2, -1)) + mean(counts, matrix, (-2, -1))
    assert_log_close(entropy, smoothed.log_likelihood - energy, 10 * tolerance)  # cancels: the sum of ten such terms


@over_libraries
@given(data=st.data())
def test_posterior_decode_is_the_argmax_and_lag_joins_filter_to_smoother(library, data):
    model = data.draw(possible_for(library, final=False))
    library, tolerance = LIBRARIES[library], 1e-12 * model.scale
    smoothed = call(library, "forward_backward", model).log_posteriors
    decoded = call(library, "posterior_decode", model)
    np.testing.assert_array_equal(decoded < 0, ~model.kept)
    chosen = np.take_along_axis(smoothed, np.maximum(decoded, 0)[..., None], axis=-1)[..., 0]
    assert_log_close(chosen, smoothed.max(axis=-1), tolerance)
    filtered = call(library, "forward", model).log_filtered
    assert_log_close(call(library, "smooth_fixed_lag", model, lag=0), filtered, tolerance)
    assert_log_close(call(library, "smooth_fixed_lag", model, lag=model.num_steps + 2), smoothed, tolerance)


@over_libraries
@given(data=st.data())
def test_forecast_of_one_chain_continues_its_filter(library, data):
    """With unobserved steps appended, the filter there is the forecast."""
    model = data.draw(possible_for(library, final=False, lengths=False, transition="constant", normalised=True))
    library = LIBRARIES[library]
    ahead = 2
    unseen = np.zeros((*model.log_emission.shape[:-2], ahead, model.num_states))
    longer = model.with_(log_emission=np.concatenate([model.log_emission, unseen], axis=-2))
    expected = call(library, "forward", longer).log_filtered[..., -ahead:, :]
    assert_log_close(call(library, "forecast", model, num_steps=ahead), expected, 1e-12 * model.scale)


@pytest.mark.parametrize("library", list(LIBRARIES))
@given(data=st.data())
def test_masked_and_restricted_emissions(library, data):
    """A missing observation is a zero row, NaN or not, and a forbidden state a -inf entry."""
    library = LIBRARIES[library]
    rng = np.random.default_rng(data.draw(seeds))
    emission = random_log(rng, (2, 4, 3), zeros=0.2)
    seen = rng.random((2, 4)) < 0.6
    emission[~seen] = data.draw(st.sampled_from([np.nan, -np.inf, 5.0]))
    masked = library.numpy(hf.mask_emission(library.array(emission), library.array(seen)))
    np.testing.assert_array_equal(masked, np.where(seen[..., None], emission, 0.0))
    allowed = rng.random((2, 4, 3)) < 0.6
    restricted = library.numpy(hf.restrict_states(library.array(masked), library.array(allowed)))
    np.testing.assert_array_equal(restricted, np.where(allowed, masked, -np.inf))


@given(data=st.data())
def test_unobserved_steps_drop_out(data):
    """A chain seen only every other step is the chain of the squared matrix."""
    model = data.draw(possible_models(batch=(), num_steps=5, lengths=False, final=False, transition="constant"))
    seen = np.array([True, False, True, False, True])
    emission = hf.mask_emission(TORCH.array(model.log_emission), TORCH.array(seen))
    args = [TORCH.array(model.log_initial), TORCH.array(model.log_transition)]
    squared = log_of(np.exp(model.log_transition) @ np.exp(model.log_transition))
    expected = hf.log_likelihood(args[0], TORCH.array(squared), TORCH.array(model.log_emission[seen]))
    assert_log_close(hf.log_likelihood(*args, emission).numpy(), expected.numpy(), 1e-12 * model.scale)


@given(seed=seeds, num_states=st.integers(1, 5))
def test_stationary_distribution_is_a_fixed_point(seed, num_states):
    rng = np.random.default_rng(seed)
    log_transition = np.log(rng.dirichlet(np.ones(num_states), size=num_states))
    solved = np.linalg.lstsq(
        np.vstack([np.exp(log_transition).T - np.eye(num_states), np.ones(num_states)]),
        np.append(np.zeros(num_states), 1.0),
        rcond=None,
    )[0]
    for library in (NUMPY, TORCH):
        found = np.exp(library.numpy(hf.stationary(library.array(log_transition))))
        np.testing.assert_allclose(found, solved, rtol=0, atol=1e-10)  # lstsq squares the condition number
        np.testing.assert_allclose(found @ np.exp(log_transition), found, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.sum(), 1.0, rtol=0, atol=1e-12)
