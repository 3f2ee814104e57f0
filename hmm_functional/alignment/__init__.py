"""Which frame belongs to which token of a transcript: banded chains, and what is read off them."""

from .ctc import CTCAlignment, ctc_align, ctc_graph, ctc_log_likelihood
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

__all__ = [
    "ANY",
    "FREE",
    "AlignmentGraph",
    "CTCAlignment",
    "CTCSegments",
    "PrefixSearch",
    "SoftAlignment",
    "Topology",
    "beta_binomial_prior",
    "ctc_align",
    "ctc_collapse",
    "ctc_graph",
    "ctc_greedy_search",
    "ctc_log_likelihood",
    "ctc_prefix_search",
    "ctc_segment",
    "monotonic_alignment_search",
    "soft_monotonic_alignment",
    "state_scores",
    "token_durations",
    "token_graph",
    "weigh_graph",
]
