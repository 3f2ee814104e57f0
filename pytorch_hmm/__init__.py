"""Hidden Markov models as PyTorch modules: parameters, and one functional call of `hmm_functional` a method."""

from importlib.metadata import PackageNotFoundError, version

from .discrete import CategoricalHMM
from .emission import EmissionHMM
from .gaussian import GaussianHMM
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
    "CategoricalHMM",
    "EmissionHMM",
    "GaussianHMM",
    "HMMLayer",
    "HMMPyTorch",
    "MixtureGaussianHMM",
    "StreamingHMMProcessor",
    "__version__",
]
