"""Hidden Markov models as PyTorch modules: parameters, and one functional call of `hmm_functional` a method."""

from importlib.metadata import PackageNotFoundError, version

from .convert import from_dynamax, from_hmmlearn, from_pomegranate, to_dynamax, to_hmmlearn, to_pomegranate
from .discrete import BernoulliHMM, CategoricalHMM, PoissonHMM
from .emission import EmissionHMM
from .fit import FitReport, NotConverged, Progress
from .gaussian import GaussianHMM, StudentTHMM
from .hmm import BaseHMM, HMMPyTorch
from .layers import HMMLayer
from .mixture import MixtureGaussianHMM
from .selection import Selection, match_states, select_num_states, standard_errors
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
    "Selection",
    "StreamingHMMProcessor",
    "StudentTHMM",
    "__version__",
    "from_dynamax",
    "from_hmmlearn",
    "from_pomegranate",
    "match_states",
    "select_num_states",
    "standard_errors",
    "to_dynamax",
    "to_hmmlearn",
    "to_pomegranate",
]
