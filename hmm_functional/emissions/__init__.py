"""Emission families: log-densities of observations for every state, and what learning needs of them."""

from .bernoulli import Bernoulli, BernoulliParameters, bernoulli_log_prob
from .categorical import Categorical, CategoricalParameters, categorical_log_prob
from .gaussian import Gaussian, GaussianParameters, gaussian_log_prob
from .mixture import GaussianMixture, MixtureParameters, gmm_log_likelihood
from .moments import GaussianPrior
from .poisson import Poisson, PoissonParameters, poisson_log_prob
from .product import Product, ProductParameters
from .regression import LinearRegression, RegressionParameters, lagged, linear_regression_log_prob
from .student_t import StudentT, StudentTParameters, student_t_log_prob
from .tied import TiedStates

__all__ = [
    "Bernoulli",
    "BernoulliParameters",
    "Categorical",
    "CategoricalParameters",
    "Gaussian",
    "GaussianMixture",
    "GaussianParameters",
    "GaussianPrior",
    "LinearRegression",
    "MixtureParameters",
    "Poisson",
    "PoissonParameters",
    "Product",
    "ProductParameters",
    "RegressionParameters",
    "StudentT",
    "StudentTParameters",
    "TiedStates",
    "bernoulli_log_prob",
    "categorical_log_prob",
    "gaussian_log_prob",
    "gmm_log_likelihood",
    "lagged",
    "linear_regression_log_prob",
    "poisson_log_prob",
    "student_t_log_prob",
]
