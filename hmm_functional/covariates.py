"""Transitions that depend on inputs: multinomial logistic regressions of the next state, and their M-step."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import Any, NamedTuple

from ._check import broadcast_batch, need_count, need_floating, need_shape
from .backend import Array, Backend, backend_of
from .edges import on_device
from .emissions.constraints import held, need_at_least
from .emissions.moments import wide
from .numerics import log_normalize, multiply, solve_semidefinite
from .structure import WORKSPACE, Dense
from .transition import LowRank, arrays_of, canonical, normalize_rows, own_shape, with_weights

LEAST_GAIN = 1e-11
"""Nats a transition that a step of Newton's has to promise."""
NUM_SHORTENINGS = 12
"""How often a step is shortened, by a quarter of its length each time, before it is given up."""


class LogisticTransitions(NamedTuple):
    """Weights (K, K, P) and biases (K, K) of `logistic_transitions`."""

    weights: Array
    biases: Array


def logistic_transitions(inputs: Array, weights: Array, biases: Any) -> Any:
    """log p(z_{t+1} = j given z_t = i and u_{t+1}): in each state i a logistic regression of the next one.

    p is proportional to exp(biases[i, j] + weights[i, j] . u_{t+1}): slot t reads the inputs of the step moved to, and
    those of step 0 are not read.

    Args:
        inputs: (..., T, P), u_t.
        weights: (K, K, P), [from, to]; with `Banded` biases (O, K, P), with `Sparse` ones (E, P).
        biases: (K, K), nats, not necessarily normalised; -inf forbids a transition whatever the inputs. Or `Banded` or
            `Sparse`, without batch or time axes.

    Returns:
        log_transition (..., T-1, K, K), rows normalised, or of the structure of the biases. A row without any possible
        transition stays so.

    What is added to all weights, or biases, of a row changes nothing. Zeros in the weights and the bias of one
    transition a row make it the reference that the others are compared with.

    Raises:
        TypeError: not floating-point arrays of one library, or a `LowRank`. ValueError: shapes.

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
    structure = on_device(structure, backend, base)
    (slopes,) = canonical(with_weights(biases, xp.permute_dims(weights, (weights.ndim - 1, *range(weights.ndim - 1)))))[
        1
    ]  # (P, *base)
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
    num_steps: int = 20,
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

    Newton's method, for each state apart, whose problem is concave; a step that lowers the objective is taken at a
    quarter of its length, and so on. It moves along no direction that the data say nothing about: inputs that depend
    on each other, or what is common to all weights of a row. Where transitions are perfectly separated by the inputs
    there is no maximum: the search stops where a step promises less than 1e-11 nats a transition, which is at odds of
    about 1e11, or with a ridge at its maximum. A state that is never expected keeps its own.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, a negative ridge.

    Cost: num_steps times O(B T K (K P)^2), and K solutions of K (P + 1) equations; computed in float64.

    References: Boyd and Vandenberghe 2004, section 9.5; Visser and Speekenbrink 2010.

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
        carry = theta, value, value != value
        if self.backend.is_traced(value) and num_steps:
            steps = self.backend.arange(num_steps, like=theta)
            (theta, _, _), _ = self.backend.scan(lambda carry, _: (self.step(carry), None), carry, steps)
            return theta
        for _ in range(num_steps):
            carry = self.step(carry)
            if bool(carry[2]):
                break
        return carry[0]

    def step(self, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """(theta, value, _) after one of Newton's steps, and whether none was worth a try, or none any better."""
        backend, xp, (theta, value, _) = self.backend, self.backend.xp, carry
        gradient, hessian = self.derivatives(theta)
        flat = (1, theta.shape[0] * theta.shape[1])
        size, free = xp.sqrt(xp.reshape(xp.linalg.diagonal(hessian), flat)), xp.reshape(self.free, flat)
        step = solve_semidefinite(backend, hessian[None, ...], xp.reshape(gradient, (*flat, 1)), size, free)
        step = xp.reshape(step, theta.shape)
        promised = 0.5 * xp.sum(gradient * step)
        is_open, length = promised > LEAST_GAIN * xp.sum(self.counts), 1.0
        is_last, is_known = ~is_open, not backend.is_traced(value)
        for _ in range(NUM_SHORTENINGS):
            if is_known and not bool(is_open):
                break
            new = theta + length * step
            found = self.value(new)
            is_taken = is_open & (found >= value + 1e-4 * length * promised)
            theta, value = xp.where(is_taken, new, theta), xp.where(is_taken, found, value)
            is_open = is_open & ~is_taken
            length *= 0.25
        return theta, value, is_last | is_open

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
        is_weight = xp.where(backend.arange(width, like=theta) < width - 1, self.ridge, xp.zeros_like(theta))
        apart = xp.eye(num_states, dtype=theta.dtype)
        blocks = backend.asarray(apart, like=theta)[:, None, :, None] * outer[:, :, None, :]
        hessian = xp.reshape(blocks, (num_states * width, num_states * width)) - same
        penalty = xp.reshape(is_weight, (-1,))
        own = backend.arange(num_states * width, like=theta)
        hessian = hessian + xp.where(own[:, None] == own[None, :], penalty, 0.0)
        return inner - is_weight * theta, hessian

    def _log_probs(self, x: Array, theta: Array) -> Array:
        """(N, K)"""
        scores = x @ self.backend.xp.matrix_transpose(theta)
        return log_normalize(self.backend, self.backend.xp.where(self.is_possible, scores, -inf))
