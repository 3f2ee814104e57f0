"""What CTC scores of frames say: likelihoods of transcripts, where their tokens are, and transcripts themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional.alignment.topology import targets_of
from hmm_functional.backend import backend_of

from .symbols import Symbols, lengths_for, need_frame_shift, need_list, seconds

_REDUCTIONS = ("mean", "sum", "none")


class CTCSpan(NamedTuple):
    """A token or an utterance, and the frames that it lasts."""

    label: Any
    """The symbol's name, or its number where symbols have none; of an utterance its place in the list."""
    start: int
    """Its first frame."""
    end: int
    """One past its last frame."""
    start_time: float | None
    """Seconds, where the frame shift is known."""
    end_time: float | None
    """Seconds."""
    confidence: float
    """Of a token the mean posterior probability of its frames; of an utterance the least mean of log p in a window."""


class CTCAligner(nn.Module):
    """Transcripts and frames scored by a CTC model.

    Args:
        symbols: names of the V symbols, the blank among them; default none, symbols are numbers.
        blank: the symbol that stands for none, a number or a name.
        frame_shift: seconds from one frame of scores to the next; default unknown.

    All methods take log_probs (T, V) or (B, T, V), log p(symbol of frame t), as `log_softmax` gives; with the former
    they give the result of one sequence, and take one number as lengths. Targets are (B, N) integers, or lists of
    symbols, numbers or names.

    Example:
        >>> import torch
        >>> from pytorch_hmm import CTCAligner
        >>> aligner = CTCAligner(["-", "a", "b"], blank="-", frame_shift=0.02)
        >>> frames = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]).log()
        >>> aligner.decode(frames)
        ['a', 'b']
        >>> [(span.label, span.start_time, span.end_time) for span in aligner.align(frames, ["a", "b"])]
        [('a', 0.02, 0.06), ('b', 0.06, 0.08)]
    """

    def __init__(
        self, symbols: Sequence[str] | None = None, *, blank: int | str = 0, frame_shift: float | None = None
    ) -> None:
        super().__init__()
        self._symbols = Symbols(symbols)
        self.symbols = self._symbols.names
        self.blank = self._symbols.number("blank", blank)
        self.frame_shift = need_frame_shift(frame_shift)

    def extra_repr(self) -> str:
        return f"{self._symbols.summary}blank={self.blank}, frame_shift={self.frame_shift}"

    def forward(self, log_probs: Tensor, targets: Any, lengths: Any = None, target_lengths: Any = None) -> Tensor:
        """log p(targets given x), (B,); see `hmm_functional.ctc_log_likelihood`."""
        lengths = self._checked(log_probs, lengths)
        found: Tensor = hf.ctc_log_likelihood(
            log_probs, self._encoded(targets), lengths=lengths, target_lengths=target_lengths, blank=self.blank
        )
        return found

    log_prob = forward

    def loss(
        self,
        log_probs: Tensor,
        targets: Any,
        lengths: Any = None,
        target_lengths: Any = None,
        *,
        reduction: str = "mean",
        zero_infinity: bool = False,
    ) -> Tensor:
        """Minus `log_prob`, reduced as `torch.nn.CTCLoss` does: "mean" divides by the tokens of each sequence first.

        Args:
            zero_infinity: whether an impossible sequence has a loss of 0 rather than inf; its gradient is 0 anyway.
        """
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction: expected one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
        loss = -self.forward(log_probs, targets, lengths, target_lengths)
        if zero_infinity:
            loss = torch.where(loss == torch.inf, 0.0, loss)
        if reduction == "none":
            return loss
        if reduction == "sum":
            return loss.sum()
        _, counts = targets_of(
            backend_of(log_probs=log_probs),
            self._encoded(targets),
            target_lengths,
            log_probs,
            num_symbols=log_probs.shape[-1],
            fewest=0,
            may_be_empty=True,
        )
        mean: Tensor = (loss / counts.clamp_min(1)).mean()
        return mean

    @torch.no_grad()
    def align(
        self, log_probs: Tensor, targets: Any, lengths: Any = None, target_lengths: Any = None
    ) -> list[CTCSpan] | list[list[CTCSpan]]:
        """The frames of each token on the best path; see `hmm_functional.ctc_align`.

        Returns:
            A list of spans of the tokens, for each sequence of a batch; empty where no path is possible.
        """
        lengths = self._checked(log_probs, lengths)
        found = hf.ctc_align(
            log_probs,
            self._encoded(targets),
            lengths=lengths,
            target_lengths=lengths_for(log_probs, target_lengths, "target_lengths"),
            blank=self.blank,
            posteriors=True,
        )
        if found.labels.ndim >= log_probs.ndim:
            got = f"a batch of {tuple(found.labels.shape[:-1])}"
            raise ValueError(f"targets: expected one transcript, for log_probs (T, V) of one sequence, got {got}")
        arrays: list[Any] = [found.labels, found.start, found.end, found.confidence]
        rows = ((x.unsqueeze(0) if log_probs.ndim == 2 else x).tolist() for x in arrays)
        spans = []
        for labels, start, end, confidence in zip(*rows, strict=True):
            tokens = zip(start, end, confidence, strict=True)
            spans.append([self._span(self._symbols.name(labels[a]), a, b, c) for a, b, c in tokens if a >= 0])
        return spans[0] if log_probs.ndim == 2 else spans

    @torch.no_grad()
    def decode(
        self,
        log_probs: Tensor,
        lengths: Any = None,
        *,
        method: str = "greedy",
        **options: Any,
    ) -> list[Any]:
        """The transcript that the frames suggest.

        Args:
            method: "greedy", what the best path says; or "prefix", the most probable labels, by `ctc_prefix_search`.
            options: of `ctc_prefix_search`: beam_width, language_model and so on. With `num_results` there are so many
                transcripts, best first, or fewer where fewer are possible.

        Returns:
            A list of symbols, or of R lists of them, for each sequence of a batch.
        """
        lengths = self._checked(log_probs, lengths)
        batched = log_probs.unsqueeze(0) if log_probs.ndim == 2 else log_probs
        if method == "greedy":
            if options:
                raise TypeError(f"decode: expected no options of method 'greedy', got {', '.join(options)}")
            labels = hf.ctc_greedy_search(batched, lengths=lengths, blank=self.blank)
            found = [self._names(row) for row in labels.tolist()]
        elif method == "prefix":
            best = hf.ctc_prefix_search(batched, lengths=lengths, blank=self.blank, **options)
            found = []
            for rows, scores in zip(best.labels.tolist(), best.scores.tolist(), strict=True):
                said = [self._names(row) for row, score in zip(rows, scores, strict=True) if score > float("-inf")]
                found.append(said if "num_results" in options else (said or [[]])[0])
        else:
            raise ValueError(f"method: expected 'greedy' or 'prefix', got {method!r}")
        return found[0] if log_probs.ndim == 2 else found

    @torch.no_grad()
    def segment(self, log_probs: Tensor, utterances: Sequence[Any], **options: Any) -> list[CTCSpan]:
        """The frames of each utterance of long audio, in order; see `hmm_functional.ctc_segment`.

        Args:
            log_probs: (T, V).
            utterances: lists of symbols.
            options: of `ctc_segment`: skip_score, skip_between, window.
        """
        self._checked(log_probs, None)
        encoded = [self._encoded(x, f"utterances[{i}]") for i, x in enumerate(utterances)]
        found = hf.ctc_segment(log_probs, encoded, blank=self.blank, **options)
        rows = zip(*(x.tolist() for x in (found.start, found.end, found.confidence)), strict=True)
        return [self._span(i, *row) for i, row in enumerate(rows)]

    def _checked(self, log_probs: Any, lengths: Any) -> Any:
        """`lengths`, without axes where log_probs have no batch axis."""
        if not isinstance(log_probs, Tensor):
            raise TypeError(f"log_probs: expected a torch.Tensor, got {type(log_probs).__name__}")
        if log_probs.ndim not in (2, 3):
            raise ValueError(f"log_probs: expected (T, V) or (B, T, V), got {tuple(log_probs.shape)}")
        if self.symbols is not None and log_probs.shape[-1] != len(self.symbols):
            raise ValueError(f"log_probs: expected {len(self.symbols)} symbols, got {tuple(log_probs.shape)}")
        return lengths_for(log_probs, lengths)

    def _encoded(self, targets: Any, name: str = "targets") -> Any:
        need_list(name, targets, "symbols")
        if isinstance(targets, list | tuple):
            return [
                self._encoded(x, name) if isinstance(x, list | tuple) else self._symbols.number(name, x)
                for x in targets
            ]
        return targets

    def _names(self, row: list[int]) -> list[Any]:
        return [self._symbols.name(number) for number in row if number >= 0]

    def _span(self, label: Any, start: int, end: int, confidence: float) -> CTCSpan:
        begins, ends = (None if at < 0 else seconds(at, self.frame_shift) for at in (start, end))
        return CTCSpan(label, start, end, begins, ends, confidence)
