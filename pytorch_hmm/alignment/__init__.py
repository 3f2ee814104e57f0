"""Aligners: transcripts to frames, and sequences to each other."""

from .ctc import CTCAligner, CTCSpan
from .dtw import DTWAligner, Warping
from .forced import AlignedSegment, AlignedTranscript, ForcedAligner

__all__ = [
    "AlignedSegment",
    "AlignedTranscript",
    "CTCAligner",
    "CTCSpan",
    "DTWAligner",
    "ForcedAligner",
    "Warping",
]
