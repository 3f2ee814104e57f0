"""Models of other libraries as modules, and back."""

from .dynamax import from_dynamax, to_dynamax
from .hmmlearn import from_hmmlearn, to_hmmlearn
from .pomegranate import from_pomegranate, to_pomegranate

__all__ = [
    "from_dynamax",
    "from_hmmlearn",
    "from_pomegranate",
    "to_dynamax",
    "to_hmmlearn",
    "to_pomegranate",
]
