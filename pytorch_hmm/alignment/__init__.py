"""Aligners: transcripts to frames, and sequences to each other."""

from .forced import AlignedSegment, AlignedTranscript, ForcedAligner

__all__ = ["AlignedSegment", "AlignedTranscript", "ForcedAligner"]
