"""Emission families: log-densities of observations for every state."""

from .categorical import categorical_log_prob
from .gaussian import gaussian_log_prob
from .mixture import gmm_log_likelihood

__all__ = ["categorical_log_prob", "gaussian_log_prob", "gmm_log_likelihood"]
