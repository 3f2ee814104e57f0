"""Laws of how long states last, proper on min_duration..max_duration: log-probabilities, and their M-steps.

A law is a function `*_log_duration` that gives `log_duration` (..., K, D_max), as the semi-Markov functions take it,
and a family, which `hmm_functional.learning` takes as `duration`.
"""

from .categorical import Categorical, CategoricalParameters, Uniform, UniformParameters, uniform_log_duration
from .continuous import (
    Gamma,
    GammaParameters,
    Gaussian,
    GaussianParameters,
    gamma_log_duration,
    gaussian_log_duration,
)
from .counts import (
    Geometric,
    GeometricParameters,
    NegativeBinomial,
    NegativeBinomialParameters,
    Poisson,
    PoissonParameters,
    geometric_log_duration,
    negative_binomial_log_duration,
    poisson_log_duration,
)
from .support import DurationFamily

__all__ = [
    "Categorical",
    "CategoricalParameters",
    "DurationFamily",
    "Gamma",
    "GammaParameters",
    "Gaussian",
    "GaussianParameters",
    "Geometric",
    "GeometricParameters",
    "NegativeBinomial",
    "NegativeBinomialParameters",
    "Poisson",
    "PoissonParameters",
    "Uniform",
    "UniformParameters",
    "gamma_log_duration",
    "gaussian_log_duration",
    "geometric_log_duration",
    "negative_binomial_log_duration",
    "poisson_log_duration",
    "uniform_log_duration",
]
