"""Which frame belongs to which token of a transcript: banded chains, and what is read off them."""

from .compiler import stack_graphs, transcript_graph
from .ctc import ctc_align, ctc_graph, ctc_log_likelihood
from .forced import BoundaryPosteriors, ForcedAlignment, boundary_posteriors, forced_align
from .graph import ANY, FREE, AlignmentGraph, state_scores, weigh_graph
from .monotonic import (
    SoftAlignment,
    beta_binomial_prior,
    monotonic_alignment_search,
    soft_monotonic_alignment,
    token_durations,
)
from .prefix_search import PrefixSearch, ctc_collapse, ctc_greedy_search, ctc_prefix_search
from .segmentation import CTCSegments, ctc_segment
from .topology import Topology, token_graph
from .transcript import Alternatives, Skippable, TranscriptTokens, Wildcard, transcript_tokens

__all__ = [
    "ANY",
    "FREE",
    "AlignmentGraph",
    "Alternatives",
    "BoundaryPosteriors",
    "CTCSegments",
    "ForcedAlignment",
    "PrefixSearch",
    "Skippable",
    "SoftAlignment",
    "Topology",
    "TranscriptTokens",
    "Wildcard",
    "beta_binomial_prior",
    "boundary_posteriors",
    "ctc_align",
    "ctc_collapse",
    "ctc_graph",
    "ctc_greedy_search",
    "ctc_log_likelihood",
    "ctc_prefix_search",
    "ctc_segment",
    "forced_align",
    "monotonic_alignment_search",
    "soft_monotonic_alignment",
    "stack_graphs",
    "state_scores",
    "token_durations",
    "token_graph",
    "transcript_graph",
    "transcript_tokens",
    "weigh_graph",
]
