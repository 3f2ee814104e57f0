"""Hidden Markov models as PyTorch modules: parameters, and one functional call of `hmm_functional` a method."""

from importlib.metadata import PackageNotFoundError, version

from .alignment import AlignedSegment, AlignedTranscript, CTCAligner, CTCSpan, DTWAligner, ForcedAligner
from .compat import (
    create_duration_constrained_matrix,
    create_left_to_right_matrix,
    create_phoneme_aware_transitions,
    create_prosody_aware_transitions,
    create_skip_state_matrix,
    create_transition_matrix,
)
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
from .duration import (
    CategoricalDuration,
    Duration,
    GammaDuration,
    GaussianDuration,
    GeometricDuration,
    NegativeBinomialDuration,
    PoissonDuration,
    UniformDuration,
)
from .emission import Emission
from .gaussian import GaussianEmission, GaussianHMM
from .hmm import BaseHMM
from .input_driven import InputDrivenHMM
from .layers import HMMLayer
from .mixture import MixtureGaussianEmission, MixtureGaussianHMM
from .neural import NeuralHMM
from .product import ProductEmission
from .regression import LinearRegressionEmission, LinearRegressionHMM
from .report import FitReport, NotConverged, Progress
from .residuals import PseudoResiduals, pseudo_residuals
from .scores import HMMPyTorch
from .selection import Selection, match_states, select_num_states, standard_errors
from .semi_markov import HSMM, DurationConstrainedHMM, Segments
from .streaming import AdaptiveChunks, StreamingHMMProcessor, StreamingQueue, StreamStatistics
from .student_t import StudentTEmission, StudentTHMM
from .synthesis import Trajectory, choose_durations, generate_trajectory
from .trainable import EmissionHMM

try:
    __version__ = version("pytorch-hmm")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "HSMM",
    "AdaptiveChunks",
    "AlignedSegment",
    "AlignedTranscript",
    "BaseHMM",
    "Batch",
    "BernoulliEmission",
    "BernoulliHMM",
    "CTCAligner",
    "CTCSpan",
    "CategoricalDuration",
    "CategoricalEmission",
    "CategoricalHMM",
    "ContextualNeuralHMM",
    "DTWAligner",
    "Duration",
    "DurationConstrainedHMM",
    "Emission",
    "EmissionHMM",
    "FitReport",
    "ForcedAligner",
    "GammaDuration",
    "GaussianDuration",
    "GaussianEmission",
    "GaussianHMM",
    "GeometricDuration",
    "HMMLayer",
    "HMMPyTorch",
    "InputDrivenHMM",
    "LinearRegressionEmission",
    "LinearRegressionHMM",
    "MixtureGaussianEmission",
    "MixtureGaussianHMM",
    "NegativeBinomialDuration",
    "NeuralHMM",
    "NotConverged",
    "PoissonDuration",
    "PoissonEmission",
    "PoissonHMM",
    "ProductEmission",
    "Progress",
    "PseudoResiduals",
    "Segments",
    "Selection",
    "StreamStatistics",
    "StreamingHMMProcessor",
    "StreamingQueue",
    "StudentTEmission",
    "StudentTHMM",
    "Trajectory",
    "UniformDuration",
    "__version__",
    "choose_durations",
    "create_duration_constrained_matrix",
    "create_left_to_right_matrix",
    "create_phoneme_aware_transitions",
    "create_prosody_aware_transitions",
    "create_skip_state_matrix",
    "create_transition_matrix",
    "from_dynamax",
    "from_hmmlearn",
    "from_pomegranate",
    "generate_trajectory",
    "match_states",
    "pseudo_residuals",
    "select_num_states",
    "standard_errors",
    "to_dynamax",
    "to_hmmlearn",
    "to_pomegranate",
]
