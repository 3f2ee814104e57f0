"""Transition matrices of common topologies, and of speech."""

from .speech import Hierarchy, duration_constrained, from_durations, hierarchical, prosodic
from .topologies import ergodic, from_mask, left_to_right

__all__ = [
    "Hierarchy",
    "duration_constrained",
    "ergodic",
    "from_durations",
    "from_mask",
    "hierarchical",
    "left_to_right",
    "prosodic",
]
