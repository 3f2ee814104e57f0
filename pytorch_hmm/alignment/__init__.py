"""Aligners: transcripts to frames, and sequences to each other."""

from .ctc import CTCAligner, CTCSpan
from .dtw import DTWAligner, Warping

__all__ = ["CTCAligner", "CTCSpan", "DTWAligner", "Warping"]
