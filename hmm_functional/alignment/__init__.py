"""Which frame belongs to which token of a transcript: banded chains, and what is read off them."""

from .compiler import stack_graphs, transcript_graph
from .forced import BoundaryPosteriors, ForcedAlignment, boundary_posteriors, forced_align
from .graph import ANY, FREE, AlignmentGraph, state_scores, weigh_graph
from .topology import Topology, token_graph
from .transcript import Alternatives, Skippable, TranscriptTokens, Wildcard, transcript_tokens

__all__ = [
    "ANY",
    "FREE",
    "AlignmentGraph",
    "Alternatives",
    "BoundaryPosteriors",
    "ForcedAlignment",
    "Skippable",
    "Topology",
    "TranscriptTokens",
    "Wildcard",
    "boundary_posteriors",
    "forced_align",
    "stack_graphs",
    "state_scores",
    "token_graph",
    "transcript_graph",
    "transcript_tokens",
    "weigh_graph",
]
