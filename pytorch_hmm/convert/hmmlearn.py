"""Models of hmmlearn as modules, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..discrete import CategoricalHMM, PoissonHMM
from ..gaussian import GaussianHMM
from ..mixture import MixtureGaussianHMM
from ..trainable import EmissionHMM
from .values import filled, logs, untied, written


def from_hmmlearn(model: Any) -> EmissionHMM:
    """A fitted (or filled in) hmmlearn model as a module in float64, with the same parameters.

    Args:
        model: `GaussianHMM`, `GMMHMM` (diag, spherical or full), `CategoricalHMM` or `PoissonHMM`.

    Raises:
        TypeError: another class. ValueError: parameters that are no model, or "tied" mixtures, which hmmlearn ties in
            each state and this library over all.

    Example:
        >>> import hmmlearn.hmm, numpy as np
        >>> peer = hmmlearn.hmm.PoissonHMM(2)
        >>> peer.startprob_, peer.transmat_ = np.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.2, 0.8]])
        >>> peer.lambdas_ = np.array([[1.0], [7.0]])
        >>> from_hmmlearn(peer).rates[:, 0]
        tensor([1.0000, 7.0000], dtype=torch.float64, grad_fn=<SelectBackward0>)
    """
    kind = type(model).__name__ if type(model).__module__.startswith("hmmlearn") else f"{type(model)}"
    size = int(getattr(model, "n_components", 0))
    found: EmissionHMM
    values: dict[str, Any]
    if kind == "GaussianHMM":
        form, covariances = model.covariance_type, np.asarray(model._covars_)
        found = GaussianHMM(size, model.means_.shape[1], form)
        values = {"means": model.means_, "covariances": covariances[:, 0] if form == "spherical" else covariances}
    elif kind == "GMMHMM":
        form = model.covariance_type
        if form == "tied":
            raise ValueError("model: expected mixtures that are not 'tied', which hmmlearn ties in each state alone")
        found = MixtureGaussianHMM(size, model.means_.shape[2], model.n_mix, form)
        values = {"log_weights": logs("weights", model.weights_), "means": model.means_, "covariances": model.covars_}
    elif kind == "CategoricalHMM":
        found = CategoricalHMM(size, model.emissionprob_.shape[1])
        values = {"log_probs": logs("probs", model.emissionprob_)}
    elif kind == "PoissonHMM":
        found, values = PoissonHMM(size, model.lambdas_.shape[1]), {"rates": model.lambdas_}
    else:
        raise TypeError(f"model: expected hmmlearn's GaussianHMM, GMMHMM, CategoricalHMM or PoissonHMM, got {kind}")
    return filled(found, model.startprob_, model.transmat_, **values)


def to_hmmlearn(model: EmissionHMM) -> Any:
    """A module as the hmmlearn model of the same parameters; needs hmmlearn.

    Raises:
        TypeError: a module that hmmlearn has no class for. ValueError: covariances that it has no form for.
    """
    model = untied(model)
    from hmmlearn import hmm

    size = model.num_states
    found: Any
    if isinstance(model, GaussianHMM | MixtureGaussianHMM):
        form = model.covariance_type
        if form == "tied_diag" or (form == "tied" and isinstance(model, MixtureGaussianHMM)):
            raise ValueError(f"model: expected covariances that hmmlearn has a form for, got {form!r}")
    if isinstance(model, GaussianHMM):
        found = hmm.GaussianHMM(size, model.covariance_type)
        found.n_features = model.obs_dim
        found.means_, found.covars_ = written(model.means), written(model.covariances)
    elif isinstance(model, MixtureGaussianHMM):
        found = hmm.GMMHMM(size, model.num_mixtures, covariance_type=model.covariance_type)
        found.n_features = model.obs_dim
        found.weights_ = written(model.log_weights.exp())
        found.means_, found.covars_ = written(model.means), written(model.covariances)
    elif isinstance(model, CategoricalHMM):
        found = hmm.CategoricalHMM(size)
        found.n_features, found.emissionprob_ = model.num_symbols, written(model.log_probs.exp())
    elif isinstance(model, PoissonHMM):
        found = hmm.PoissonHMM(size)
        found.n_features, found.lambdas_ = model.obs_dim, written(model.rates)
    else:
        raise TypeError(f"model: expected a module that hmmlearn has a class for, got {type(model).__name__}")
    found.startprob_, found.transmat_ = written(model.log_initial.exp()), written(model.log_transition.exp())
    return found
