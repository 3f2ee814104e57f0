"""The E-step: expected counts of states, transitions and durations, and statistics of emissions, over sequences."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple, Protocol

from .arrays import chain_arrays, fused
from .backend import Array, Backend, backend_of
from .chain import Chain, chain_of
from .decode import viterbi
from .durations import DurationFamily
from .edges import Edges
from .emissions.categorical import Categorical, CategoricalParameters
from .gradient import STATISTICS
from .likelihood import forward_pass
from .numerics import wide
from .semi_markov import semi_markov_completed, semi_markov_forward_backward, semi_markov_viterbi, steps_since
from .structure import Dense
from .transition import canonical, own_shape


class Family(Protocol):
    """An emission law. Parameters and statistics are NamedTuples of arrays of its own; statistics add up."""

    def log_prob(self, observations: Array, parameters: Any) -> Array:
        """log p(x_t given z_t), (..., T, K), nats."""

    def statistics(self, observations: Array, posteriors: Array, parameters: Any) -> Any:
        """Sums over all frames, weighted by posteriors (..., T, K), which are 0 where nothing was observed."""

    def m_step(self, statistics: Any, parameters: Any) -> Any:
        """The parameters of highest expected log-density; what has no weight keeps its old parameters.

        Where entries are fixed it is given them as a third argument, see `maximize`.
        """

    def log_prior(self, parameters: Any) -> Any:
        """log density of the parameters before any data, up to a constant; 0.0 without a prior."""


class HMMParameters(NamedTuple):
    """A model: log p(z_0) (K,), the transition without batch axes, and the emission family's parameters.

    A transition of each sequence's own that varies in time, (..., T-1, K, K), has such counts, too: p(z_t, z_{t+1}).
    R models of one form learn together, see `together`: (R, K), (R, K, K), and emissions of R K states.
    """

    log_initial: Array
    log_transition: Any
    emission: Any
    duration: Any = ()
    """Of semi-Markov models, the duration family's parameters."""


class Statistics(NamedTuple):
    """Expected statistics of sequences, sums over all of them."""

    log_likelihood: Array
    """(), weighted as the sequences are; (R,) of R models, as the rest has R axes where the parameters have."""
    initial: Array
    """(K,): how often each state is expected first."""
    transitions: Any
    """How often each transition is expected, in the shape of the transition's weights."""
    emission: Any
    """The family's."""
    durations: Any = ()
    """(K, D_max), of semi-Markov models: how often each duration is expected. Of a segment that the end cuts off, each
    duration that it may have counts with its probability."""


def expected_statistics(
    parameters: HMMParameters,
    family: Family,
    observations: Array,
    *,
    lengths: Any = None,
    weights: Array | None = None,
    is_observed: Array | None = None,
    is_allowed: Array | None = None,
    method: str = "em",
    kernel: str = "auto",
    duration: DurationFamily | None = None,
    censored: bool = True,
) -> Statistics:
    """The E-step: expected counts and emission statistics of sequences under the current parameters.

    Args:
        observations: (..., T, *frame), right-padded.
        lengths: (...) integers 1..T.
        weights: (...), how often each sequence counts; default once.
        is_observed: (..., T) booleans; what was not observed says nothing about the state, and enters no statistic.
        is_allowed: (..., T, K) booleans, where states are known or restricted; all by default.
        method: "em" for posteriors, "viterbi" for the best path in their place.
        duration: the duration family of a semi-Markov model.
        censored: as `semi_markov_log_likelihood`.

    Returns:
        `Statistics`, sums over the batch: those of several batches or processes may be added, see `add`. An impossible
        sequence has log-likelihood -inf and adds no counts.

    Raises: as `log_likelihood`, and the family.

    Cost: as `log_likelihood` with its gradient, and the family's sums.

    References: Rabiner 1989, equations 40a to 40c and 52 to 54, numerators; Yu 2010, section 3.1 (semi-Markov).
    """
    emission = family.log_prob(observations, parameters.emission)
    backend = backend_of(log_emission=emission, weights=weights)
    xp, initial, transition = backend.xp, parameters.log_initial, parameters.log_transition
    models = tuple(initial.shape[:-1])
    if models:
        emission, initial, transition = _side_by_side(emission, initial, transition)
    if is_observed is not None:
        emission = xp.where(is_observed[..., None], emission, 0.0)
    if is_allowed is not None:
        emission = xp.where(is_allowed, emission, -inf)
    options = (lengths, weights, method, kernel)
    durations: Any = ()
    if duration is not None:
        log_duration = duration.log_prob(parameters.duration)
        total, starts, counts, posteriors, durations = _semi_markov_pass(
            initial, transition, log_duration, emission, *options, censored
        )
    elif models and backend.form((emission, initial)) is not None:  # compiled code serves sequences of one matrix best
        each_model = [
            _pass(initial[r, ...], transition[r, ...], emission[r, ...], *options, ()) for r in range(models[0])
        ]
        total, starts, counts, posteriors = (xp.stack(parts) for parts in zip(*each_model, strict=True))
    else:
        total, starts, counts, posteriors = _pass(initial, transition, emission, *options, models)
    observed = posteriors if is_observed is None else xp.where(is_observed[..., None], posteriors, 0.0)
    if models:
        observed = xp.moveaxis(observed, 0, -2)
        observed = xp.reshape(observed, (*observed.shape[:-2], -1))
    is_read = xp.sum(observed, axis=-1) > 0
    if backend.is_traced(is_read) or not bool(xp.all(is_read)):
        observations = _readable(xp, observations, is_read)
    sums = family.statistics(observations, observed, parameters.emission)
    return Statistics(total, starts, counts, sums, durations)


def _readable(xp: Any, observations: Array, is_read: Array) -> Array:
    """Observations of which what is not read may be anything: what is no number is made one.

    The others stay, since later frames may look back at them.
    """
    is_read = xp.reshape(is_read, (*is_read.shape, *[1] * (observations.ndim - is_read.ndim)))
    if xp.isdtype(observations.dtype, "real floating"):
        is_read = xp.logical_or(is_read, xp.isfinite(observations))
    return xp.where(is_read, observations, xp.zeros_like(observations))


def _pass(
    initial: Array,
    transition: Any,
    emission: Array,
    lengths: Any,
    weights: Array | None,
    method: str,
    kernel: str,
    models: tuple[int, ...],
) -> tuple[Array, Array, Any, Array]:
    """Log-likelihood, initial counts, transition counts, and posteriors (..., T, K), all weighted."""
    chain = chain_of(initial, transition, emission, lengths=lengths)
    is_constant = chain.weights[0].shape[1] == 1 and chain.num_steps > 2
    if not models and (chain.initial.shape[0] != 1 or (chain.weights[0].shape[0] != 1 and is_constant)):
        raise ValueError("parameters: expected one model for all sequences, got batch axes in its chain")
    backend, xp, size = chain.backend, chain.backend.xp, chain.emission.shape[0]
    scale = backend.full((size,), 1.0, like=chain.emission)
    if weights is not None:
        scale = xp.astype(xp.reshape(xp.broadcast_to(weights, chain.batch_shape), (size,)), scale.dtype)
    if method == "viterbi":
        likelihood, posteriors, counts = _along_best_paths(chain, scale, kernel, models)
    elif method == "em":
        likelihood, posteriors, counts = _expected(chain, scale, kernel, models)
        if not models:
            each_own = chain.weights[0].shape[0] != 1
            counts = own_shape(backend, transition, tuple(map(chain.unflatten, counts)) if each_own else counts)
    else:
        raise ValueError(f"method: expected 'em' or 'viterbi', got {method!r}")
    likelihood = wide(backend, xp.where(scale == 0, 0.0, likelihood) * scale)
    total = xp.sum(xp.reshape(likelihood, (*models, -1)), axis=-1)
    starts = xp.sum(xp.reshape(posteriors[:, 0, :], (*models, -1, chain.num_states)), axis=-2)
    return total, starts, counts, chain.unflatten(posteriors)


def _semi_markov_pass(
    initial: Array,
    transition: Any,
    log_duration: Array,
    emission: Array,
    lengths: Any,
    weights: Array | None,
    method: str,
    kernel: str,
    censored: bool,
) -> tuple[Array, Array, Array, Array, Array]:
    """The same as `_pass` of a semi-Markov model, and counts of durations (K, D_max)."""
    if initial.ndim != 1 or log_duration.ndim != 2 or getattr(transition, "ndim", 2) != 2:
        raise ValueError("parameters: expected one model for all sequences, got batch axes in its chain")
    backend = backend_of(log_emission=emission)
    xp, (num_states, count) = backend.xp, log_duration.shape
    given = (initial, transition, log_duration, emission)
    options = {"lengths": lengths, "censored": censored, "kernel": kernel}
    if method == "em":
        found = semi_markov_forward_backward(*given, **options)
        likelihood, posteriors = found.log_likelihood, xp.exp(found.log_posteriors)
        scale = _scale(backend, weights, likelihood)[..., None, None]
        moves, durations, ends = (
            xp.sum(xp.reshape(wide(backend, x) * scale, (-1, *x.shape[-2:])), axis=0)
            for x in (found.expected_transitions, found.expected_durations, found.expected_ends)
        )
    elif method == "viterbi":
        states, is_start, likelihood = semi_markov_viterbi(*given, **options)
        scale = _scale(backend, weights, likelihood)[..., None, None]
        posteriors = _one_hot(backend, states, num_states, emission.dtype)
        is_valid = states >= 0
        begins = xp.concat([is_start[..., 1:], xp.zeros_like(is_start[..., :1])], axis=-1)
        after = xp.concat([is_valid[..., 1:], xp.zeros_like(is_valid[..., :1])], axis=-1)
        is_last = xp.logical_and(is_valid, xp.logical_not(after))
        lasted = xp.clip(steps_since(backend, is_start), 0, count - 1)

        def counted(is_end: Array) -> Array:
            chosen = xp.where(is_end[..., None], posteriors * scale, 0.0)
            return Categorical().statistics(lasted, chosen, CategoricalParameters(log_duration)).counts

        durations, ends = counted(begins), counted(is_last)
        durations = durations if censored else durations + ends
        before = xp.where(begins[..., None], posteriors * scale, 0.0)[..., :-1, :]
        moves = xp.matrix_transpose(xp.reshape(wide(backend, before), (-1, num_states)))
        moves = moves @ xp.reshape(wide(backend, posteriors[..., 1:, :]), (-1, num_states))
    else:
        raise ValueError(f"method: expected 'em' or 'viterbi', got {method!r}")
    scale = scale[..., 0, 0]
    moves = _in_shape(backend, transition, moves)
    if censored:
        durations = durations + semi_markov_completed(wide(backend, log_duration), ends)
    posteriors = posteriors * scale[..., None, None]
    total = xp.sum(wide(backend, xp.where(scale == 0, 0.0, likelihood) * scale))
    starts = xp.sum(xp.reshape(wide(backend, posteriors[..., 0, :]), (-1, num_states)), axis=0)
    return total, starts, moves, posteriors, durations


def _in_shape(backend: Backend, transition: Any, counts: Array) -> Any:
    """Counts (K, K) in the shape of the transition's weights."""
    structure, _ = canonical(transition)
    if isinstance(structure, Dense):
        return counts
    if not isinstance(structure, Edges):
        raise NotImplementedError("a low-rank transition of a semi-Markov model has no statistics here")
    sources, targets = (backend.asarray(x, like=counts) for x in structure.tables[:2])
    flat = backend.xp.take(backend.xp.reshape(counts, (-1,)), sources * structure.num_states + targets)
    return own_shape(backend, transition, (flat,))


def _scale(backend: Backend, weights: Array | None, like: Array) -> Array:
    if weights is None:
        return backend.xp.ones_like(like)
    return backend.xp.astype(backend.xp.broadcast_to(weights, like.shape), like.dtype)


def _one_hot(backend: Backend, states: Array, num_states: int, dtype: Any) -> Array:
    return backend.xp.astype(states[..., None] == backend.arange(num_states, like=states), dtype)


def _side_by_side(emission: Array, initial: Array, transition: Any) -> tuple[Array, Array, Array]:
    """Scores (..., T, R K) of R models as (R, ..., T, K), and chains whose batch axes broadcast with them."""
    xp = backend_of(emission=emission).xp
    count, num_states = initial.shape
    if getattr(transition, "ndim", 0) != 3 or emission.shape[-1] != count * num_states:
        raise ValueError(
            f"parameters: expected, for {count} models in one, dense transitions ({count}, K, K) and emissions of "
            f"{count * num_states} states, one model's after the other's"
        )
    emission = xp.moveaxis(xp.reshape(emission, (*emission.shape[:-1], count, num_states)), -2, 0)
    ones = (1,) * (emission.ndim - 3)
    initial = xp.reshape(initial, (count, *ones, num_states))
    return emission, initial, xp.reshape(transition, (count, *ones, 1, num_states, num_states))


def _expected(chain: Chain, scale: Array, kernel: str, models: tuple[int, ...]) -> tuple[Array, Array, Any]:
    """Log-likelihoods (B,), posteriors (B, T, K), transition counts; the last two weighted by scale (B,)."""
    backend, xp = chain.backend, chain.backend.xp
    arrays = chain_arrays(chain, kernel)
    is_one = bool(models) or chain.weights[0].shape[0] == 1
    is_plain = not backend.records(arrays.theta) and chain.weights[0].shape[1] == 1 and is_one
    if is_plain and (whole := fused(chain, kernel)) is not None:
        quantities, call = whole
        meets = quantities.meets(call, True)
        likelihood, messages = quantities.forward(call, chain.final, True, meets=meets)
        posteriors, counted = quantities.statistics(call, chain.final, messages, scale, True, meets)
        assert counted is not None
        counts: tuple[Array, ...] = (counted,)
    else:
        likelihood, messages = forward_pass(chain, kernel, has_messages=True)
        found = backend.call(STATISTICS, arrays.spec.encode(), [*arrays.theta, scale, *arrays.constants, messages])
        posteriors, counts = found[-2], found[1:-2]
    if models:
        return likelihood, posteriors, xp.sum(xp.reshape(counts[0], (*models, -1, *counts[0].shape[-2:])), axis=1)
    size, slots = chain.weights[0].shape[:2]
    if size != 1:
        return likelihood, posteriors, tuple(counts)
    return likelihood, posteriors, tuple(c[0, 0, ...] if slots == 1 else c[0, ...] for c in counts)


def _along_best_paths(chain: Chain, scale: Array, kernel: str, models: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The same with the best path for certain."""
    backend, xp = chain.backend, chain.backend.xp
    if not isinstance(chain.structure, Dense) or chain.weights[0].shape[1] != 1:
        raise NotImplementedError("method 'viterbi' needs a dense transition that is constant in time")
    found = viterbi(
        chain.initial,
        chain.weights[0],
        chain.emission,
        lengths=chain.lengths if chain.is_ragged else None,
        kernel=kernel,
    )
    posteriors = _one_hot(backend, found.states, chain.num_states, chain.emission.dtype) * scale[:, None, None]
    one_hot = _one_hot(backend, found.states[:, 1:], chain.num_states, chain.emission.dtype)
    pairs = xp.matrix_transpose(xp.reshape(posteriors[:, :-1, :], (*models, -1, chain.num_states)))
    counts = pairs @ xp.reshape(one_hot, (*models, -1, chain.num_states))
    return found.log_joint, posteriors, counts
