"""Hidden Markov models as pure functions of torch, JAX or NumPy arrays: exact, batched, differentiable."""

from ._types import (
    ExpandedChain,
    Forward,
    ForwardBackward,
    SemiMarkovPath,
    SemiMarkovPosterior,
    SemiMarkovViterbi,
    Viterbi,
)
from .alignment import (
    AlignmentGraph,
    Alternatives,
    BoundaryPosteriors,
    ForcedAlignment,
    Skippable,
    Topology,
    TranscriptTokens,
    Wildcard,
    boundary_posteriors,
    forced_align,
    stack_graphs,
    state_scores,
    token_graph,
    transcript_graph,
    transcript_tokens,
    weigh_graph,
)
from .associative import parallel_messages as _parallel  # noqa: F401  (registers its kernel)
from .builders import (
    Hierarchy,
    duration_constrained,
    ergodic,
    from_durations,
    from_mask,
    hierarchical,
    left_to_right,
    prosodic,
)
from .covariates import LogisticTransitions, logistic_transitions, maximize_logistic_transitions
from .decode import log_joint, viterbi, viterbi_k_best
from .durations.chains import duration_chain, negative_binomial_chain
from .durations.frames import expand_states, scale_durations
from .emissions import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_log_prob,
    gmm_log_likelihood,
    linear_regression_log_prob,
    poisson_log_prob,
    student_t_log_prob,
)
from .entropy import posterior_entropy
from .global_variance import GlobalVariance
from .kernels import cpu as _cpu  # noqa: F401  (registers its kernel)
from .likelihood import forecast, forward, log_likelihood
from .observation import mask_emission, restrict_states
from .posterior import (
    expected_transitions,
    forward_backward,
    pair_posteriors,
    posterior_decode,
    smooth_fixed_lag,
)
from .sampling import sample, sample_posterior
from .semi_markov import (
    semi_markov_completed,
    semi_markov_forward_backward,
    semi_markov_log_likelihood,
    semi_markov_sample,
    semi_markov_sample_posterior,
    semi_markov_viterbi,
)
from .semi_markov_smoothing import (
    SemiMarkovSmoothState,
    semi_markov_smooth_stream_flush,
    semi_markov_smooth_stream_init,
    semi_markov_smooth_stream_step,
)
from .semi_markov_streaming import (
    SemiMarkovFiltered,
    SemiMarkovStreamState,
    semi_markov_forward,
    semi_markov_remaining,
    semi_markov_stream_init,
    semi_markov_stream_step,
)
from .semi_markov_viterbi_streaming import (
    SemiMarkovViterbiStreamState,
    semi_markov_viterbi_stream_flush,
    semi_markov_viterbi_stream_init,
    semi_markov_viterbi_stream_reset,
    semi_markov_viterbi_stream_step,
)
from .stationary import stationary
from .streaming import StreamState, stream_flush, stream_init, stream_step
from .synthesis import mlpg
from .transition import Banded, LowRank, Sparse
from .viterbi_streaming import (
    ViterbiStreamState,
    viterbi_stream_flush,
    viterbi_stream_init,
    viterbi_stream_reset,
    viterbi_stream_step,
)
from .windows import apply_windows

__all__ = [
    "AlignmentGraph",
    "Alternatives",
    "Banded",
    "BoundaryPosteriors",
    "ExpandedChain",
    "ForcedAlignment",
    "Forward",
    "ForwardBackward",
    "GlobalVariance",
    "Hierarchy",
    "LogisticTransitions",
    "LowRank",
    "SemiMarkovFiltered",
    "SemiMarkovPath",
    "SemiMarkovPosterior",
    "SemiMarkovSmoothState",
    "SemiMarkovStreamState",
    "SemiMarkovViterbi",
    "SemiMarkovViterbiStreamState",
    "Skippable",
    "Sparse",
    "StreamState",
    "Topology",
    "TranscriptTokens",
    "Viterbi",
    "ViterbiStreamState",
    "Wildcard",
    "apply_windows",
    "bernoulli_log_prob",
    "boundary_posteriors",
    "categorical_log_prob",
    "duration_chain",
    "duration_constrained",
    "ergodic",
    "expand_states",
    "expected_transitions",
    "forced_align",
    "forecast",
    "forward",
    "forward_backward",
    "from_durations",
    "from_mask",
    "gaussian_log_prob",
    "gmm_log_likelihood",
    "hierarchical",
    "left_to_right",
    "linear_regression_log_prob",
    "log_joint",
    "log_likelihood",
    "logistic_transitions",
    "mask_emission",
    "maximize_logistic_transitions",
    "mlpg",
    "negative_binomial_chain",
    "pair_posteriors",
    "poisson_log_prob",
    "posterior_decode",
    "posterior_entropy",
    "prosodic",
    "restrict_states",
    "sample",
    "sample_posterior",
    "scale_durations",
    "semi_markov_completed",
    "semi_markov_forward",
    "semi_markov_forward_backward",
    "semi_markov_log_likelihood",
    "semi_markov_remaining",
    "semi_markov_sample",
    "semi_markov_sample_posterior",
    "semi_markov_smooth_stream_flush",
    "semi_markov_smooth_stream_init",
    "semi_markov_smooth_stream_step",
    "semi_markov_stream_init",
    "semi_markov_stream_step",
    "semi_markov_viterbi",
    "semi_markov_viterbi_stream_flush",
    "semi_markov_viterbi_stream_init",
    "semi_markov_viterbi_stream_reset",
    "semi_markov_viterbi_stream_step",
    "smooth_fixed_lag",
    "stack_graphs",
    "state_scores",
    "stationary",
    "stream_flush",
    "stream_init",
    "stream_step",
    "student_t_log_prob",
    "token_graph",
    "transcript_graph",
    "transcript_tokens",
    "viterbi",
    "viterbi_k_best",
    "viterbi_stream_flush",
    "viterbi_stream_init",
    "viterbi_stream_reset",
    "viterbi_stream_step",
    "weigh_graph",
]
