"""Models of pomegranate as modules, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..discrete import BernoulliHMM, CategoricalHMM, PoissonHMM
from ..gaussian import GaussianHMM
from ..mixture import MixtureGaussianHMM
from ..trainable import EmissionHMM
from .values import filled, is_alike, is_one, logs, read, symmetric, untied, written

_STATES = ("Normal", "GeneralMixtureModel", "Categorical", "Poisson", "Bernoulli")
_FORMS = {"full": "full", "diag": "diag", "spherical": "sphere"}


def from_pomegranate(model: Any, *, drop_ends: bool = False) -> EmissionHMM:
    """A pomegranate model as a module in float64, with the same parameters (which pomegranate keeps in float32).

    An END state has no counterpart here: p(x) of this library is that of a sequence of given length. pomegranate's
    `ends` that are alike in every state, as those not given are, scale p(x) of all sequences (by 1/K those not given),
    and are left out. Those that a fit has learned are not alike, and are refused: the model without them is another.

    Args:
        model: `DenseHMM` or `SparseHMM` whose states are all `Normal`, all `GeneralMixtureModel` of `Normal`, all
            `Categorical` of one symbol a frame, all `Poisson` or all `Bernoulli`.
        drop_ends: take the model without its END state: each row of its edges over its sum.

    Raises:
        TypeError: another class, of the model or a state. ValueError: parameters that are no model or not yet there,
            states of several forms, or an END state that is not to be dropped.

    Example:
        >>> from pomegranate.distributions import Poisson
        >>> from pomegranate.hmm import DenseHMM
        >>> peer = DenseHMM([Poisson([1.0]), Poisson([7.0])], [[0.9, 0.1], [0.2, 0.8]], [0.5, 0.5])
        >>> from_pomegranate(peer).rates[:, 0]
        tensor([1.0000, 7.0000], dtype=torch.float64, grad_fn=<SelectBackward0>)
    """
    if type(model).__name__ not in ("DenseHMM", "SparseHMM"):
        raise TypeError(f"model: expected pomegranate's DenseHMM or SparseHMM, got {type(model).__name__}")
    states = list(model.distributions or ())
    kind = _one("states of one class", (type(state).__name__ for state in states), TypeError)
    if kind not in _STATES:
        raise TypeError(f"model: expected states of {', '.join(_STATES)}, got {kind}")
    initial, transition = _chain(model, len(states), drop_ends)
    if kind == "Normal":
        form, means, covariances = _normals(states)
        return filled(
            GaussianHMM(len(states), means.shape[1], form), initial, transition, means=means, covariances=covariances
        )
    if kind == "GeneralMixtureModel":
        weights = _stacked("priors", [state.priors for state in states], 2)
        normals = [normal for state in states for normal in state.distributions]
        within = _one("mixtures of Normal", (type(normal).__name__ for normal in normals), TypeError)
        if within != "Normal":
            raise TypeError(f"model: expected mixtures of Normal, got {within}")
        form, means, covariances = _normals(normals)
        mixture = MixtureGaussianHMM(len(states), means.shape[1], weights.shape[1], form)
        values = {"means": means, "covariances": covariances}
        values = {name: value.reshape(*weights.shape, *value.shape[1:]) for name, value in values.items()}
        return filled(mixture, initial, transition, log_weights=logs("priors", weights), **values)
    if kind == "Categorical":
        probs = _stacked("probs", [state.probs for state in states], 3)
        if probs.shape[1] != 1:
            raise ValueError(f"probs: expected (1, V) of one symbol a frame, got shape {probs.shape[1:]}")
        symbols = CategoricalHMM(len(probs), probs.shape[2])
        return filled(symbols, initial, transition, log_probs=logs("probs", probs[:, 0]))
    if kind == "Poisson":
        rates = _stacked("lambdas", [state.lambdas for state in states], 2)
        return filled(PoissonHMM(*rates.shape), initial, transition, rates=rates)
    chances = _stacked("probs", [state.probs for state in states], 2)
    return filled(BernoulliHMM(*chances.shape), initial, transition, probs=chances)


def to_pomegranate(model: EmissionHMM) -> Any:
    """A module as pomegranate's `DenseHMM` of the same parameters, in float64; needs pomegranate.

    Its `ends` are ones, so that its `log_probability` is the log-likelihood here; its `sample`, which reads them as
    probabilities of ending, needs others.

    Raises:
        TypeError: a module that pomegranate has no class for. ValueError: covariances that it has no form for, or
            probabilities of a `BernoulliHMM` within 1.2e-7 of 0 and 1, which it refuses.
    """
    model = untied(model)
    from pomegranate.distributions import Bernoulli, Categorical, Normal, Poisson
    from pomegranate.gmm import GeneralMixtureModel
    from pomegranate.hmm import DenseHMM

    def normals(means: Any, covariances: Any, form: str) -> list[Any]:
        if form == "spherical":
            covariances = np.broadcast_to(covariances[..., None], means.shape).copy()
        pairs = zip(torch.from_numpy(means), torch.from_numpy(covariances), strict=True)
        return [Normal(mean, covariance, _FORMS[form]) for mean, covariance in pairs]

    if isinstance(model, GaussianHMM | MixtureGaussianHMM):
        form, means, covariances = model.covariance_type, written(model.means), written(model.covariances)
        if form not in _FORMS:
            raise ValueError(f"model: expected covariances that pomegranate has a form for, got {form!r}")
    if isinstance(model, GaussianHMM):
        states = normals(means, covariances, form)
    elif isinstance(model, MixtureGaussianHMM):
        weights = torch.from_numpy(written(model.log_weights.exp()))
        components = (normals(*pair, form) for pair in zip(means, covariances, strict=True))
        states = [GeneralMixtureModel(*pair) for pair in zip(components, weights, strict=True)]
    elif isinstance(model, CategoricalHMM):
        states = [Categorical(row[None]) for row in torch.from_numpy(written(model.log_probs.exp()))]
    elif isinstance(model, PoissonHMM):
        states = [Poisson(row) for row in torch.from_numpy(written(model.rates))]
    elif isinstance(model, BernoulliHMM):
        states = [Bernoulli(row) for row in torch.from_numpy(written(model.probs))]
    else:
        raise TypeError(f"model: expected a module that pomegranate has a class for, got {type(model).__name__}")
    edges, starts = written(model.log_transition.exp()), written(model.log_initial.exp())
    return DenseHMM(states, edges, starts, np.ones_like(starts)).double()


def _chain(model: Any, size: int, drop_ends: bool) -> tuple[Any, Any]:
    """Initial probabilities (K,) and transitions (K, K) of a model of `size` states; what was not given is uniform."""
    starts, ends = (
        np.full(size, 1 / size) if value is None else np.exp(read(name, value, 1))
        for name, value in (("starts", model.starts), ("ends", model.ends))
    )
    if type(model).__name__ == "SparseHMM":
        if not hasattr(model, "_edge_log_probs"):
            raise ValueError("model: expected edges that SparseHMM was given, or that it has read in its first call")
        at = (read("edges", x, 1).astype(int) for x in (model._edge_idx_starts, model._edge_idx_ends))
        transition = np.zeros((size, size))
        np.add.at(transition, tuple(at), np.exp(read("edges", model._edge_log_probs, 1)))
    elif model.edges is None:
        transition = np.full((size, size), 1 / size)
    else:
        transition = np.exp(read("edges", model.edges, 2))
    sums = transition.sum(1)
    if is_one(sums) and is_alike(ends):
        return starts, transition
    if not drop_ends:
        raise ValueError(
            "model: expected no END state, that is edges from every state that sum to 1 and ends that are alike, got "
            f"sums {sums} and ends {ends}; drop_ends=True takes the model without it"
        )
    if is_one(sums + ends):
        transition = transition / np.maximum(sums, np.finfo(np.float64).tiny)[:, None]
    return starts, transition


def _normals(normals: Sequence[Any]) -> tuple[Any, Any, Any]:
    """The form of N `Normal`s, their means (N, D), and their covariances in the shape of the form."""
    form = _one("one covariance_type", (normal.covariance_type for normal in normals), ValueError)
    means = _stacked("means", [normal.means for normal in normals], 2)
    if form == "full":
        return form, means, symmetric(_stacked("covs", [normal.covs for normal in normals], 3))
    # one variance of a fitted "sphere", D of one that was given: those need not be alike
    given = (_given("covs", normal.covs) for normal in normals)
    variances = _stacked("covs", [np.broadcast_to(x, means.shape[1:]) if x.ndim == 0 else x for x in given], 2)
    if form == "sphere" and (variances == variances[:, :1]).all():
        return "spherical", means, variances[:, 0]
    return "diag", means, variances


def _one(wanted: str, found: Iterable[Any], error: type[Exception]) -> Any:
    """What all of `found` are."""
    kinds = sorted(set(found))
    if len(kinds) != 1:
        raise error(f"model: expected {wanted}, got {', '.join(map(str, kinds)) or 'none'}")
    return kinds[0]


def _given(name: str, value: Any) -> Any:
    if value is None:
        raise ValueError(f"{name}: expected numbers in every state, got None; fit the model first")
    return read(name, value)


def _stacked(name: str, values: Sequence[Any], rank: int) -> Any:
    """`values` of the states, all of one shape, along a new first axis."""
    arrays = [_given(name, value) for value in values]
    _one(f"{name} of one shape", (array.shape for array in arrays), ValueError)
    return read(name, np.stack(arrays), rank)
