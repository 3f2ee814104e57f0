"""Numbers of other libraries, read, checked as far as the modules themselves do not, and written."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from ..trainable import EmissionHMM

Model = TypeVar("Model", bound=EmissionHMM)

_ROUNDING = 1e-5  # of float32 sums


def read(name: str, value: Any, rank: int | None = None) -> Any:
    """`value` (an array of NumPy, JAX or torch) as a float64 array of NumPy with `rank` axes, any number by default.

    Raises:
        ValueError: not numbers, or other axes.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of numbers, got {value!r}") from error
    if rank is not None and found.ndim != rank:
        raise ValueError(f"{name}: expected an array of {rank} axes, got shape {found.shape}")
    return found


def written(x: Tensor) -> Any:
    """A copy of `x` as a float64 array of NumPy."""
    return x.detach().double().cpu().numpy().copy()


def untied(model: Model) -> Model:
    """The model with a law for each state, where states share some.

    Raises:
        TypeError: it depends on more than its parameters.
    """
    if model._is_conditional:
        raise TypeError(
            f"model: expected a module that another library has a class for, {type(model).__name__} depends on inputs "
            "or networks"
        )
    if model.tied_states is None:
        return model
    arguments = {name: value for name, value in model._arguments().items() if name != "tied_states"}
    found = type(model)(**arguments).to(model.log_initial.dtype)
    found.log_initial, found.log_transition = model.log_initial, model.log_transition
    for name, one in model.emission.parametrized().items():
        value = one.forward()
        setattr(found, name, value[model.laws] if one.words.startswith("(K") else value)
    return found


def logs(name: str, probabilities: Any) -> Any:
    """Logs of probabilities, -inf those of zeros; whether they sum to one, the modules check.

    Raises:
        ValueError: a negative number.
    """
    found = read(name, probabilities)
    if (found < 0).any():
        raise ValueError(f"{name}: expected probabilities in [0, 1], got {found.min():.6g}")
    with np.errstate(divide="ignore"):
        return np.log(found)


def symmetric(matrices: Any) -> Any:
    """`matrices` without what rounding of float32 has left between the halves; others as they are."""
    if matrices.shape[-1] != matrices.shape[-2]:
        return matrices
    mean = 0.5 * (matrices + matrices.swapaxes(-1, -2))
    scale = np.sqrt(np.abs(np.diagonal(matrices, axis1=-2, axis2=-1)))
    is_rounding = np.abs(matrices - mean) <= _ROUNDING * scale[..., :, None] * scale[..., None, :]
    return mean if is_rounding.all() else matrices


def is_one(sums: Any) -> bool:
    """Whether all `sums` are 1, up to the rounding of float32."""
    return bool(np.allclose(sums, 1.0, rtol=0.0, atol=_ROUNDING))


def is_alike(numbers: Any) -> bool:
    """Whether all `numbers` are the same, up to the rounding of float32."""
    return bool(np.allclose(numbers, numbers[0], rtol=_ROUNDING, atol=0.0))


def filled(model: Model, initial: Any, transition: Any, **values: Any) -> Model:
    """`model` in float64 with these probabilities and the `values` of its properties.

    Raises:
        ValueError: of the properties.
    """
    model = model.double()
    model.log_initial, model.log_transition = logs("initial", initial), logs("transition", transition)
    for name, value in values.items():
        setattr(model, name, value)
    return model
