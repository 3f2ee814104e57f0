"""How well speech was aligned and made: functions of tensors, and classes that accumulate over batches.

Every function takes batches and lengths and gives a value a sequence; every class takes the same, and gives one value
over all it has seen, from sums in float64 that add up over batches and processes. Where there is nothing to take a mean
over, the value is NaN.
"""

from .base import Metric
from .boundaries import BoundaryScore, BoundaryScores, alignment_accuracy, boundary_scores, match_boundaries
from .cepstrum import MelCepstralDistortion, mel_cepstral_distortion
from .durations import DurationError, DurationErrors, duration_errors
from .frames import FrameAccuracy, SegmentIoU, frame_accuracy, segment_iou
from .perceptual import PESQ, STOI, pesq_score, stoi_score
from .pitch import PitchError, PitchErrors, pitch_errors

__all__ = [
    "PESQ",
    "STOI",
    "BoundaryScore",
    "BoundaryScores",
    "DurationError",
    "DurationErrors",
    "FrameAccuracy",
    "MelCepstralDistortion",
    "Metric",
    "PitchError",
    "PitchErrors",
    "SegmentIoU",
    "alignment_accuracy",
    "boundary_scores",
    "duration_errors",
    "frame_accuracy",
    "match_boundaries",
    "mel_cepstral_distortion",
    "pesq_score",
    "pitch_errors",
    "segment_iou",
    "stoi_score",
]
