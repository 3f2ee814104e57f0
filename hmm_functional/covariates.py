"""Transitions that depend on inputs: multinomial logistic regressions of the next state, and their M-step."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import Any, NamedTuple

from ._check import broadcast_batch, need_count, need_floating, need_shape
from .backend import Array, Backend, backend_of
from .chain import without_padding
from .edges import on_device
from .emissions.constraints import held, need_at_least
from .numerics import in_one_dtype, log_normalize, multiply, solve_semidefinite, wide
from .structure import WORKSPACE, Dense
from .transition import LowRank, arrays_of, canonical, normalize_rows, own_shape, with_weights

LEAST_GAIN = 1e-11
"""Nats a transition that a step of Newton's has to promise."""
NUM_SHORTENINGS = 12
"""How often a step is shortened, to a quarter of its length each time, before it is given up."""
MOST_CHANGE = 8.0
"""Nats that a step may change the difference of two scores by, in any frame; twice as many after each that gained."""
LEAST_CURVATURE = 1e-100
"""Of the Hessian's diagonal, what says anything."""
MOST_LENGTH = 4.0**5
"""How far steps of the fixed bound go beyond the length that never overshoots, where they change little."""


class LogisticTransitions(NamedTuple):
    """Weights (K, K, P) and biases (K, K) of `logistic_transitions`."""

    weights: Array
    biases: Array


def logistic_transitions(inputs: Array, weights: Array, biases: Any, *, lengths: Any = None) -> Any:
    """log p(z_{t+1} = j given z_t = i and u_{t+1}): in each state i a logistic regression of the next one.

    p is proportional to exp(biases[i, j] + weights[i, j] . u_{t+1}): slot t reads the inputs of the step moved to, and
    those of step 0 are not read. That is the convention of input-output HMMs (Bengio and Frasconi). Where inputs of the
    step moved from decide, as covariates do in depmixS4 (Visser and Speekenbrink), pass them one step later,
    `concat([u[..., :1, :], u[..., :-1, :]])` along the steps.

    Args:
        inputs: (..., T, P), u_t.
        weights: (K, K, P), [from, to]; with `Banded` biases (O, K, P), with `Sparse` ones (E, P).
        biases: (K, K), nats, not necessarily normalised; -inf forbids a transition whatever the inputs. Or `Banded` or
            `Sparse`, without batch or time axes.
        lengths: (...) integers 1..T, the valid steps of right-padded sequences; padding is never read. Without, NaN in
            it makes gradients NaN, whatever reads the result.

    Returns:
        log_transition (..., T-1, K, K), rows normalised, or of the structure of the biases. A row without any possible
        transition stays so.

    What is added to all weights, or biases, of a row changes nothing. Zeros in the weights and the bias of one
    transition a row make it the reference that the others are compared with.

    Raises:
        TypeError: not floating-point arrays of one library, or a `LowRank`. ValueError: shapes, lengths outside 1..T.

    Gradient: of everything.

    Cost: O(B T K^2 P) time and O(B T K^2) memory, the size of the result; E in the place of K^2 for structures.

    References: Bengio and Frasconi 1995; Visser and Speekenbrink 2010 (multinomial logistic transitions).

    Example:
        >>> import torch, hmm_functional as hf
        >>> weights = torch.tensor([[[0.0], [1.0]], [[0.0], [0.0]]])  # a larger input leads from state 0 to 1
        >>> biases = torch.tensor([[0.0, 0.0], [-torch.inf, 0.0]])
        >>> hf.logistic_transitions(torch.tensor([[9.0], [0.0], [2.0]]), weights, biases).exp()
        tensor([[[0.5000, 0.5000],
                 [0.0000, 1.0000]],
        <BLANKLINE>
                [[0.1192, 0.8808],
                 [0.0000, 1.0000]]])
    """
    if isinstance(biases, LowRank):
        raise TypeError("biases: expected a matrix, Banded or Sparse, got LowRank")
    named = {name.replace("log_transition", "biases"): x for name, x in arrays_of(biases).items()}
    backend = backend_of(inputs=inputs, weights=weights, **named)
    xp = backend.xp
    (own,) = named.values()
    for name, x in {"inputs": inputs, "weights": weights, **named}.items():
        need_floating(name, xp, x)
    need_shape("inputs", inputs.shape, (None, None), "(..., T, P)")
    structure, (base,) = canonical(biases)
    if base.ndim != structure.ranks[0] or own.shape[-1] < 1:
        raise ValueError(f"biases: expected no batch or time axes, got shape {tuple(own.shape)}")
    if isinstance(structure, Dense) and own.shape[0] != own.shape[1]:
        raise ValueError(f"biases: expected shape (K, K), got {tuple(own.shape)}")
    shape = (*own.shape, inputs.shape[-1])
    if tuple(weights.shape) != shape:
        raise ValueError(
            f"weights: expected shape {shape}, that of the biases and P inputs, got {tuple(weights.shape)}"
        )
    inputs = without_padding(backend, inputs, lengths)
    structure = on_device(structure, backend, base)
    (slopes,) = canonical(with_weights(biases, xp.permute_dims(weights, (weights.ndim - 1, *range(weights.ndim - 1)))))[
        1
    ]  # (P, *base)
    inputs, slopes, base = in_one_dtype(backend, inputs=inputs, weights=slopes, biases=base)
    moved = inputs[..., 1:, :] @ xp.reshape(slopes, (slopes.shape[0], prod(base.shape)))
    scores = xp.reshape(moved, (*moved.shape[:-1], *base.shape)) + base
    found = normalize_rows(backend, structure, scores)
    return with_weights(biases, own_shape(backend, biases, (found,), -inf))


def maximize_logistic_transitions(
    pairs: Array,
    inputs: Array,
    weights: Array,
    biases: Array,
    *,
    ridge: float = 0.0,
    num_steps: int = 50,
    fixed: LogisticTransitions | None = None,
) -> LogisticTransitions:
    """The M-step of `logistic_transitions`: weights and biases of highest expected log-probability.

    Args:
        pairs: (..., T-1, K, K), expected numbers of transitions, exp of `pair_posteriors`; times the weight of a
            sequence, where these differ.
        inputs: (..., T, P), of the same batch; where no transition is expected they may hold anything.
        weights, biases: (K, K, P), (K, K), where the search begins; a bias of -inf stays.
        ridge: r of the penalty r / 2 times the sum of squares of the weights: a normal prior of variance 1 / r.
        num_steps: Newton's steps, at most.
        fixed: booleans in place of weights and biases, or None for no entry, True for all: which stay, bit for bit.
            Fixing those of one transition a row is reference coding.

    Returns:
        `LogisticTransitions(weights, biases)`, whose expected log-probability (less the penalty) is never lower than
        that of what was given, but for the rounding to their dtype.

    Newton's method, for each state apart, whose problem is concave, from any start: a step changes no difference of
    scores by more than 8 nats, twice as many after each that did; one that lowers the objective is taken at a quarter
    of its length, and so on; and where Newton's gains little, since the start calls what happens impossible, a step of
    Boehning's bound on the Hessian, which never overshoots, is taken. It moves along no direction that the data say
    nothing about: inputs that depend on each other, or what is common to all weights of a row. Where transitions are
    perfectly separated by the inputs there is no maximum: the search stops where a step promises less than 1e-11 nats a
    transition, which is at odds of about 1e11, or with a ridge at its maximum. A state that is never expected keeps its
    own, but for what a ridge takes.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, a negative ridge.

    Cost: O(B T K (K P)^2) a step, and K solutions of K (P + 1) equations; computed in float64. Traced, as by jax.jit,
    all num_steps are taken.

    References: Boyd and Vandenberghe 2004, section 9.5; Boehning 1992 (the bound); Visser and Speekenbrink 2010.

    Example:
        >>> import torch, hmm_functional as hf
        >>> pairs = torch.tensor([[[3.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]])  # odds of 1/3 and 1
        >>> inputs, zeros = torch.tensor([[0.0], [0.0], [1.0]]), torch.zeros(2, 2, 1)
        >>> found = hf.maximize_logistic_transitions(pairs, inputs, zeros, zeros[..., 0])
        >>> hf.logistic_transitions(inputs, *found)[:, 0].exp()
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """
    backend = backend_of(pairs=pairs, inputs=inputs, weights=weights, biases=biases)
    xp, num_states, num_inputs = backend.xp, biases.shape[-1], inputs.shape[-1]
    for name, x in (("pairs", pairs), ("inputs", inputs), ("weights", weights), ("biases", biases)):
        need_floating(name, xp, x)
    for name, x, shape in (("biases", biases, (num_states,) * 2), ("weights", weights, (*biases.shape, num_inputs))):
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    need_shape("inputs", inputs.shape, (None, num_inputs), "(..., T, P)")
    slots = inputs.shape[-2] - 1
    need_shape("pairs", pairs.shape, (slots, num_states, num_states), f"(..., {slots}, {num_states}, {num_states})")
    need_at_least("ridge", ridge, 0.0)
    need_count("num_steps", num_steps, 0)
    batch = broadcast_batch({"pairs": tuple(pairs.shape[:-3]), "inputs": tuple(inputs.shape[:-2])})
    size = prod(batch) * slots
    counts = xp.reshape(xp.broadcast_to(pairs, (*batch, *pairs.shape[-3:])), (size, num_states, num_states))
    regressors = xp.broadcast_to(inputs, (*batch, *inputs.shape[-2:]))[..., 1:, :]
    regressors = wide(backend, xp.reshape(regressors, (size, num_inputs)))
    counts = wide(backend, counts)
    is_read = xp.sum(counts, axis=(1, 2))[:, None] > 0
    regressors = xp.concat([xp.where(is_read, regressors, 0.0), xp.ones_like(counts[:, 0, :1])], axis=1)
    is_possible = biases > -inf
    start = xp.concat([wide(backend, weights), wide(backend, xp.where(is_possible, biases, 0.0))[..., None]], axis=-1)
    keep = (None, None) if fixed is None else fixed
    free = [_free(backend, *pair) for pair in zip(keep, (weights, biases[..., None]), strict=True)]
    free = xp.where(is_possible[..., None], xp.concat(free, axis=-1), 0.0)
    rows = []
    for i in range(num_states):
        counted = xp.where(is_possible[i, :], counts[:, i, :], 0.0)
        one = _Regression(backend, counted, regressors, is_possible[i, :], free[i, ...], float(ridge))
        rows.append(one.maximum(start[i, ...], num_steps))
    found = xp.stack(rows)
    new = found[..., :num_inputs], xp.where(is_possible, found[..., num_inputs], -inf)
    each = zip(keep, (weights, biases), new, strict=True)
    return LogisticTransitions(*(held(mask, old, xp.astype(x, old.dtype)) for mask, old, x in each))


def _free(backend: Backend, is_fixed: Any, values: Array) -> Array:
    """1 where values may change, else 0."""
    ones = wide(backend, backend.xp.ones_like(values))
    if is_fixed is None or isinstance(is_fixed, bool):
        return 0.0 * ones if is_fixed else ones
    is_fixed = is_fixed[..., None] if is_fixed.ndim < values.ndim else is_fixed
    return backend.xp.where(is_fixed, 0.0, ones)


@dataclass(frozen=True)
class _Regression:
    """The regression of one state's next on inputs; parameters theta are (K, Q), Q = P + 1, the bias last."""

    backend: Backend
    counts: Array
    """(N, K), transitions expected."""
    regressors: Array
    """(N, Q), the last of them ones."""
    is_possible: Array
    """(K,)"""
    free: Array
    """(K, Q), 1 or 0."""
    ridge: float

    def maximum(self, theta: Array, num_steps: int) -> Array:
        """Newton's method from theta; no step lowers the value."""
        value = self.value(theta)
        carry = theta, value, 0.0 * value + MOST_CHANGE, value != value
        inverse = self.inverse_bound()
        if self.backend.is_traced(value) and num_steps:
            steps = self.backend.arange(num_steps, like=theta)
            (theta, *_), _ = self.backend.scan(lambda carry, _: (self.step(carry, inverse), None), carry, steps)
            return theta
        for _ in range(num_steps):
            carry = self.step(carry, inverse)
            if bool(carry[-1]):
                break
        return carry[0]

    def step(self, carry: tuple[Array, ...], inverse: Array) -> tuple[Array, ...]:
        """(theta, value, most change, _) after Newton's step, or the bound's if better, and whether none gained."""
        xp, (theta, value, most, _) = self.backend.xp, carry
        gradient, hessian = self.derivatives(theta)
        column = xp.reshape(gradient, (-1, 1))
        safe = xp.reshape(inverse @ column, theta.shape)
        newton = xp.reshape(self.solved(hessian, column), theta.shape)
        new, found = self.along(newton, gradient, theta, value, most, 1.0)
        # a Hessian in which all of a row is one transition says nothing of where another has its share
        is_short = found - value < 0.25 * xp.sum(gradient * safe)
        if self.backend.is_traced(value) or bool(is_short):
            other, reached = self.along(safe, gradient, theta, value, most, MOST_LENGTH)
            is_better = is_short & (reached > found)
            new, found = xp.where(is_better, other, new), xp.where(is_better, reached, found)
        is_far = self.change(new - theta) > 0.5 * most
        return new, found, xp.where(is_far, 2.0 * most, xp.clip(0.5 * most, min=MOST_CHANGE)), ~(found > value)

    def along(
        self, step: Array, gradient: Array, theta: Array, value: Array, most: Array, longest: float
    ) -> tuple[Array, Array]:
        """theta and its value after the step, at the first of shorter and shorter lengths that gains."""
        xp, promised = self.backend.xp, 0.5 * self.backend.xp.sum(gradient * step)
        change = self.change(step)
        length = xp.where(change * longest > most, most / xp.where(change > 0, change, 1.0), longest)
        is_open, is_known = promised > LEAST_GAIN * xp.sum(self.counts), not self.backend.is_traced(value)
        for _ in range(NUM_SHORTENINGS):
            if is_known and not bool(is_open):
                break
            new = theta + length * step
            found = self.value(new)
            is_taken = is_open & (found > value) & (found >= value + 1e-4 * length * promised)
            theta, value = xp.where(is_taken, new, theta), xp.where(is_taken, found, value)
            is_open, length = is_open & ~is_taken, 0.25 * length
        return theta, value

    def change(self, step: Array) -> Array:
        """The most by which the step changes the difference of two scores in a frame that counts."""
        xp = self.backend.xp
        moved = self.regressors @ xp.matrix_transpose(step)
        high, low = (xp.where(self.is_possible, moved, x) for x in (-inf, inf))
        spread = xp.max(high, axis=-1) - xp.min(low, axis=-1)
        spread = xp.where(xp.sum(self.counts, axis=-1) > 0, spread, 0.0)
        return xp.max(xp.concat([spread, xp.zeros_like(step[0, :1])]))

    def solved(self, matrix: Array, right: Array) -> Array:
        """x of matrix x = right, of parameters that are free; (K Q, K Q) and (K Q, m)."""
        xp, flat = self.backend.xp, (1, matrix.shape[0])
        size, free = xp.reshape(xp.linalg.diagonal(matrix), flat), xp.reshape(self.free, flat)
        size = xp.sqrt(xp.where(size > LEAST_CURVATURE, size, 0.0))
        return solve_semidefinite(self.backend, matrix[None, ...], right[None, ...], size, free)[0, ...]

    def inverse_bound(self) -> Array:
        """Inverse (K Q, K Q) of Boehning's bound on minus the Hessian at any theta: its steps never overshoot."""
        backend, xp, x = self.backend, self.backend.xp, self.regressors
        num_states, width = self.free.shape
        outer = xp.matrix_transpose(xp.sum(self.counts, axis=-1, keepdims=True) * x) @ x
        is_possible = xp.astype(self.is_possible, x.dtype)
        own = backend.arange(num_states * width, like=x)
        is_same = own[:num_states, None] == own[None, :num_states]
        count = xp.clip(xp.sum(is_possible), min=1.0)
        shares = 0.5 * (xp.where(is_same, is_possible, 0.0) - is_possible[:, None] * is_possible / count)
        bound = xp.reshape(shares[:, None, :, None] * outer[:, None, :], (num_states * width,) * 2)
        bound = bound + xp.where(own[:, None] == own[None, :], xp.reshape(self.penalty(self.free), (-1,)), 0.0)
        return self.solved(bound, xp.where(own[:, None] == own[None, :], 1.0, xp.zeros_like(bound)))

    def penalty(self, theta: Array) -> Array:
        """(K, Q), r of each parameter."""
        is_weight = self.backend.arange(theta.shape[1], like=theta) < theta.shape[1] - 1
        return self.backend.xp.where(is_weight, self.ridge, self.backend.xp.zeros_like(theta))

    def value(self, theta: Array) -> Array:
        """Expected log-probability less the penalty."""
        terms = multiply(self.backend, self.counts, self._log_probs(self.regressors, theta))
        return self.backend.xp.sum(terms) - 0.5 * self.ridge * self.backend.xp.sum(theta[:, :-1] ** 2)

    def derivatives(self, theta: Array) -> tuple[Array, Array]:
        """The gradient (K, Q) and minus the Hessian (K Q, K Q), frames in blocks."""
        backend, xp, turn = self.backend, self.backend.xp, self.backend.xp.matrix_transpose
        num_states, width = theta.shape
        inner = xp.zeros_like(theta)
        outer, same = xp.zeros_like(theta[:, :, None] * theta[:1, None, :]), 0.0
        length = max(1, WORKSPACE // (4 * num_states * width))
        total = self.counts.shape[0]
        for start in range(0, max(1, total), length):
            counts, x = (part[start : min(start + length, total), :] for part in (self.counts, self.regressors))
            n = xp.sum(counts, axis=-1, keepdims=True)
            p = xp.exp(self._log_probs(x, theta))
            inner = inner + turn(counts - n * p) @ x
            outer = outer + (turn(n * p)[:, None, :] * turn(x)[None, :, :]) @ x
            mixed = xp.reshape(p[:, :, None] * x[:, None, :], (-1, num_states * width))
            same = same + turn(n * mixed) @ mixed
        penalty = self.penalty(theta)
        apart = xp.eye(num_states, dtype=theta.dtype)
        blocks = backend.asarray(apart, like=theta)[:, None, :, None] * outer[:, :, None, :]
        hessian = xp.reshape(blocks, (num_states * width, num_states * width)) - same
        own = backend.arange(num_states * width, like=theta)
        hessian = hessian + xp.where(own[:, None] == own[None, :], xp.reshape(penalty, (-1,)), 0.0)
        return inner - penalty * theta, hessian

    def _log_probs(self, x: Array, theta: Array) -> Array:
        """(N, K)"""
        scores = x @ self.backend.xp.matrix_transpose(theta)
        return log_normalize(self.backend, self.backend.xp.where(self.is_possible, scores, -inf))
