"""Batches of chains as NumPy arrays, what the oracle says of them, and how answers are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.helpers.enumeration import Enumeration

PADDING = {"log": -np.inf, "states": -1}


@dataclass(frozen=True)
class Model:
    """Inputs of a chain function; batch axes lead and broadcast; `log_transition` is dense."""

    log_initial: Any  # (..., K)
    log_transition: Any  # (K, K) or (..., T-1 or 1, K, K)
    log_emission: Any  # (..., T, K)
    lengths: Any = None  # (...)
    log_final: Any = None  # (..., K)

    @property
    def num_steps(self):
        return self.log_emission.shape[-2]

    @property
    def num_states(self):
        return self.log_emission.shape[-1]

    @property
    def constant(self):
        return self.log_transition.ndim == 2 or self.log_transition.shape[-3] == 1

    @property
    def batch_shape(self):
        transition = self.log_transition.shape[:-3]
        shapes = [self.log_initial.shape[:-1], transition, self.log_emission.shape[:-2]]
        if self.lengths is not None:
            shapes.append(np.shape(self.lengths))
        if self.log_final is not None:
            shapes.append(self.log_final.shape[:-1])
        return np.broadcast_shapes(*shapes)

    @property
    def full_lengths(self):
        lengths = self.num_steps if self.lengths is None else self.lengths
        return np.broadcast_to(np.asarray(lengths), self.batch_shape)

    @property
    def kept(self):
        """Which steps (..., T) are inside their sequence."""
        return np.arange(self.num_steps) < self.full_lengths[..., None]

    @property
    def scale(self):
        """The largest finite sum of terms along a path: what rounding errors are relative to."""

        def top(x):
            return 0.0 if x is None or not np.size(x) else np.max(np.abs(x), initial=0.0, where=np.isfinite(x))

        per_step = top(self.log_emission) + top(self.log_transition)
        return max(1.0, top(self.log_initial) + top(self.log_final) + self.num_steps * per_step)

    def sequence(self, index):
        """The arguments of the one sequence at a batch index, cut to its length."""
        length = int(self.full_lengths[index])

        def one(x, tail):
            return None if x is None else np.broadcast_to(x, self.batch_shape + x.shape[x.ndim - tail :])[index]

        transition = self.log_transition
        if transition.ndim > 2:
            transition = one(transition, 3)
            transition = transition if transition.shape[0] == 1 else transition[: length - 1]
        emission = one(self.log_emission, 2)[:length]
        return one(self.log_initial, 1), transition, emission, one(self.log_final, 1)

    def expected(self, quantity, pad=None):
        """The oracle's `quantity` of every sequence, stacked; ragged results are padded along their first axis.

        Args:
            quantity: what to compute from an `Enumeration`.
            pad: the value of steps beyond a sequence's length (T of them or, for pairs, T - 1).
        """
        rows = []
        for index in np.ndindex(*self.batch_shape):
            row = np.asarray(quantity(Enumeration(*self.sequence(index))))
            if pad is not None:
                missing = self.num_steps - int(self.full_lengths[index])
                row = np.concatenate([row, np.full((missing, *row.shape[1:]), pad, row.dtype)])
            rows.append(row)
        stacked = np.stack(rows).reshape(self.batch_shape + rows[0].shape)
        return stacked if stacked.dtype == np.int64 else stacked.astype(np.float64)

    def where_nan(self):
        """Which sequences hold a NaN inside their length (...)."""
        return np.isnan(self.expected(lambda one: one.log_likelihood))

    def with_(self, **changes):
        return replace(self, **changes)


def assert_log_close(actual, expected, tolerance, what=""):
    """Equal up to an absolute tolerance in nats; infinities and NaN in the same places."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), err_msg=f"{what}: NaN in different places")
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(np.isinf(actual), infinite, err_msg=f"{what}: infinities in different places")
    np.testing.assert_array_equal(actual[infinite], expected[infinite], err_msg=what)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=tolerance, err_msg=what)


def log_of(probabilities):
    """Elementwise log, log(0) = -inf without a warning."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, np.float64))


def random_log(rng, shape, *, spread=1.0, zeros=0.0):
    """Unnormalised log weights; a share `zeros` of them -inf."""
    values = spread * rng.standard_normal(shape)
    values[rng.random(shape) < zeros] = -np.inf
    return values


def random_model(
    rng, *, batch=(), num_steps, num_states, transition="constant", normalised=True, spread=1.0, zeros=0.0
):
    """A random model; `transition` is "constant" (K, K), "slot" (*batch, 1, K, K) or "varying" (*batch, T-1, K, K)."""
    slots = {"constant": (), "slot": (*batch, 1), "varying": (*batch, num_steps - 1)}[transition]
    log_transition = random_log(rng, (*slots, num_states, num_states), zeros=zeros)
    log_initial = random_log(rng, (*batch, num_states), zeros=zeros)
    if normalised:
        log_transition, log_initial = normalise(log_transition), normalise(log_initial)
    log_emission = random_log(rng, (*batch, num_steps, num_states), spread=spread, zeros=zeros)
    return Model(log_initial, log_transition, log_emission)


def normalise(weights):
    """Rows that sum to one; a row of zeros stays one."""
    total = np.logaddexp.reduce(weights, axis=-1, keepdims=True)
    return weights - np.where(np.isneginf(total), 0.0, total)
