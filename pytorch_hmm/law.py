"""What emission and duration laws share as modules: values made of free parameters, which learning may hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from .parametrize import AssignableModule, Parametrized


class Law(AssignableModule, ABC):
    """Distributions of one form, a row of each parameter for each."""

    prefix = ""
    """Before the names of its parameters where a model names them."""

    @abstractmethod
    def values(self) -> Any:
        """The family's parameters, a NamedTuple; its fields are properties of this module, too."""

    @abstractmethod
    def parametrized(self) -> dict[str, Parametrized]:
        """What makes each of these values, by the names of the fields."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""

    def named(self, values: Any) -> dict[str, Any]:
        """The fields of the family's parameters (or of what has their form) by name."""
        return values._asdict()  # type: ignore[no-any-return]

    def fixed(self, frozen: Collection[str] = ()) -> Any:
        """Which entries stay, in the form of the family's parameters; those of names in `frozen` all do."""
        made = self.parametrized()
        masks = {name: True if self.prefix + name in frozen else one.is_fixed for name, one in made.items()}
        return type(self.values())(**masks) if any(mask is not None for mask in masks.values()) else None


def parameter(name: str, owner: str, meaning: str) -> Any:
    """The property `name`, which reads and assigns the values of the `Parametrized` held as `owner`."""

    def read(self: Any) -> Any:
        return getattr(self, owner).forward()

    def write(self: Any, value: Any) -> None:
        getattr(self, owner).assign(name, value)

    return property(read, write, doc=meaning)
