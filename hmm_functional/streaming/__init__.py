"""Streams, a chunk at a time, as pure state machines: posteriors and best paths of chains and of semi-Markov models."""

from .posterior import StreamState, stream_flush, stream_init, stream_step
from .semi_markov_filter import (
    SemiMarkovFiltered,
    SemiMarkovStreamState,
    semi_markov_forward,
    semi_markov_remaining,
    semi_markov_stream_init,
    semi_markov_stream_step,
)
from .semi_markov_posterior import (
    SemiMarkovSmoothState,
    semi_markov_smooth_stream_flush,
    semi_markov_smooth_stream_init,
    semi_markov_smooth_stream_step,
)
from .semi_markov_viterbi import (
    SemiMarkovViterbiStreamState,
    semi_markov_viterbi_stream_flush,
    semi_markov_viterbi_stream_init,
    semi_markov_viterbi_stream_reset,
    semi_markov_viterbi_stream_step,
)
from .viterbi import (
    ViterbiStreamState,
    viterbi_stream_flush,
    viterbi_stream_init,
    viterbi_stream_reset,
    viterbi_stream_step,
)

__all__ = [
    "SemiMarkovFiltered",
    "SemiMarkovSmoothState",
    "SemiMarkovStreamState",
    "SemiMarkovViterbiStreamState",
    "StreamState",
    "ViterbiStreamState",
    "semi_markov_forward",
    "semi_markov_remaining",
    "semi_markov_smooth_stream_flush",
    "semi_markov_smooth_stream_init",
    "semi_markov_smooth_stream_step",
    "semi_markov_stream_init",
    "semi_markov_stream_step",
    "semi_markov_viterbi_stream_flush",
    "semi_markov_viterbi_stream_init",
    "semi_markov_viterbi_stream_reset",
    "semi_markov_viterbi_stream_step",
    "stream_flush",
    "stream_init",
    "stream_step",
    "viterbi_stream_flush",
    "viterbi_stream_init",
    "viterbi_stream_reset",
    "viterbi_stream_step",
]
