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
from typing import Any, NamedTuple, cast

from .backend import Array, backend_of
from .durations import DurationFamily
from .edges import Edges, on_device
from .emissions.categorical import dirichlet_log_density, maximize_groups, maximize_probabilities
from .emissions.constraints import held, need_at_least
from .expectation import Family as Family
from .expectation import HMMParameters as HMMParameters
from .expectation import Statistics as Statistics
from .expectation import expected_statistics as expected_statistics
from .structure import gather
from .transition import Banded, Sparse, canonical, own_shape, with_weights


class Priors(NamedTuple):
    """Dirichlet priors of the chain; ones mean none."""

    initial: Any = 1.0
    """Concentrations, a number or (K,), at least 1."""
    transition: Any = 1.0
    """A number or (K, K), at least 1; a larger diagonal makes states last ("sticky")."""
    emission: Any = None
    """Of the emissions, for modules, which make the family; functions take families that hold their priors."""
    duration: Any = 1.0
    """Concentrations of categorical durations, a number or (K, D_max), at least 1, for modules likewise."""


def maximize(
    statistics: Statistics,
    parameters: HMMParameters,
    family: Family,
    *,
    priors: Priors | None = None,
    fixed: HMMParameters | None = None,
    duration: DurationFamily | None = None,
) -> HMMParameters:
    """The M-step: parameters of highest expected log-probability (and prior density).

    Probabilities of exactly zero stay zero, and what no frame was expected to use keeps its parameters.

    Args:
        parameters: those that the statistics were made with.
        priors: of the chain; those of the emissions belong to the family.
        fixed: booleans in place of the parameters, or None for no entry, True for all: which stay as they are, bit for
            bit. Probabilities that are not fixed share what the fixed ones of their row leave.
        duration: the duration family of a semi-Markov model.
    """
    priors = Priors() if priors is None else priors
    need_concentrations(priors, parameters.log_initial.shape[-1])
    log_initial, log_transition, emission, durations = parameters
    backend = backend_of(log_initial=log_initial)
    stays = HMMParameters(None, None, None, None) if fixed is None else fixed
    if duration is not None:
        durations = duration.m_step(statistics.durations, durations, stays.duration or None)
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
        durations,
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


def log_prior(
    parameters: HMMParameters, family: Family, priors: Priors | None = None, duration: DurationFamily | None = None
) -> Any:
    """log density of a model before any data, up to a constant; 0.0 where there is no prior."""
    found = family.log_prior(parameters.emission)
    if duration is not None:
        found = found + duration.log_prior(parameters.duration)
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
    duration: DurationFamily | None = None,
    **options: Any,
) -> tuple[HMMParameters, Array]:
    """One iteration of EM: the next parameters, and the log-likelihood of those given.

    Args:
        priors, fixed, duration: as `maximize`.
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
    statistics = expected_statistics(parameters, family, observations, duration=duration, **options)
    found = maximize(statistics, parameters, family, priors=priors, fixed=fixed, duration=duration)
    return found, statistics.log_likelihood


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
    if any(len(model.duration) for model in models):
        raise ValueError("models: expected plain chains, semi-Markov models learn one at a time")
    xp = backend_of(log_initial=models[0].log_initial).xp
    emission = each(lambda *arrays: xp.concat(arrays, axis=0), *(model.emission for model in models))
    initial = xp.stack([model.log_initial for model in models])
    return HMMParameters(initial, xp.stack([model.log_transition for model in models]), emission)


def apart(parameters: HMMParameters) -> list[HMMParameters]:
    """The models that `together` put together, or a single one."""
    initial, transition, emission, _ = parameters
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
