"""Aligners as modules."""

from .dtw import DTWAligner, Warping

__all__ = ["DTWAligner", "Warping"]
