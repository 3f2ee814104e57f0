"""Which frame belongs to which token of a transcript: banded chains, and what is read off them."""

from .graph import ANY, FREE, AlignmentGraph, state_scores, weigh_graph
from .topology import Topology, token_graph

__all__ = ["ANY", "FREE", "AlignmentGraph", "Topology", "state_scores", "token_graph", "weigh_graph"]
