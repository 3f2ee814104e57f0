"""Hidden Markov models as PyTorch modules: parameters, and one functional call of `hmm_functional` a method."""

from importlib.metadata import PackageNotFoundError, version

from .contextual import ContextualNeuralHMM
from .convert import from_dynamax, from_hmmlearn, from_pomegranate, to_dynamax, to_hmmlearn, to_pomegranate
from .data import Batch
from .discrete import (
    BernoulliEmission,
    BernoulliHMM,
    CategoricalEmission,
    CategoricalHMM,
    PoissonEmission,
    PoissonHMM,
)
from .emission import Emission
from .fit import FitReport, NotConverged, Progress
from .gaussian import GaussianEmission, GaussianHMM
from .hmm import BaseHMM
from .layers import HMMLayer
from .mixture import MixtureGaussianEmission, MixtureGaussianHMM
from .neural import NeuralHMM
from .product import ProductEmission
from .regression import LinearRegressionEmission, LinearRegressionHMM
from .residuals import PseudoResiduals, pseudo_residuals
from .scores import HMMPyTorch
from .selection import Selection, match_states, select_num_states, standard_errors
from .streaming import StreamingHMMProcessor
from .student_t import StudentTEmission, StudentTHMM
from .trainable import EmissionHMM

try:
    __version__ = version("pytorch-hmm")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "BaseHMM",
    "Batch",
    "BernoulliEmission",
    "BernoulliHMM",
    "CategoricalEmission",
    "CategoricalHMM",
    "ContextualNeuralHMM",
    "Emission",
    "EmissionHMM",
    "FitReport",
    "GaussianEmission",
    "GaussianHMM",
    "HMMLayer",
    "HMMPyTorch",
    "LinearRegressionEmission",
    "LinearRegressionHMM",
    "MixtureGaussianEmission",
    "MixtureGaussianHMM",
    "NeuralHMM",
    "NotConverged",
    "PoissonEmission",
    "PoissonHMM",
    "ProductEmission",
    "Progress",
    "PseudoResiduals",
    "Selection",
    "StreamingHMMProcessor",
    "StudentTEmission",
    "StudentTHMM",
    "__version__",
    "from_dynamax",
    "from_hmmlearn",
    "from_pomegranate",
    "match_states",
    "pseudo_residuals",
    "select_num_states",
    "standard_errors",
    "to_dynamax",
    "to_hmmlearn",
    "to_pomegranate",
]
