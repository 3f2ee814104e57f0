"""Phones and their broad classes: what a rare phone is like before it was heard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SILENCE_CLASS = "silence"
REST = "*"
"""Of a mapping of classes: all phones that it does not name."""

_ARPABET = {
    "vowel": "AA AE AH AO AW AX AXR AY EH ER EY IH IX IY OW OY UH UW UX",
    "stop": "P T K B D G DX Q",
    "fricative": "F V TH DH S Z SH ZH HH HV CH JH",
    "nasal": "M N NG EM EN ENG NX",
    "approximant": "L R W Y EL WH",
}
ARPABET = {phone: name for name, phones in _ARPABET.items() for phone in phones.split()}
"""Broad class of each phone by manner of articulation: vowels (with diphthongs), stops, fricatives (with affricates and
aspirates), nasals, approximants. (Ladefoged and Johnson 2011, chapter 1, of the alphabet of Shoup 1980.)"""
_SILENCES = frozenset(("SIL", "SP", "PAU", "H#", "#H", "EPI", "<SIL>"))


class UnknownPhone(ValueError):
    """A phone of which nothing is known, not even its class."""


@dataclass(frozen=True)
class PhoneSet:
    """Which phones there may be, and their classes.

    Args:
        classes: the class of each phone by its name, "*" for phones that it does not name; default None, ARPAbet, in
            any case, with or without stress digits, and its usual names of silences.
        silence: the phone of silences.
    """

    classes: Mapping[str, str] | None = None
    silence: str = "SIL"

    def __post_init__(self) -> None:
        if not isinstance(self.silence, str) or len(self.silence.split()) != 1:
            raise ValueError(f"silence: expected the name of a phone, without spaces, got {self.silence!r}")
        if self.classes is not None and not self.classes:
            raise ValueError("classes: expected a class for each phone, or None for ARPAbet, got none")
        for phone, name in ({} if self.classes is None else self.classes).items():
            if not (isinstance(phone, str) and isinstance(name, str) and phone and name):
                raise TypeError(f"classes: expected names of phones and of classes, got {phone!r}: {name!r}")

    def name(self, phone: str) -> str:
        """The name of the model of a phone: of ARPAbet without stress, and one for all silences."""
        if self.classes is not None or phone == self.silence:
            return phone
        name = phone.upper()
        if name in _SILENCES:
            return self.silence
        return name.rstrip("0123456789") or name

    def class_of(self, phone: str) -> str:
        """The broad class.

        Raises:
            UnknownPhone: there is none.
        """
        name = self.name(phone)
        if name == self.silence:
            return SILENCE_CLASS
        known = ARPABET if self.classes is None else self.classes
        found = known.get(name, known.get(REST))
        if found is None:
            raise UnknownPhone(f"unknown phone {phone!r}; known: {' '.join(sorted({*known, self.silence}))}")
        return found

    def class_names(self) -> list[str]:
        """All classes, silence first."""
        known = ARPABET if self.classes is None else self.classes
        return [SILENCE_CLASS, *sorted({*known.values()} - {SILENCE_CLASS})]

    def need_known(self, phones: Iterable[str]) -> None:
        """Raise UnknownPhone for the first that has no class."""
        for phone in phones:
            self.class_of(phone)
