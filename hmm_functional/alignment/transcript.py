"""What a transcript may say beside tokens in order, and the tokens it consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._check import need_count


@dataclass(frozen=True)
class Wildcard:
    """A token that anything may have been, as speech that the transcript leaves out.

    Args:
        score: nats a frame: added to the best column's score, or of itself where `is_relative` is false.
        is_relative: whether the best column of each frame counts. If not, log-probabilities are compared with `score`.
        states: the fewest frames it lasts.
    """

    score: float = 0.0
    is_relative: bool = True
    states: int = 1

    def __post_init__(self) -> None:
        need_count("states", self.states, 1)
        if not -inf < self.score < inf:
            raise ValueError(f"score: expected a finite number of nats, got {self.score}")


@dataclass(frozen=True)
class Skippable:
    """A token, word or sequence that may be missing.

    Args:
        item: what may be missing.
        probability: that it is, in [0, 1]; default None, where both ways weigh 1.
    """

    item: Item
    probability: float | None = None

    def __post_init__(self) -> None:
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(f"probability: expected one in [0, 1], got {self.probability}")


@dataclass(frozen=True)
class Alternatives:
    """Ways to say one word, of which one is said.

    Args:
        pronunciations: sequences of tokens, none of them empty.
        probabilities: of each; default None, where all weigh 1.
    """

    pronunciations: Sequence[Item]
    probabilities: Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pronunciations", tuple(self.pronunciations))
        if not self.pronunciations:
            raise ValueError("pronunciations: expected at least one, got none")
        if self.probabilities is not None:
            given = tuple(float(p) for p in self.probabilities)
            object.__setattr__(self, "probabilities", given)
            if len(given) != len(self.pronunciations) or not all(0 <= p <= 1 for p in given):
                raise ValueError(
                    f"probabilities: expected {len(self.pronunciations)} in [0, 1], one a pronunciation, got {given}"
                )


Item: TypeAlias = "int | Wildcard | Skippable | Alternatives | Sequence[Item]"
Transcript: TypeAlias = Sequence[Item]
"""Tokens in order; or words in order, if any item is a sequence, `Alternatives` or a `Skippable` of these."""


class TranscriptTokens(NamedTuple):
    """The tokens of a transcript in the order in which they are written, those of all alternatives included."""

    symbols: tuple[int, ...]
    """N of them, -1 for a `Wildcard`."""
    words: tuple[int, ...]
    """Which item of the transcript each belongs to; all 0 in a plain sequence of tokens."""


def transcript_tokens(transcript: Transcript) -> TranscriptTokens:
    """The tokens that `token_index` counts, as symbols, and the word each belongs to.

    Args:
        transcript: tokens, or words.

    Returns:
        `TranscriptTokens(symbols, words)`, on the host.

    Raises:
        TypeError, ValueError: the transcript holds something else; the message says where.

    Example:
        >>> import hmm_functional as hf
        >>> hf.transcript_tokens([[3, 1], hf.Alternatives([[2], [2, 2]]), 0])
        TranscriptTokens(symbols=(3, 1, 2, 2, 2, 0), words=(0, 0, 1, 1, 1, 2))
    """
    symbols: list[int] = []
    words: list[int] = []
    for i, word in enumerate(words_of(transcript)):
        found = _symbols(word, f"transcript[{i}]")
        symbols += found
        words += [i] * len(found)
    return TranscriptTokens(tuple(symbols), tuple(words))


def words_of(transcript: Transcript) -> list[Item]:
    """The words of a transcript; a plain sequence of tokens is one."""
    if not is_sequence(transcript):
        raise TypeError(f"transcript: expected a sequence of tokens or words, got {type(transcript).__name__}")
    items = list(transcript)
    return items if any(_is_word(item) for item in items) else [items]


def is_sequence(item: Any) -> bool:
    """Whether an item is a list of items."""
    return isinstance(item, list | tuple) or (isinstance(item, np.ndarray) and item.ndim > 0)


def is_token(item: Any) -> bool:
    """Whether an item is a symbol."""
    return isinstance(item, int | np.integer) and not isinstance(item, bool)


def _is_word(item: Any) -> bool:
    return _is_word(item.item) if isinstance(item, Skippable) else is_sequence(item) or isinstance(item, Alternatives)


def _symbols(item: Any, place: str) -> list[int]:
    if is_token(item):
        if item < 0:
            raise ValueError(f"{place}: expected a symbol of at least 0, got {item}")
        return [int(item)]
    if isinstance(item, Wildcard):
        return [-1]
    if isinstance(item, Skippable):
        return _symbols(item.item, place)
    parts = item.pronunciations if isinstance(item, Alternatives) else item
    if not (isinstance(item, Alternatives) or is_sequence(item)):
        raise TypeError(
            f"{place}: expected an integer, a list, Alternatives, Skippable or Wildcard, got {type(item).__name__}"
        )
    found = [_symbols(part, f"{place}[{i}]") for i, part in enumerate(parts)]
    if isinstance(item, Alternatives) and not all(found):
        raise ValueError(f"{place}: expected pronunciations of at least one token; what may be missing is Skippable")
    return [symbol for part in found for symbol in part]
