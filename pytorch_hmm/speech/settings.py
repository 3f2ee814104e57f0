"""The settings of an aligner, with where each default comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from hmm_functional._check import need_count
from hmm_functional.emissions.constraints import need_at_least

from .features import FeatureSettings
from .phones import PhoneSet


@dataclass(frozen=True)
class AlignerSettings:
    """What a `PhoneAligner` is made of; the defaults are the field's usual numbers.

    Boundaries led to two parts of the method, and to no number in it: annealing, which held-out likelihood and those of
    a recording outside the reported ones both asked for; and several starts, since one had gone astray with a recording
    left out. The likelihood chooses among starts; on the five utterances it takes one that meets fewer boundaries
    within 20 ms (72 %) than the middle one (80 %) does.

    Args:
        features: what frames are made of; their slopes are added.
        states: states of a phone, the fewest frames it lasts (HTK, Kaldi and the Montreal Forced Aligner: 3).
        iterations: of EM in each stage; the four stages of one start make 40 (Kaldi's monophones).
        acoustic_scales: what log-densities are multiplied by in the first iteration, from where the factor grows to 1:
            deterministic annealing, so that the flat start does not decide. One start for each; the most likely
            classes go on (0.1, which Kaldi's monophones begin with, and half a decade to each side).
        mean_prior: frames that the mean of a phone's broad class counts for (Kaldi's MAP estimates: 10).
        variance_prior: frames that its variance counts for (the same: 50).
        duration_prior: phones that its mean duration counts for (the same, of weights: 10).
        frames_per_gaussian: frames that each Gaussian needs: a phone's states have distributions of their own, and
            these more than one Gaussian, where there are enough (HTK's tutorial: 100, for states).
        max_mixtures: Gaussians of a distribution at the most.
        variance_floor: the least variance, a share of that of all frames (HTK: 0.01).
        delta_window: frames to each side that slopes are taken over (HTK: 2).
        silence: the phone of silences.
        pauses: where the reader may pause without a silence in the transcript, at its ends and between words: "auto",
            in transcripts without any; "always"; "never".
        classes: broad classes of phones; see `PhoneSet`.
        batch_frames: frames, padding included, that are worked on at once; more take more memory (20 kB each, or so).
    """

    features: FeatureSettings = field(default_factory=FeatureSettings)
    states: int = 3
    iterations: int = 10
    acoustic_scales: tuple[float, ...] = (0.03, 0.1, 0.3)
    mean_prior: float = 10.0
    variance_prior: float = 50.0
    duration_prior: float = 10.0
    frames_per_gaussian: float = 100.0
    max_mixtures: int = 8
    variance_floor: float = 0.01
    delta_window: int = 2
    silence: str = "SIL"
    pauses: Literal["auto", "always", "never"] = "auto"
    classes: Mapping[str, str] | None = None
    batch_frames: int = 8192

    def __post_init__(self) -> None:
        for name in ("states", "iterations", "max_mixtures", "delta_window", "batch_frames"):
            need_count(name, getattr(self, name), 1)
        need_at_least("frames_per_gaussian", self.frames_per_gaussian, 1.0)
        need_at_least("variance_prior", self.variance_prior, 3.0)
        for name in ("mean_prior", "duration_prior", "variance_floor"):
            need_at_least(name, getattr(self, name), 0.0)
        object.__setattr__(self, "acoustic_scales", tuple(self.acoustic_scales))
        if not self.acoustic_scales or not all(0 < scale <= 1 for scale in self.acoustic_scales):
            raise ValueError(f"acoustic_scales: expected numbers above 0, at most 1, got {self.acoustic_scales}")
        if self.pauses not in ("auto", "always", "never"):
            raise ValueError(f"pauses: expected 'auto', 'always' or 'never', got {self.pauses!r}")
        if self.classes is not None:
            object.__setattr__(self, "classes", dict(self.classes))
        self.phone_set()

    def phone_set(self) -> PhoneSet:
        """The phones there may be."""
        return PhoneSet(self.classes, self.silence)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` made of settings."""
        return cls(**{**values, "features": FeatureSettings(**values["features"])})
