"""Aligners: transcripts to frames, and sequences to each other."""

from .ctc import CTCAligner, CTCSpan

__all__ = ["CTCAligner", "CTCSpan"]
