"""Parameters of dynamax as modules, and back."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from ..discrete import BernoulliHMM, CategoricalHMM, PoissonHMM
from ..gaussian import GaussianHMM
from ..mixture import MixtureGaussianHMM
from ..trainable import EmissionHMM
from .values import filled, logs, read, symmetric, untied, written

# dynamax keeps matrices as covariances and all else as standard deviations: by the name of the field, its axes in a
# model of one Gaussian a state, and the form here
_FIELDS: dict[str, tuple[int, Any]] = {
    "covs": (3, "full"),
    "cov": (2, "tied"),
    "scale_diags": (2, "diag"),
    "scales": (1, "spherical"),
}
_CLASSES = {
    (GaussianHMM, "full"): ("GaussianHMM", "covs"),
    (GaussianHMM, "tied"): ("SharedCovarianceGaussianHMM", "cov"),
    (GaussianHMM, "diag"): ("DiagonalGaussianHMM", "scale_diags"),
    (GaussianHMM, "spherical"): ("SphericalGaussianHMM", "scales"),
    (MixtureGaussianHMM, "full"): ("GaussianMixtureHMM", "covs"),
    (MixtureGaussianHMM, "diag"): ("DiagonalGaussianMixtureHMM", "scale_diags"),
}


def from_dynamax(params: Any) -> EmissionHMM:
    """Parameters of a dynamax model as a module in float64; dynamax and JAX need not be there.

    Args:
        params: of `GaussianHMM`, `DiagonalGaussianHMM`, `SphericalGaussianHMM`, `SharedCovarianceGaussianHMM`,
            `GaussianMixtureHMM`, `DiagonalGaussianMixtureHMM`, `CategoricalHMM`, `PoissonHMM` or `BernoulliHMM`: what
            `initialize` returns first, and `fit_em`. Arrays of JAX or NumPy, told apart by the names of their fields.

    Raises:
        TypeError: parameters of another class. ValueError: parameters that are no model, or a `CategoricalHMM` of
            several symbols a frame.

    Example:
        >>> peer, params = to_dynamax(PoissonHMM(2, rates=[[1.0], [7.0]]).double())
        >>> params.emissions.rates.shape
        (2, 1)
        >>> from_dynamax(params).rates[:, 0]
        tensor([1.0000, 7.0000], dtype=torch.float64, grad_fn=<SelectBackward0>)
    """
    try:
        initial, transition = params.initial.probs, params.transitions.transition_matrix
        emissions = params.emissions._asdict()
    except AttributeError as error:
        raise TypeError(f"params: expected the parameters of a dynamax HMM, got {type(params).__name__}") from error
    kind, names = type(params).__name__, set(emissions)
    if names == {"rates"}:
        rates = read("rates", emissions["rates"], 2)
        return filled(PoissonHMM(*rates.shape), initial, transition, rates=rates)
    if names == {"probs"} and "Multinomial" not in kind:  # its fields and axes are those of CategoricalHMM
        probs = read("probs", emissions["probs"])
        if probs.ndim == 2:
            return filled(BernoulliHMM(*probs.shape), initial, transition, probs=probs)
        if probs.ndim != 3 or probs.shape[1] != 1:
            raise ValueError(f"probs: expected (K, D) of a BernoulliHMM or (K, 1, V), got shape {probs.shape}")
        found = CategoricalHMM(len(probs), probs.shape[2])
        return filled(found, initial, transition, log_probs=logs("probs", probs[:, 0]))
    spread = names - {"weights", "means"}
    field = spread.pop() if len(spread) == 1 and "means" in names else ""
    is_mixture = "weights" in names
    if field not in _FIELDS or (is_mixture and field not in ("covs", "scale_diags")):
        raise TypeError(f"params: expected those of a Gaussian, categorical, Poisson or Bernoulli HMM, got {kind}")
    rank, form = _FIELDS[field]
    values = {"means": read("means", emissions["means"], 2 + is_mixture)}
    covariances = read(field, emissions[field], rank + is_mixture)
    values["covariances"] = symmetric(covariances) if form in ("full", "tied") else covariances**2
    shape = values["means"].shape
    if is_mixture:
        values["log_weights"] = logs("weights", emissions["weights"])
        return filled(MixtureGaussianHMM(shape[0], shape[2], shape[1], form), initial, transition, **values)
    return filled(GaussianHMM(shape[0], shape[1], form), initial, transition, **values)


def to_dynamax(model: EmissionHMM) -> tuple[Any, Any]:
    """A module as a dynamax model and its parameters, in JAX's default dtype; needs dynamax.

    The priors are dynamax's defaults; `fit_em` also takes the properties, which are `found.initialize()[1]`.
    Observations of a `CategoricalHMM` are (T, 1) there.

    Returns:
        the dynamax model, and the parameters that its methods take.

    Raises:
        TypeError: a module that dynamax has no class for. ValueError: covariances that it has no form for.
    """
    model = untied(model)
    import dynamax.hidden_markov_model as peer
    import jax.numpy as jnp
    from dynamax.hidden_markov_model.models.initial import ParamsStandardHMMInitialState
    from dynamax.hidden_markov_model.models.transitions import ParamsStandardHMMTransitions

    sizes: tuple[int, ...]
    if isinstance(model, GaussianHMM | MixtureGaussianHMM):
        is_mixture, form = isinstance(model, MixtureGaussianHMM), model.covariance_type
        family = MixtureGaussianHMM if is_mixture else GaussianHMM
        if (family, form) not in _CLASSES:
            raise ValueError(f"model: expected covariances that dynamax has a form for, got {form!r}")
        kind, field = _CLASSES[family, form]
        covariances = written(model.covariances)
        values = {"means": written(model.means), field: covariances if "cov" in field else np.sqrt(covariances)}
        sizes = (model.obs_dim,)
        if isinstance(model, MixtureGaussianHMM):
            values["weights"], sizes = written(model.log_weights.exp()), (model.num_mixtures, model.obs_dim)
    elif isinstance(model, CategoricalHMM):
        kind, sizes = "CategoricalHMM", (1, model.num_symbols)
        values = {"probs": written(model.log_probs.exp())[:, None]}
    elif isinstance(model, PoissonHMM):
        kind, sizes, values = "PoissonHMM", (model.obs_dim,), {"rates": written(model.rates)}
    elif isinstance(model, BernoulliHMM):
        kind, sizes, values = "BernoulliHMM", (model.obs_dim,), {"probs": written(model.probs)}
    else:
        raise TypeError(f"model: expected a module that dynamax has a class for, got {type(model).__name__}")
    found = getattr(peer, kind)(model.num_states, *sizes)
    # not by `initialize`, which takes seconds to draw a model first
    module = import_module(type(found).__module__)
    params = getattr(module, f"Params{kind}")(
        initial=ParamsStandardHMMInitialState(probs=jnp.asarray(written(model.log_initial.exp()))),
        transitions=ParamsStandardHMMTransitions(transition_matrix=jnp.asarray(written(model.log_transition.exp()))),
        emissions=getattr(module, f"Params{kind}Emissions")(**{name: jnp.asarray(x) for name, x in values.items()}),
    )
    return found, params
