"""Checks of what users hand to a module; those that read values run eagerly and are skipped while traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmm_functional.backend import backend_named

_TOLERANCE = 1e-5
_UNSIGNED = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def is_traced(*tensors: Tensor) -> bool:
    """Whether values cannot be read: under torch.compile, export or torch.func, or on meta."""
    if any(x.device.type == "meta" for x in tensors):
        return True
    return backend_named("torch").is_traced(*tensors)


def parameter_values(name: str, value: Any, shape: tuple[int, ...], words: str) -> Tensor:
    """`value` (a tensor, an array or nested lists) as a float64 tensor of `shape` on the CPU.

    Raises:
        ValueError: not numbers, another shape, or NaN among them.
    """
    try:
        if not isinstance(value, Tensor):
            value = torch.from_numpy(np.array(value, dtype=np.float64))
        found: Tensor = value.detach().to("cpu", torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers of shape {words} = {shape}, got {value!r}") from error
    if found.shape != shape:
        raise ValueError(f"{name}: expected shape {words} = {shape}, got {tuple(found.shape)}")
    if found.isnan().any():
        raise ValueError(f"{name}: expected numbers, got NaN at {first(found.isnan())}")
    return found


def log_of(name: str, value: Any, shape: tuple[int, ...], words: str, may_end: bool = False) -> Tensor:
    """The log of given probabilities, checked.

    Args:
        may_end: whether rows may be all zeros.

    Raises:
        ValueError: a wrong shape, a negative or infinite value, or a row that does not sum to one.
    """
    p = parameter_values(name, value, shape, words)
    is_bad = (p < 0) | p.isinf()
    if is_bad.any():
        at = first(is_bad)
        raise ValueError(f"{name}: expected probabilities in [0, 1], got {float(p[at]):.6g} at {at}")
    need_normalised(name, p, "divide each row by its sum", may_end)
    return p.log()


def prior_values(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """A number, or an array that broadcasts to `shape` as a float64 tensor, of a prior of emissions.

    Raises:
        TypeError: neither. ValueError: another shape.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    try:
        found = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise TypeError(f"priors.{name}: expected numbers, got {type(value).__name__}") from None
    try:
        found.expand(shape)
    except RuntimeError:
        raise ValueError(f"priors.{name}: expected shape {shape} or one before, got {tuple(found.shape)}") from None
    return found


def prior_pair(value: Any, words: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Two of `prior_values`, such as (shape, rate)."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"priors.emission: expected {words}, got {type(value).__name__}")
    return prior_values("emission", value[0], shape), prior_values("emission", value[1], shape)


def need_no_prior(owner: Any, concentration: Any) -> None:
    """ValueError where durations that have no prior are given one."""
    if not (isinstance(concentration, int | float) and concentration == 1):
        raise ValueError(f"priors.duration: expected none of a {type(owner).__name__}, got {concentration!r}")


def need_normalised(name: str, probabilities: Tensor, remedy: str, may_end: bool = False) -> None:
    """Every row along the last axis sums to one; with `may_end`, or is all zeros."""
    total = probabilities.sum(-1)
    is_bad = ~((total - 1).abs() <= _TOLERANCE)
    if may_end:
        is_bad &= total != 0
    if is_bad.any():
        at = first(is_bad)
        row = f"row {at if len(at) > 1 else at[0]} sums" if at else "they sum"
        raise ValueError(f"{name}: expected probabilities that sum to 1, {row} to {float(total[at]):.6g}; {remedy}")


def need_frames(name: str, x: Any, frame_shape: tuple[int, ...], *, is_empty_allowed: bool = False) -> None:
    """`x` is a tensor (..., T, *frame_shape) of at least one frame."""
    words = ", ".join(["..., T", *map(str, frame_shape)])
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor ({words}), got {type(x).__name__}")
    rank = len(frame_shape)
    if x.ndim < rank + 1 or tuple(x.shape[x.ndim - rank :]) != frame_shape:
        raise ValueError(f"{name}: expected shape ({words}), got {tuple(x.shape)}")
    if x.shape[x.ndim - rank - 1] == 0 and not is_empty_allowed:
        raise ValueError(f"{name}: expected at least one frame, got an empty sequence {tuple(x.shape)}; leave it out")


def lengths_like(
    lengths: Any, x: Tensor, batch_shape: tuple[int, ...], num_steps: int, name: str = "lengths"
) -> Tensor:
    """`lengths` as an integer tensor of `batch_shape` on the device of `x`.

    Raises:
        TypeError: not integers. ValueError: another shape, or a length outside 1..T.
    """
    if isinstance(lengths, np.ndarray):
        lengths = lengths.copy()  # torch warns of arrays it may not write to
    found = torch.as_tensor(lengths, device=x.device)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {found.dtype}")
    if tuple(found.shape) != batch_shape:
        raise ValueError(f"{name}: expected one a sequence, shape {batch_shape}, got {tuple(found.shape)}")
    if not is_traced(found, x):
        is_bad = (found < 1) | (found > num_steps)
        if is_bad.any():
            at = first(is_bad)
            where = str(list(at)) if at else ""
            raise ValueError(f"{name}{where}: expected 1..{num_steps}, got {int(found[at])}; leave empty sequences out")
    return found.to(torch.int64)


def need_support(
    name: str,
    x: Tensor,
    frame_rank: int,
    support: tuple[float | None, float | None],
    is_read: Tensor | None,
    wanted: str,
    remedy: str,
) -> None:
    """Every value lies strictly inside `support` in the frames (..., T) that `is_read` marks, all by default.

    Raises:
        ValueError: names the first frame that holds another, as in x[1, 17].
    """
    if is_traced(x) or x.numel() == 0:
        return
    values = x.detach()
    if all(_is_inside(extreme, support) for extreme in values.aminmax()):
        return
    is_bad = ~_is_inside(values, support)
    if is_read is not None:
        is_bad &= is_read.reshape(*is_read.shape, *[1] * frame_rank)
    if not is_bad.any():
        return
    at = first(is_bad)
    frame, feature = at[: x.ndim - frame_rank], at[x.ndim - frame_rank :]
    where = f" in feature {feature[0]}" if feature else ""
    raise ValueError(
        f"{name}[{', '.join(map(str, frame))}]: expected {wanted}, got {values[at].item()}{where}; {remedy}"
    )


def first(mask: Tensor) -> tuple[int, ...]:
    """The index of the first true entry."""
    return tuple(int(i) for i in mask.nonzero()[0])


def _is_inside(x: Tensor, support: tuple[float | None, float | None]) -> Tensor:
    low, high = support
    is_inside = ~x.isnan()
    if low is not None and not (low < 0 and x.dtype in _UNSIGNED):  # where -1 would wrap round
        is_inside &= x > low
    if high is not None:
        is_inside &= x < high
    return is_inside
