"""Transcripts of words and phones as graphs over the columns of an aligner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

import hmm_functional as hf
from hmm_functional.alignment import AlignmentGraph

from .corpus import Word
from .phones import SILENCE_CLASS, UnknownPhone
from .settings import AlignerSettings
from .training import Inventory

Words = Sequence[Word | str]
"""Words with their phones, or phones."""


def pronunciations_of(word: Word | str) -> tuple[tuple[str, ...], ...]:
    """Those of a word; a phone on its own is a word of one."""
    return ((word,),) if isinstance(word, str) else tuple(tuple(way) for way in word.pronunciations)


def phones_of(words: Words) -> list[str]:
    """The phones as they are written, those of all pronunciations in order: one for each token of the graph."""
    return [phone for word in words for way in pronunciations_of(word) for phone in way]


def fewest_frames(settings: AlignerSettings, words: Words) -> int:
    """The frames of the shortest alignment."""
    return settings.states * sum(min(map(len, pronunciations_of(word))) for word in words)


def problem_of(settings: AlignerSettings, x: Any, words: Words | None) -> ValueError | None:
    """Why an utterance cannot be aligned."""
    phone_set, hop = settings.phone_set(), settings.features.frame_shift
    if words is None:
        return ValueError("it has no transcript")
    if isinstance(words, str) or not all(isinstance(word, str | Word) for word in words):
        raise TypeError("words: expected a list of words (Word) or of phones (str)")
    if not words or not all(way for word in words for way in pronunciations_of(word)):
        return ValueError("the transcript has no phones, or a word without any")
    try:
        phone_set.need_known(phones_of(words))
    except UnknownPhone as error:
        return error
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
        raise TypeError(
            f"features: expected floating-point tensors (T, D), got {getattr(x, 'shape', type(x).__name__)}"
        )
    if not bool(x.isfinite().all()):
        return ValueError("features: expected finite numbers, got others")
    if len(x) < (need := fewest_frames(settings, words)):
        return ValueError(
            f"the transcript needs at least {need} frames ({need * hop:.2f} s), the recording has {len(x)} "
            f"({len(x) * hop:.2f} s)"
        )
    return None


def inventory_of(settings: AlignerSettings, transcripts: Iterable[Words]) -> Inventory:
    """The phones of transcripts, the silence always among them, and all classes."""
    phone_set = settings.phone_set()
    heard = {phone_set.name(phone) for words in transcripts for phone in phones_of(words)}
    phones = tuple(sorted({*heard, settings.silence}))
    classes = phone_set.class_names()
    return Inventory(
        phones, tuple(classes), tuple(classes.index(phone_set.class_of(p)) for p in phones), settings.states
    )


def compile_words(
    settings: AlignerSettings, inventory: Inventory, words: Words, like: Tensor
) -> tuple[AlignmentGraph, list[Any]]:
    """The graph of a transcript, without weights of staying, and the transcript in symbols."""
    phone_set = settings.phone_set()

    def symbol(phone: str) -> int:
        name = phone_set.name(phone)
        if name in inventory.phones:
            return inventory.phones.index(name)
        return len(inventory.phones) + inventory.classes.index(phone_set.class_of(phone))

    ways = [[[symbol(phone) for phone in way] for way in pronunciations_of(word)] for word in words]
    transcript: list[Any] = [found[0] if len(found) == 1 else hf.Alternatives(found) for found in ways]
    may_pause = settings.pauses == "always" or (
        settings.pauses == "auto" and not any(phone_set.class_of(p) == SILENCE_CLASS for p in phones_of(words))
    )
    silence = inventory.phones.index(settings.silence) if may_pause else None
    topology = hf.Topology(settings.states, silence=silence)
    return hf.transcript_graph(transcript, like=like, topology=topology), transcript
