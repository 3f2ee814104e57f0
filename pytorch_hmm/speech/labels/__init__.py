"""Label files: HTK's, Praat's TextGrids, and CTM. One `Segment` is what all of them hold."""

from .ctm import read_ctm, write_ctm
from .htk import FullContext, centre_phone, parse_full_context, read_htk, read_mlf, write_htk, write_mlf
from .segment import LabelError, Segment, boundaries
from .textgrid import TextGrid, read_textgrid, write_textgrid

__all__ = [
    "FullContext",
    "LabelError",
    "Segment",
    "TextGrid",
    "boundaries",
    "centre_phone",
    "parse_full_context",
    "read_ctm",
    "read_htk",
    "read_mlf",
    "read_textgrid",
    "write_ctm",
    "write_htk",
    "write_mlf",
    "write_textgrid",
]
