"""Transcripts and the frames they were spoken in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional.alignment import Alternatives, Skippable, Topology, Wildcard
from hmm_functional.alignment.problem import TooFewFrames

from .symbols import Symbols, lengths_for, need_frame_shift, need_list, seconds


class AlignedSegment(NamedTuple):
    """A token, a silence or a word, and when it was said."""

    label: Any
    """The symbol's or word's name, or its number where it has none; None for a `Wildcard`."""
    token: int | None
    """Which token of the transcript it is, those of all alternatives counted; None for silences and words."""
    word: int | None
    """Which word of the transcript it is, or belongs to; None for silences."""
    start: int
    """Its first frame."""
    end: int
    """One past its last frame."""
    start_time: float | None
    """Seconds, where the frame shift is known."""
    end_time: float | None
    """Seconds."""
    confidence: float
    """The posterior probability that a frame is this token's, mean over its frames."""
    start_deviation: float
    """Standard deviation of the posterior of its start: seconds where the frame shift is known, else frames."""
    end_deviation: float
    """The same of its end."""


class AlignedTranscript(NamedTuple):
    """One utterance."""

    segments: list[AlignedSegment]
    """Tokens and silences in order; they cover all frames."""
    words: list[AlignedSegment]
    """Words in order, from the first frame of their first token to the last of their last one."""
    log_joint: float
    """log p(x, alignment), nats."""


class ForcedAligner(nn.Module):
    """When each token of a transcript was said.

    Args:
        symbols: names of the symbols; default none, symbols are numbers.
        lexicon: pronunciations by word: lists of symbols, or lists of such lists where there are several; a text is
            split on spaces, so that "S UW P" are three symbols. With it, names at the top of a transcript are words.
        emission: what makes scores (..., T, V) of features: an HMM module or an emission of `pytorch_hmm`, or any
            module; default none, scores are given.
        topology: states of symbols, and silences.
        silence: the symbol of silences, a number or a name, in the place of the topology's.
        frame_shift: seconds from one frame to the next; default unknown.
        time_offset: seconds at which frame 0 begins; where frames are windows centred on their time, half a frame shift
            before the first centre.
        method: "viterbi" or "posterior"; see `hmm_functional.forced_align`.

    A transcript is a list of tokens, or of words, which are lists of tokens, `Alternatives`, `Skippable` or `Wildcard`;
    tokens are symbols, numbers or names.

    Raises:
        TypeError, ValueError: settings that make no sense, such as a pronunciation of what are no symbols, whose word
        the message names.

    Example:
        >>> import torch
        >>> from pytorch_hmm import ForcedAligner
        >>> aligner = ForcedAligner(["sil", "a", "b"], lexicon={"ab": ["a", "b"]}, silence="sil", frame_shift=0.01)
        >>> frames = torch.tensor([0, 0, 1, 1, 2, 2, 2])
        >>> scores = torch.where(frames[:, None] == torch.arange(3), 0.0, -9.0)
        >>> found = aligner.align(scores, ["ab"])
        >>> [(s.label, s.start_time, s.end_time) for s in found.segments]
        [('sil', 0.0, 0.02), ('a', 0.02, 0.04), ('b', 0.04, 0.07)]
        >>> [(w.label, w.start, w.end) for w in found.words]
        [('ab', 2, 7)]
    """

    def __init__(
        self,
        symbols: Sequence[str] | None = None,
        *,
        lexicon: Mapping[str, Any] | None = None,
        emission: nn.Module | None = None,
        topology: Topology | None = None,
        silence: int | str | None = None,
        frame_shift: float | None = None,
        time_offset: float = 0.0,
        method: str = "viterbi",
    ) -> None:
        super().__init__()
        self._symbols = Symbols(symbols)
        self.symbols = self._symbols.names
        self.lexicon = None if lexicon is None else dict(lexicon)
        self.emission = emission
        self.topology = Topology() if topology is None else topology
        if silence is not None:
            self.topology = replace(self.topology, silence=self._symbols.number("silence", silence))
        self.frame_shift = need_frame_shift(frame_shift)
        self.time_offset = float(time_offset)
        if method not in ("viterbi", "posterior"):
            raise ValueError(f"method: expected 'viterbi' or 'posterior', got {method!r}")
        self.method = method
        for word, said in (self.lexicon or {}).items():
            self._need_symbols(self._pronunciation(said, f"lexicon[{word!r}]"), f"lexicon[{word!r}]")

    def extra_repr(self) -> str:
        return (
            f"{self._symbols.summary}topology={self.topology}, frame_shift={self.frame_shift}, method={self.method!r}"
        )

    def forward(self, x: Tensor, transcripts: Sequence[Any], lengths: Any = None) -> Tensor:
        """log p(x given the transcript), summed over all its alignments, (B,), or a scalar for one utterance.

        Args: as `align`.
        """
        scores, graph, _ = self._compiled(x, transcripts)
        found: Tensor = hf.log_likelihood(
            graph.log_initial,
            graph.log_transition,
            hf.state_scores(graph, scores),
            lengths=lengths_for(scores, lengths),
            log_final=graph.log_final,
        )
        return found

    log_prob = forward

    @torch.no_grad()
    def align(self, x: Tensor, transcripts: Sequence[Any], lengths: Any = None) -> Any:
        """When the tokens, silences and words of transcripts were said.

        Args:
            x: (T, ...) features or (T, V) scores of one utterance, or (B, T, ...) of several.
            transcripts: the transcript, or B of them.
            lengths: (B,) valid frames; one number for one utterance.

        Returns:
            `AlignedTranscript`, or a list of B. What no alignment is possible for has no segments and a log_joint of
            -inf; a sequence holding NaN has no segments and a log_joint of NaN.

        Raises:
            TypeError: a text as transcript, where a list is wanted. ValueError: a name that is no symbol or no word; a
            transcript that needs more frames than there are.
        """
        scores, graph, readings = self._compiled(x, transcripts)
        try:
            found = hf.forced_align(scores, graph, lengths=lengths_for(scores, lengths), method=self.method)
        except TooFewFrames as error:
            place = "".join(f"[{i}]" for i in error.place)
            raise ValueError(f"transcripts{place}: needs {error.wanted}, x{place} has {error.num_frames}") from None
        fields = [field.cpu() for field in found]
        if scores.ndim == 2:
            return self._read(fields, readings[0])
        rows = zip(*(field.unbind(0) for field in fields), strict=True)
        return [self._read(list(row), reading) for row, reading in zip(rows, readings, strict=True)]

    def _compiled(self, x: Tensor, transcripts: Sequence[Any]) -> tuple[Tensor, hf.AlignmentGraph, list[_Reading]]:
        need_list("transcripts", transcripts, "words" if self.lexicon else "symbols")
        scores = self._scores(x)
        if scores.ndim not in (2, 3):
            raise ValueError(f"x: expected one utterance or a batch of them, got scores of shape {tuple(scores.shape)}")
        if scores.ndim == 3 and len(transcripts) != len(scores):
            raise ValueError(f"transcripts: expected {len(scores)}, one an utterance, got {len(transcripts)}")
        readings, graphs = [], []
        for i, transcript in enumerate([transcripts] if scores.ndim == 2 else transcripts):
            encoded = self._encoded(transcript, "transcript" if scores.ndim == 2 else f"transcripts[{i}]")
            graph = hf.transcript_graph(encoded, like=scores, topology=self.topology)
            graph, elements = _with_silences(graph)
            readings.append(_Reading(transcript, encoded, *hf.transcript_tokens(encoded), elements))
            graphs.append(graph)
        return scores, graphs[0] if scores.ndim == 2 else hf.stack_graphs(graphs), readings

    def _scores(self, x: Tensor) -> Tensor:
        if self.emission is None:
            return x
        for name in ("emission_log_prob", "log_prob"):
            if hasattr(self.emission, name):
                return getattr(self.emission, name)(x)  # type: ignore[no-any-return]
        return self.emission(x)  # type: ignore[no-any-return]

    def _encoded(self, transcript: Any, name: str) -> list[Any]:
        """A transcript with numbers for names, and pronunciations for words."""
        need_list(name, transcript, "words" if self.lexicon else "symbols")
        return [self._item(item, f"{name}[{i}]", is_top=True) for i, item in enumerate(transcript)]

    def _pronunciation(self, said: Any, place: str) -> Any:
        try:
            said = said.split() if isinstance(said, str) else list(said)
        except TypeError:
            raise TypeError(f"{place}: expected a list of symbols, got {type(said).__name__}") from None
        if not said:
            raise ValueError(f"{place}: the lexicon has no pronunciation of it")
        if any(isinstance(way, list | tuple) for way in said):
            return Alternatives([self._item(way, place) for way in said])
        return self._item(said, place)

    def _need_symbols(self, item: Any, place: str) -> None:
        """ValueError for a number that has no name."""
        if isinstance(item, Alternatives | list):
            for part in item if isinstance(item, list) else item.pronunciations:
                self._need_symbols(part, place)
        elif isinstance(item, int) and self.symbols is not None and not 0 <= item < len(self.symbols):
            raise ValueError(f"{place}: expected a symbol in 0..{len(self.symbols) - 1}, got {item}")

    def _item(self, item: Any, place: str, *, is_top: bool = False) -> Any:
        if isinstance(item, str):
            if is_top and self.lexicon is not None:
                if item not in self.lexicon:
                    raise ValueError(f"{place}: unknown word {item!r}, the lexicon has {len(self.lexicon)} others")
                return self._pronunciation(self.lexicon[item], f"{place} ({item})")
            return self._symbols.number(place, item)
        if isinstance(item, Wildcard):
            return item
        if isinstance(item, Skippable):
            return Skippable(self._item(item.item, place, is_top=is_top), item.probability)
        if isinstance(item, Alternatives):
            ways = [self._item(way, f"{place}[{i}]") for i, way in enumerate(item.pronunciations)]
            return Alternatives(ways, item.probabilities)
        if isinstance(item, list | tuple | np.ndarray):
            return [self._item(part, f"{place}[{i}]") for i, part in enumerate(item)]
        return item

    def _read(self, found: list[Tensor], reading: _Reading) -> AlignedTranscript:
        """The rows of a `ForcedAlignment` of one utterance as segments."""
        _, log_joint, _, start, end, confidence, _, start_deviation, _, end_deviation = found[:10]
        scale = self.frame_shift or 1.0
        segments = []
        for i, token in enumerate(reading.elements):
            first, last = int(start[i]), int(end[i])
            if first < 0:
                continue
            symbol = self.topology.silence if token < 0 else reading.symbols[token]
            segments.append(
                AlignedSegment(
                    self._name(symbol),
                    None if token < 0 else token,
                    None if token < 0 else reading.words[token],
                    first,
                    last,
                    self._time(first),
                    self._time(last),
                    float(confidence[i]),
                    float(start_deviation[i]) * scale,
                    float(end_deviation[i]) * scale,
                )
            )
        segments.sort(key=lambda segment: segment.start)
        words = []
        for word in sorted({s.word for s in segments if s.word is not None}):
            own = [s for s in segments if s.word == word]
            frames = sum(s.end - s.start for s in own)
            confidence_ = sum(s.confidence * (s.end - s.start) for s in own) / frames
            first_, last_ = own[0], own[-1]
            words.append(
                first_._replace(
                    label=reading.word_name(word),
                    token=None,
                    end=last_.end,
                    end_time=last_.end_time,
                    confidence=confidence_,
                    end_deviation=last_.end_deviation,
                )
            )
        return AlignedTranscript(segments, words, float(log_joint))

    def _name(self, symbol: int | None) -> Any:
        if symbol is None or symbol < 0:
            return None
        return self._symbols.name(symbol)

    def _time(self, frame: int) -> float | None:
        return seconds(frame, self.frame_shift, self.time_offset)


class _Reading(NamedTuple):
    """What a transcript says, and what the elements of its graph are."""

    transcript: Any
    encoded: Any
    symbols: tuple[int, ...]
    words: tuple[int, ...]
    elements: list[int]
    """The token of each element, -1 for a silence."""

    def word_name(self, word: int) -> Any:
        """The word as it was written, or its number."""
        item = self.transcript[word] if any(not isinstance(item, int) for item in self.encoded) else None
        item = item.item if isinstance(item, Skippable) else item
        return item if isinstance(item, str) else word


def _with_silences(graph: hf.AlignmentGraph) -> tuple[hf.AlignmentGraph, list[int]]:
    """The graph with a number for each silence, too, and the token of each number."""
    tokens = graph.token_index.tolist()
    elements: list[int] = []
    numbers = []
    for i, token in enumerate(tokens):
        if i == 0 or token != tokens[i - 1]:
            elements.append(token)
        numbers.append(len(elements) - 1)
    return graph._replace(token_index=graph.token_index.new_tensor(numbers)), elements
