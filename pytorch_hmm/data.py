"""Data for training: batches of checked sequences, in the order given, as often as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf, prod
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from ._check import first, lengths_like, need_frames

if TYPE_CHECKING:
    from .conditional import ConditionalHMM
    from .hmm import BaseHMM
    from .trainable import TrainableHMM

LEAST_SHARE = 1e-6
"""Of each feature's variance, the least variance of a Gaussian unless another is given."""
LARGEST_BATCH = 2**22
"""Numbers of observations that a list of sequences is padded to batches of."""


class Batch(NamedTuple):
    """Sequences that are computed together; a loader may give these where there are weights or labels."""

    x: Tensor
    """(..., T, *frame)"""
    lengths: Tensor | None = None
    """(...)"""
    weights: Tensor | None = None
    """(...)"""
    labels: Tensor | None = None
    """(..., T), -1 where the state is not known."""
    inputs: dict[str, Any] | None = None
    """What else the model's methods take, by name, such as {"context": (..., T, C)}."""


class Source:
    """Batches of checked sequences, in the order given, as often as they are asked for.

    Args:
        data: a tensor (..., T, *frame); a list of tensors (T_i, *frame); or anything that gives batches each time it is
            iterated over, as a DataLoader does: tensors, or tuples (x, lengths).
        inputs: what else the model's methods take, by name: tensors beside a tensor, lists beside a list; None where
            they take nothing else, and batches may have none.
    """

    def __init__(
        self,
        model: BaseHMM,
        data: Any,
        lengths: Any,
        weights: Any,
        labels: Any,
        inputs: dict[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._takes_inputs = inputs is not None
        self._batches: list[Batch] | None = None
        if isinstance(data, Tensor):
            shape = tuple(data.shape[: data.ndim - self._rank])
            weights = None if weights is None else self._weights(weights, shape[:-1])
            self._batches = [self._checked(data, lengths, weights, labels, inputs)]
        elif isinstance(data, list | tuple) and not any(isinstance(item, tuple) for item in data):
            if lengths is not None:
                raise ValueError("lengths: expected None with a list of sequences, which have lengths of their own")
            self._batches = self._of_list(data, weights, labels, inputs)
        elif isinstance(data, Iterable):
            if iter(data) is data:
                raise TypeError("data: expected something that can be iterated over again, got an iterator")
            given = {"lengths": lengths, "sample_weights": weights, "labels": labels, **(inputs or {})}
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name}: expected None with batches, which hold (x, lengths)")
            self._loader = data
        else:
            raise TypeError(f"data: expected a tensor, a list of tensors or batches, got {type(data).__name__}")

    @property
    def _rank(self) -> int:
        return len(self._model.frame_shape)

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is not None:
            yield from self._batches
            return
        count = 0
        for item in self._loader:
            count += 1
            if isinstance(item, Batch):
                yield self._checked(*item)
                continue
            inputs = None
            if isinstance(item, list | tuple) and len(item) > 1 and isinstance(item[-1], dict):
                *item, inputs = item
            x, lengths = item if isinstance(item, list | tuple) and len(item) == 2 else (item, None)
            if isinstance(x, list | tuple) and len(x) == 1:
                x = x[0]
            yield self._checked(x, lengths, None, None, inputs)
        if not count:
            raise ValueError("data: expected at least one batch, got none")

    def num_frames(self) -> int | None:
        """Frames of all batches, padding included; None where batches have to be read for that."""
        if self._batches is None:
            return None
        return sum(prod(batch.x.shape[: batch.x.ndim - self._rank]) for batch in self._batches)

    def first_batches(self) -> Iterator[Batch]:
        """As many as LARGEST_BATCH holds, and one at least."""
        size = 0
        for batch in self:
            yield batch
            size += batch.x.numel()
            if size > LARGEST_BATCH:
                return

    def apart(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Sequences without padding, (T_i, *frame), and their labels."""
        shape = batch.x.shape[: batch.x.ndim - self._rank]
        flat = batch.x.reshape(-1, *batch.x.shape[len(shape) - 1 :])
        labels = None if batch.labels is None else batch.labels.reshape(-1, shape[-1])
        ends = [shape[-1]] * len(flat) if batch.lengths is None else batch.lengths.reshape(-1).tolist()
        for i, end in enumerate(ends):
            yield flat[i, :end], None if labels is None else labels[i, :end]

    def sequences(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The same of the first batches."""
        for batch in self.first_batches():
            yield from self.apart(batch)

    def frames(self) -> Iterator[Tensor]:
        """The same sequences alone."""
        return (x for x, _ in self.sequences())

    def least_variances(self) -> Tensor | float:
        """LEAST_SHARE of the features' variances (D,) in those frames; a constant feature counts as the mean one."""
        if self._rank == 0:
            return 0.0
        emission = cast("TrainableHMM", self._model).emission
        frames = torch.cat([emission.context(x) for x in self.frames()]).double()
        if emission.num_regressors:
            return LEAST_SHARE * self._left_over(frames, emission.num_regressors)
        count = sum_of_processes((~frames.isnan()).sum(0).double()).clamp_min(1.0)
        mean = sum_of_processes(frames.nansum(0)) / count
        variances = sum_of_processes((frames - mean).square().nansum(0)) / count
        # rounding of the data themselves is no variance
        is_some = variances > (1e-7 * mean).square()
        others = variances[is_some].mean() if is_some.any() else variances.new_ones(())
        return LEAST_SHARE * variances.where(is_some, others)

    def _left_over(self, frames: Tensor, num_regressors: int) -> Tensor:
        """What one regression of all frames leaves of each feature's variance, (D,)."""
        frames = frames[~frames.isnan().any(-1)]
        frames = torch.cat([frames, frames.new_ones(len(frames), 1)], -1)
        moments = sum_of_processes(frames.mT @ frames)
        dim = frames.shape[-1] - 1 - num_regressors
        found = torch.linalg.pinv(moments[dim:, dim:], hermitian=True) @ moments[dim:, :dim]
        # squares rather than a difference, which would cancel where little is left
        left = sum_of_processes((frames[:, :dim] - frames[:, dim:] @ found).square().sum(0)) / moments[-1, -1]
        least = 1e-24 * moments.diagonal()[:dim] / moments[-1, -1]
        return torch.maximum(left, least)

    def _checked(
        self,
        x: Any,
        lengths: Any,
        weights: Tensor | None,
        labels: Tensor | None,
        inputs: dict[str, Any] | None = None,
    ) -> Batch:
        need_frames("data", x, self._model.frame_shape)
        if inputs and not self._takes_inputs:
            kind = type(self._model).__name__
            raise ValueError(
                f"data: expected batches without inputs, fit of {kind} takes none, got {', '.join(inputs)}"
            )
        if labels is not None:
            labels = checked_labels(labels, lengths, tuple(x.shape[: x.ndim - self._rank]), self._model.num_states)
        if lengths is not None:
            shape = tuple(x.shape[: x.ndim - self._rank])
            lengths = lengths_like(lengths, x, shape[:-1], shape[-1])
        return Batch(x, lengths, weights, labels, inputs)

    def _weights(self, weights: Any, shape: tuple[int, ...]) -> Tensor:
        found = torch.as_tensor(weights)
        if tuple(found.shape) != shape:
            raise ValueError(f"sample_weights: expected one a sequence, shape {shape}, got {tuple(found.shape)}")
        is_bad = ~((found >= 0) & (found < inf))
        if is_bad.any():
            at = first(is_bad)
            raise ValueError(f"sample_weights: expected numbers from 0, got {float(found[at])} at {at}")
        if not found.any():
            raise ValueError("sample_weights: expected one above 0 at least, got zeros alone")
        return found

    def _of_list(
        self, data: Sequence[Any], weights: Any, labels: Any, inputs: dict[str, Any] | None = None
    ) -> list[Batch]:
        """Padded batches of sequences of like length, the longest first."""
        if not data:
            raise ValueError("data: expected at least one sequence, got none")
        for i, x in enumerate(data):
            need_frames(f"data[{i}]", x, self._model.frame_shape)
            if x.ndim != 1 + self._rank:
                raise ValueError(f"data[{i}]: expected one sequence (T, ...), got {tuple(x.shape)}")
        if weights is not None:
            weights = self._weights(weights, (len(data),))
        if labels is not None and [len(y) for y in labels] != [len(x) for x in data]:
            raise ValueError("labels: expected one tensor of states for each sequence, as long as it")
        for name, values in (inputs or {}).items():
            if values is not None and len(values) != len(data):
                raise ValueError(f"{name}: expected {len(data)}, one for each sequence, got {len(values)}")
        if inputs:
            inputs = cast("ConditionalHMM", self._model)._of_parts(inputs, [len(x) for x in data])
        order = sorted(range(len(data)), key=lambda i: -len(data[i]))
        found, start = [], 0
        while start < len(order):
            longest = data[order[start]]
            count = max(1, LARGEST_BATCH // max(1, longest.numel()))
            chosen = order[start : start + count]
            x, ends = padded([data[i] for i in chosen])
            found.append(
                self._checked(
                    x,
                    None if bool((ends == ends[0]).all()) else ends,
                    None if weights is None else weights[chosen],
                    None if labels is None else padded([labels[i] for i in chosen], -1)[0],
                    inputs and {name: _together(values, chosen) for name, values in inputs.items()},
                )
            )
            start += count
        return found


def checked_labels(labels: Any, lengths: Any, shape: tuple[int, ...], num_states: int) -> Tensor:
    """Known states (..., T), -1 where unknown and in the padding."""
    if not isinstance(labels, Tensor) or tuple(labels.shape) != shape:
        raise ValueError(f"labels: expected an integer tensor of shape {shape}, a state or -1 for each frame")
    if lengths is not None:  # what padding holds is not read
        steps = torch.arange(labels.shape[-1], device=labels.device)
        labels = labels.where(steps < torch.as_tensor(lengths, device=labels.device)[..., None], -1)
    if labels.is_floating_point() or bool(((labels < -1) | (labels >= num_states)).any()):
        raise ValueError(f"labels: expected integers, states 0..{num_states - 1} or -1 where unknown")
    found: Tensor = labels
    return found


def padded(sequences: Sequence[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sequences as one tensor (B, T, ...), `value` in the padding, and their lengths (B,)."""
    lengths = torch.tensor([len(x) for x in sequences], device=sequences[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=value), lengths


def _together(values: Any, chosen: Sequence[int]) -> Any:
    """What belongs to the chosen sequences: arrays of like rank, padded along their first axis."""
    if values is None:
        return None
    parts = [torch.as_tensor(values[i]) for i in chosen]
    return padded(parts)[0] if parts[0].ndim else torch.stack(parts)


def is_distributed() -> bool:
    """Whether torch.distributed runs."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sum_of_processes(x: Tensor) -> Tensor:
    """`x` summed over the processes of torch.distributed, where there are several."""
    if not is_distributed():
        return x
    found = x.clone()
    torch.distributed.all_reduce(found)
    return found


def num_processes() -> int:
    """Of torch.distributed; 1 where it does not run."""
    return int(torch.distributed.get_world_size()) if is_distributed() else 1
