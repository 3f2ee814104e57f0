"""Learning by expectation-maximisation: expected statistics that add up, and the parameters that fit them best.

    statistics = expected_statistics(parameters, family, observations)     # for each batch, or process: they add up
    parameters = maximize(statistics, parameters, family)

A family is an emission law: any object with the four methods of `Family`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from inspect import signature
from math import inf
from typing import Any, NamedTuple, Protocol, cast

from .arrays import chain_arrays, fused
from .backend import Array, backend_of
from .chain import Chain, chain_of
from .decode import viterbi
from .edges import Edges, on_device
from .emissions.categorical import dirichlet_log_density, maximize_groups, maximize_probabilities
from .emissions.constraints import held, need_at_least
from .emissions.moments import wide
from .gradient import STATISTICS
from .likelihood import forward_pass
from .structure import Dense, gather
from .transition import Banded, Sparse, canonical, own_shape, with_weights


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


class Priors(NamedTuple):
    """Dirichlet priors of the chain; ones mean none."""

    initial: Any = 1.0
    """Concentrations, a number or (K,), at least 1."""
    transition: Any = 1.0
    """A number or (K, K), at least 1; a larger diagonal makes states last ("sticky")."""
    emission: Any = None
    """Of the emissions, for modules, which make the family; functions take families that hold their priors."""


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
) -> Statistics:
    """The E-step: expected counts and emission statistics of sequences under the current parameters.

    Args:
        observations: (..., T, *frame), right-padded.
        lengths: (...) integers 1..T.
        weights: (...), how often each sequence counts; default once.
        is_observed: (..., T) booleans; what was not observed says nothing about the state, and enters no statistic.
        is_allowed: (..., T, K) booleans, where states are known or restricted; all by default.
        method: "em" for posteriors, "viterbi" for the best path in their place.

    Returns:
        `Statistics`, sums over the batch: those of several batches or processes may be added, see `add`. An impossible
        sequence has log-likelihood -inf and adds no counts.

    Raises: as `log_likelihood`, and the family.

    Cost: as `log_likelihood` with its gradient, and the family's sums.

    References: Rabiner 1989, equations 40a to 40c and 52 to 54, numerators.
    """
    emission = family.log_prob(observations, parameters.emission)
    backend = backend_of(log_emission=emission, weights=weights)
    xp, (initial, transition, _) = backend.xp, parameters
    models = tuple(initial.shape[:-1])
    if models:
        emission, initial, transition = _side_by_side(emission, initial, transition)
    if is_observed is not None:
        emission = xp.where(is_observed[..., None], emission, 0.0)
    if is_allowed is not None:
        emission = xp.where(is_allowed, emission, -inf)
    options = (lengths, weights, method, kernel)
    if models and backend.form((emission, initial)) is not None:  # compiled code serves sequences of one matrix best
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
    return Statistics(total, starts, counts, family.statistics(observations, observed, parameters.emission))


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
    every = backend.arange(chain.num_states, like=found.states)
    posteriors = xp.astype(found.states[..., None] == every, chain.emission.dtype) * scale[:, None, None]
    one_hot = xp.astype(found.states[:, 1:, None] == every, chain.emission.dtype)
    pairs = xp.matrix_transpose(xp.reshape(posteriors[:, :-1, :], (*models, -1, chain.num_states)))
    counts = pairs @ xp.reshape(one_hot, (*models, -1, chain.num_states))
    return found.log_joint, posteriors, counts


def maximize(
    statistics: Statistics,
    parameters: HMMParameters,
    family: Family,
    *,
    priors: Priors | None = None,
    fixed: HMMParameters | None = None,
) -> HMMParameters:
    """The M-step: parameters of highest expected log-probability (and prior density).

    Probabilities of exactly zero stay zero, and what no frame was expected to use keeps its parameters.

    Args:
        parameters: those that the statistics were made with.
        priors: of the chain; those of the emissions belong to the family.
        fixed: booleans in place of the parameters, or None for no entry, True for all: which stay as they are, bit for
            bit. Probabilities that are not fixed share what the fixed ones of their row leave.
    """
    priors = Priors() if priors is None else priors
    need_concentrations(priors, parameters.log_initial.shape[-1])
    log_initial, log_transition, emission = parameters
    backend = backend_of(log_initial=log_initial)
    stays = HMMParameters(None, None, None) if fixed is None else fixed
    options = () if stays.emission is None else (stays.emission,)
    if options and len(signature(family.m_step).parameters) < 3:
        raise TypeError(
            f"fixed: expected {type(family).__name__}.m_step(statistics, parameters, fixed) to keep entries of the "
            "emissions, its m_step takes no third argument"
        )
    return HMMParameters(
        maximize_probabilities(backend, statistics.initial, log_initial, priors.initial, stays.log_initial),
        _maximize_transition(statistics.transitions, log_transition, priors.transition, stays.log_transition),
        family.m_step(statistics.emission, emission, *options),
    )


def need_concentrations(priors: Priors, num_states: int) -> None:
    """Numbers, or arrays of the shape of what they are for, of at least 1: only then has the density a mode."""
    if not isinstance(priors, Priors):
        raise TypeError(f"priors: expected hmm_functional.learning.Priors, got {type(priors).__name__}")
    for name, value, rank in (("initial", priors.initial, 1), ("transition", priors.transition, 2)):
        shape = tuple(getattr(value, "shape", ()))
        if shape and shape != (num_states,) * rank:
            raise ValueError(f"priors.{name}: expected a number or shape {(num_states,) * rank}, got {shape}")
        need_at_least(f"priors.{name}", value, 1.0)


def _maximize_transition(counts: Any, log_transition: Any, concentration: Any, is_fixed: Any = None) -> Any:
    if isinstance(counts, tuple):
        raise NotImplementedError("a low-rank transition has no M-step here; train it by its gradient")
    if not isinstance(log_transition, Banded | Sparse):
        backend = backend_of(log_transition=log_transition)
        return maximize_probabilities(backend, counts, log_transition, concentration, is_fixed)
    (structure, (weights,)), backend = canonical(log_transition), backend_of(counts=counts)
    edges = cast(Edges, on_device(structure, backend, weights))
    (counts,) = canonical(with_weights(log_transition, counts))[1]
    if not isinstance(is_fixed, bool | None):
        numbers = backend.xp.astype(is_fixed, weights.dtype)
        is_fixed = canonical(with_weights(log_transition, numbers))[1][0] > 0

    def of_source(x: Array) -> Array:
        return gather(backend, edges.sum_by_source(backend, x), edges.tables[0])

    found = maximize_groups(backend, counts, weights, concentration, is_fixed, of_source)
    return with_weights(log_transition, own_shape(backend, log_transition, (found,), -inf))


def log_prior(parameters: HMMParameters, family: Family, priors: Priors | None = None) -> Any:
    """log density of a model before any data, up to a constant; 0.0 where there is no prior."""
    found = family.log_prior(parameters.emission)
    if priors is None:
        return found
    weights = parameters.log_transition
    if isinstance(weights, Banded | Sparse):
        (weights,) = canonical(weights)[1]
    return found + (
        dirichlet_log_density(parameters.log_initial, priors.initial)
        + dirichlet_log_density(weights, priors.transition)
    )


def em_step(
    parameters: HMMParameters,
    family: Family,
    observations: Array,
    *,
    priors: Priors | None = None,
    fixed: HMMParameters | None = None,
    **options: Any,
) -> tuple[HMMParameters, Array]:
    """One iteration of EM: the next parameters, and the log-likelihood of those given.

    Args:
        priors, fixed: as `maximize`.
        options: as `expected_statistics`.

    The log-likelihood (plus `log_prior`) of the result is never lower than that of what was given.

    References: Dempster, Laird and Rubin 1977; Baum et al. 1970.

    Example:
        >>> import torch
        >>> from hmm_functional.emissions import Categorical, CategoricalParameters
        >>> half = torch.full((2, 2), 0.5).log()
        >>> model = HMMParameters(half[0], half, CategoricalParameters(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()))
        >>> model, before = em_step(model, Categorical(), torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> model.log_transition.exp()
        tensor([[0.5434, 0.4566],
                [0.2218, 0.7782]])
    """
    statistics = expected_statistics(parameters, family, observations, **options)
    return maximize(statistics, parameters, family, priors=priors, fixed=fixed), statistics.log_likelihood


def add(first: Any, *others: Any) -> Any:
    """Statistics of all sequences together, from those of batches or processes."""
    return each(lambda *arrays: reduce(operator.add, arrays), first, *others)


def scale(statistics: Any, factor: float) -> Any:
    """`factor` times the statistics."""
    return each(lambda x: factor * x, statistics)


def interpolate(old: Any, new: Any, share: float) -> Any:
    """(1 - share) old + share new: the running statistics of stepwise EM.

    References: Cappe and Moulines 2009, equation 13; Liang and Klein 2009.
    """
    return each(lambda x, y: (1.0 - share) * x + share * y, old, new)


def together(models: Sequence[HMMParameters]) -> HMMParameters:
    """Models of one form as one that learns them side by side: each step of EM is that of each alone.

    Only for dense transitions and families whose states have parameters of their own (no "tied" covariances).
    """
    if len(models) == 1:
        return models[0]
    xp = backend_of(log_initial=models[0].log_initial).xp
    emission = each(lambda *arrays: xp.concat(arrays, axis=0), *(model.emission for model in models))
    initial = xp.stack([model.log_initial for model in models])
    return HMMParameters(initial, xp.stack([model.log_transition for model in models]), emission)


def apart(parameters: HMMParameters) -> list[HMMParameters]:
    """The models that `together` put together, or a single one."""
    initial, transition, emission = parameters
    if initial.ndim == 1:
        return [parameters]
    count = initial.shape[0]

    def rows(r: int) -> Callable[[Array], Array]:
        return lambda x: x[r * (x.shape[0] // count) : (r + 1) * (x.shape[0] // count), ...]

    return [HMMParameters(initial[r, :], transition[r, ...], each(rows(r), emission)) for r in range(count)]


def keep(fixed: Any, old: Any, new: Any) -> Any:
    """`new` parameters, and the `old` ones where they are fixed, see `maximize`."""
    if fixed is None or isinstance(fixed, bool) or not isinstance(new, tuple):
        return old if fixed is True else new if fixed is None or fixed is False else held(fixed, old, new)
    parts = [keep(*fields) for fields in zip(fixed, old, new, strict=True)]
    return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)


def each(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """`function` of the arrays that nested tuples hold in the same places."""
    if not isinstance(first, tuple):
        return function(first, *others)
    parts = [each(function, *fields) for fields in zip(first, *others, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
