"""An aligner that learns from recordings and their phones alone, and then says when each phone was spoken."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional.emissions import GaussianMixture

from .compile import Words, compile_words, inventory_of, phones_of, problem_of
from .corpus import Word
from .deltas import Normaliser, Slopes, add_deltas, by_speaker, cmvn, normaliser, voices_of
from .embedded import make_batches, with_laws
from .labels import Segment
from .settings import AlignerSettings
from .trained import Learnt, PhoneLoop, is_learnt, make_phone_loop, read_learnt, write_learnt
from .training import Trainer, TrainingStep, silence_shares

__all__ = ["AlignerSettings", "Alignment", "PhoneAligner", "TrainingReport", "TrainingStep"]


class Alignment(NamedTuple):
    """When each word and phone of a transcript was spoken."""

    words: list[Segment]
    """With the mean confidence of their frames."""
    phones: list[Segment]
    """As the transcript writes them; confidence: the mean posterior probability that a frame is the phone's."""
    log_likelihood: float
    """log p(features given the transcript), nats."""
    deviations: list[float]
    """Standard deviation of the posterior of each phone's start, seconds."""


@dataclass(frozen=True)
class TrainingReport:
    """What `PhoneAligner.fit` did."""

    steps: list[TrainingStep]
    skipped: dict[str, str]
    """Why utterances took no part, by their names."""
    num_utterances: int
    num_frames: int
    num_gaussians: int
    seconds: float


class PhoneAligner:
    """A left-to-right mixture-Gaussian HMM for each phone, trained from a flat start by embedded re-estimation.

    Broad classes of phones come first, from all paths through the transcripts alike, with silence seeded by the quiet
    frames; then phones, each believed to be like its class until its own frames outweigh that; then, where there are
    frames enough, states of phones with distributions of their own, and mixtures. There is no chance in it.

    Args:
        settings: default `AlignerSettings()`.

    References: Young et al. 2006 (The HTK Book), chapter 3 (flat start, embedded re-estimation, splitting); Gauvain and
    Lee 1994 (estimates under priors); Ueda and Nakano 1998 (annealing).

    Example:
        >>> noise = torch.Generator().manual_seed(0)
        >>> levels = {"SIL": 0.0, "AA": 4.0, "S": -4.0}
        >>> said = [["SIL", "AA", "S", "SIL"], ["SIL", "S", "AA", "SIL"], ["SIL", "AA", "SIL"]] * 4
        >>> features = {
        ...     str(i): torch.cat([levels[p] + torch.randn(12, 2, generator=noise) for p in phones])
        ...     for i, phones in enumerate(said)
        ... }
        >>> aligner = PhoneAligner()
        >>> report = aligner.fit(features, {str(i): phones for i, phones in enumerate(said)})
        >>> ready = aligner.normalise(features)
        >>> [(s.label, round(s.start, 2), round(s.end, 2)) for s in aligner.align(ready["2"], said[2]).phones]
        [('SIL', 0.0, 0.12), ('AA', 0.12, 0.24), ('SIL', 0.24, 0.36)]
    """

    def __init__(self, settings: AlignerSettings | None = None) -> None:
        self.settings = AlignerSettings() if settings is None else settings
        self.report: TrainingReport | None = None
        self._learnt: Learnt | None = None

    @property
    def phones(self) -> list[str]:
        """The phones that were heard in training, sorted, the silence among them."""
        return [] if self._learnt is None else list(self._learnt.inventory.phones)

    def normalise(self, features: Mapping[str, Tensor], speakers: Mapping[str, str] | None = None) -> dict[str, Tensor]:
        """Features with slopes, normalised by speaker: what `align` takes.

        Args:
            features: (T, D) of each utterance, as `extract` makes them.
            speakers: of each utterance, default one for all; the more is given of one the better.

        Returns:
            (T, 3 D) of each utterance.
        """
        with_slopes = {name: add_deltas(x, self.settings.delta_window) for name, x in features.items()}
        return cmvn(with_slopes, speakers)

    def voices(
        self, features: Mapping[str, Tensor], speakers: Mapping[str, str] | None = None
    ) -> dict[str, Normaliser]:
        """Of each utterance what `normalise` does to its features with slopes, those of its speaker together.

        Args:
            features, speakers: as `normalise` takes them.
        """
        return voices_of(features, speakers, self.settings.delta_window)

    def fit(
        self,
        features: Mapping[str, Tensor],
        transcripts: Mapping[str, Words],
        speakers: Mapping[str, str] | None = None,
        energies: Mapping[str, Tensor] | None = None,
        progress: Callable[[TrainingStep], Any] | None = None,
    ) -> TrainingReport:
        """Train on utterances. What cannot be used is left out; `TrainingReport.skipped` says why.

        Args:
            features: (T, D) of each utterance, as `extract` makes them.
            transcripts: of each utterance, words with their phones, or phones.
            speakers: of each utterance, default one for all.
            energies: log energies (T,) of each utterance, which tell silence; default the first feature, which is the
                level of MFCCs.
            progress: is called after each iteration of EM; what it raises ends training, the aligner stays as it was.

        Raises:
            ValueError: no utterance can be used; the message gives the reason of the first one.

        Cost: about 80 iterations, 60 of them over classes alone, O(T S) each for S states of an utterance's transcript.
        """
        started = time.perf_counter()
        settings = self.settings
        problems = {name: problem_of(settings, x, transcripts.get(name)) for name, x in features.items()}
        skipped = {name: str(problem) for name, problem in problems.items() if problem is not None}
        names = [name for name in sorted(features) if name not in skipped]
        if not names:
            first = next(iter(skipped.items()), None)
            reason = "there is none" if first is None else f"{first[0]}: {first[1]}"
            raise ValueError(f"features: expected at least one utterance that can be used; {reason}")
        raw = [features[name] for name in names]
        average = normaliser(Slopes(raw, settings.delta_window))
        voices = voices_of(dict(zip(names, raw, strict=True)), speakers, settings.delta_window)
        x = Slopes(raw, settings.delta_window, [voices[name] for name in names])
        inventory = inventory_of(settings, [transcripts[name] for name in names])
        like = torch.zeros(1, inventory.num_symbols * inventory.states, dtype=torch.float64)
        graphs = [compile_words(settings, inventory, transcripts[name], like)[0] for name in names]
        batches = make_batches(x, graphs, settings.batch_frames)
        del graphs
        levels = {name: features[name][:, 0] if energies is None else energies[name] for name in names}
        quiet = _quiet(levels, speakers)
        trainer = Trainer(settings, inventory, batches, x, [quiet[n] for n in names], progress)
        del quiet
        estimator, model, sums, steps = trainer.run()
        self._learnt = Learnt(inventory, estimator.laws, model, sums.durations[:, 1], average)
        used = model.emission.log_weights > -inf
        self.report = TrainingReport(
            steps, skipped, len(names), sum(map(len, raw)), int(used.sum()), time.perf_counter() - started
        )
        return self.report

    def align(self, x: Tensor, words: Words) -> Alignment:
        """When each word and phone was spoken.

        Args:
            x: (T, 3 D), features that `normalise` made.
            words: words with their phones, or phones. A phone that was not heard in training is taken for one like all
                of its class, with a warning.

        Returns:
            `Alignment`, in seconds: a boundary between frames t - 1 and t lies at t hops.

        Raises:
            RuntimeError: the aligner is not trained. ValueError: an unknown phone (`UnknownPhone`), no phones, features
            that are not (T, 3 D) or not finite, or too short for the transcript; the message says by how much.

        Cost: O(T S) for S states of the transcript, a few passes.
        """
        learnt = self._trained()
        inventory, model = learnt.inventory, learnt.model
        width, hop = model.emission.means.shape[-1], self.settings.features.frame_shift
        if x.ndim != 2 or x.shape[1] != width:
            raise ValueError(f"x: expected shape (T, {width}), as normalise makes it, got {tuple(x.shape)}")
        if (problem := problem_of(self.settings, x, words)) is not None:
            raise problem
        labels, name_of = phones_of(words), self.settings.phone_set().name
        unheard = sorted({name_of(phone) for phone in labels} - {*inventory.phones})
        if unheard:
            warnings.warn(
                f"phones not heard in training are taken for any of their class: {' '.join(unheard)}", stacklevel=2
            )
        with torch.no_grad():
            emission = GaussianMixture().log_prob(x.to(torch.float64), model.emission)
            columns = emission.new_zeros(1, len(learnt.laws))
            graph, transcript = compile_words(self.settings, inventory, words, columns)
            graph = hf.weigh_graph(with_laws(graph, learnt.laws), model.log_stay[:, 0].exp())
            found = hf.forced_align(emission, graph)
            scores = hf.state_scores(graph, emission)
            total = hf.log_likelihood(graph.log_initial, graph.log_transition, scores, log_final=graph.log_final)
        of_word = hf.transcript_tokens(transcript).words
        starts, ends = found.start.tolist(), found.end.tolist()
        confidences, spread = found.confidence.tolist(), found.start_deviation.tolist()
        said = [n for n, start in enumerate(starts) if start >= 0]
        phones = [Segment(labels[n], starts[n] * hop, ends[n] * hop, confidences[n]) for n in said]
        spoken = []
        for i, word in enumerate(words):
            own = [n for n in said if of_word[n] == i]
            if own:
                frames = [ends[n] - starts[n] for n in own]
                sure = sum(f * confidences[n] for f, n in zip(frames, own, strict=True)) / sum(frames)
                label = word.label if isinstance(word, Word) else ""
                spoken.append(Segment(label, starts[own[0]] * hop, ends[own[-1]] * hop, sure))
        return Alignment(spoken, phones, float(total), [spread[n] * hop for n in said])

    def phone_loop(self) -> PhoneLoop:
        """All phones, each after any other as often as it was heard, as one HMM.

        Raises:
            RuntimeError: the aligner is not trained.
        """
        return make_phone_loop(self._trained(), self.settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trained aligner to `path`; an interrupted save leaves the file that was there.

        Raises:
            RuntimeError: it is not trained. OSError: the folder does not exist or cannot be written to.
        """
        write_learnt(path, self._trained(), self.settings)

    @staticmethod
    def is_file(path: str | os.PathLike[str]) -> bool:
        """Whether `path` is a file of `save`; OSError where there is none."""
        return is_learnt(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The aligner that `save` wrote to `path`, without its report.

        Raises:
            OSError: there is no such file. ValueError: it is not a whole file of `save`.
        """
        learnt, settings = read_learnt(path)
        aligner = cls(settings)
        aligner._learnt = learnt
        return aligner

    def _trained(self) -> Learnt:
        if self._learnt is None:
            raise RuntimeError("the aligner is not trained; fit(features, transcripts) trains it, load(path) reads one")
        return self._learnt


def _quiet(energies: Mapping[str, Tensor], speakers: Mapping[str, str] | None) -> dict[str, Tensor]:
    """p(silence) of each frame, speaker by speaker."""
    found: dict[str, Tensor] = {}
    for own in by_speaker(energies, speakers):
        found.update(zip(own, silence_shares([energies[name] for name in own]), strict=True))
    return found
