"""Hidden Markov models as PyTorch modules: parameters, and one functional call of `hmm_functional` a method."""

from importlib.metadata import PackageNotFoundError, version

from .discrete import BernoulliHMM, CategoricalHMM, PoissonHMM
from .emission import EmissionHMM
from .fit import FitReport, NotConverged, Progress
from .gaussian import GaussianHMM, StudentTHMM
from .hmm import BaseHMM, HMMPyTorch
from .layers import HMMLayer
from .mixture import MixtureGaussianHMM
from .streaming import StreamingHMMProcessor

try:
    __version__ = version("pytorch-hmm")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "BaseHMM",
    "BernoulliHMM",
    "CategoricalHMM",
    "EmissionHMM",
    "FitReport",
    "GaussianHMM",
    "HMMLayer",
    "HMMPyTorch",
    "MixtureGaussianHMM",
    "NotConverged",
    "PoissonHMM",
    "Progress",
    "StreamingHMMProcessor",
    "StudentTHMM",
    "__version__",
]
