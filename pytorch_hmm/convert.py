"""Models of other libraries as modules, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from .discrete import CategoricalHMM, PoissonHMM
from .gaussian import GaussianHMM
from .mixture import MixtureGaussianHMM
from .trainable import EmissionHMM


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
    found: Any
    if kind == "GaussianHMM":
        form, covariances = model.covariance_type, np.asarray(model._covars_)
        found = GaussianHMM(size, model.means_.shape[1], form).double()
        found.means, found.covariances = model.means_, covariances[:, 0] if form == "spherical" else covariances
    elif kind == "GMMHMM":
        form = model.covariance_type
        if form == "tied":
            raise ValueError("model: expected mixtures that are not 'tied', which hmmlearn ties in each state alone")
        found = MixtureGaussianHMM(size, model.means_.shape[2], model.n_mix, form).double()
        found.log_weights, found.means, found.covariances = _log(model.weights_), model.means_, model.covars_
    elif kind == "CategoricalHMM":
        found = CategoricalHMM(size, model.emissionprob_.shape[1]).double()
        found.log_probs = _log(model.emissionprob_)
    elif kind == "PoissonHMM":
        found = PoissonHMM(size, model.lambdas_.shape[1], rates=model.lambdas_).double()
        found.rates = model.lambdas_
    else:
        raise TypeError(f"model: expected hmmlearn's GaussianHMM, GMMHMM, CategoricalHMM or PoissonHMM, got {kind}")
    found.log_initial, found.log_transition = _log(model.startprob_), _log(model.transmat_)
    return found  # type: ignore[no-any-return]


def to_hmmlearn(model: EmissionHMM) -> Any:
    """A module as the hmmlearn model of the same parameters; needs hmmlearn.

    Raises:
        TypeError: a module that hmmlearn has no class for. ValueError: covariances that it has no form for.
    """
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
        found.means_, found.covars_ = _array(model.means), _array(model.covariances)
    elif isinstance(model, MixtureGaussianHMM):
        found = hmm.GMMHMM(size, model.num_mixtures, covariance_type=model.covariance_type)
        found.n_features = model.obs_dim
        found.weights_ = _array(model.log_weights.exp())
        found.means_, found.covars_ = _array(model.means), _array(model.covariances)
    elif isinstance(model, CategoricalHMM):
        found = hmm.CategoricalHMM(size)
        found.n_features, found.emissionprob_ = model.num_symbols, _array(model.log_probs.exp())
    elif isinstance(model, PoissonHMM):
        found = hmm.PoissonHMM(size)
        found.n_features, found.lambdas_ = model.obs_dim, _array(model.rates)
    else:
        raise TypeError(f"model: expected a module that hmmlearn has a class for, got {type(model).__name__}")
    found.startprob_, found.transmat_ = _array(model.log_initial.exp()), _array(model.log_transition.exp())
    return found


def _log(probabilities: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, dtype=np.float64))


def _array(x: Any) -> Any:
    return x.detach().double().cpu().numpy().copy()
