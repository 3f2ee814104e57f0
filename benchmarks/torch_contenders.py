"""Contenders that take torch tensors: ours, a plain time loop, pomegranate, torch-struct.

Each takes a problem, an operation and a dtype, and returns the call to time and what turns its result into NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .cells import SELF_LOOP, Problem

Timed = tuple[Callable[[], Any], Callable[[Any], Any]]
LOG_ZERO = -1e5
"""For libraries whose gradients of -inf are NaN: torch-struct's own stand-in."""


def ours(problem: Problem, operation: str, dtype: str) -> Timed:
    """`hf.log_likelihood`, `forward_backward`, `viterbi`, and autograd of the first."""
    import hmm_functional as hf

    is_gradient = operation == "gradient"
    initial, dense, emission = _tensors(problem, dtype, is_gradient)
    weights = transition = dense
    if problem.log_bands is not None:
        banded = hf.left_to_right(problem.cell.states, self_loop=SELF_LOOP, structured=True, like=initial.detach())
        weights = banded.log_bands.requires_grad_(is_gradient)
        transition = hf.Banded(weights, banded.offsets)
    lengths = torch.as_tensor(problem.lengths) if problem.cell.kind == "ragged" else None

    if is_gradient:

        def gradient() -> Any:
            value = hf.log_likelihood(initial, transition, emission, lengths=lengths).sum()
            return torch.autograd.grad(value, (initial, weights, emission))

        return gradient, _numpy
    if operation == "forward_backward":
        call = lambda: hf.forward_backward(initial, transition, emission, lengths=lengths)  # noqa: E731
        return call, lambda out: _numpy((out.log_posteriors.exp(), out.log_likelihood))
    if operation == "viterbi":
        return lambda: hf.viterbi(initial, transition, emission, lengths=lengths), lambda out: out.states.numpy()
    return lambda: hf.log_likelihood(initial, transition, emission, lengths=lengths), _numpy


def eager(problem: Problem, operation: str, dtype: str) -> Timed:
    """What one writes first: a Python loop over time, one logsumexp or max a step."""
    initial, transition, emission = _tensors(problem, dtype, operation == "gradient", LOG_ZERO)
    valid = torch.as_tensor(problem.valid)[..., None]
    steps, is_ragged = problem.cell.steps, problem.cell.kind == "ragged"

    def forward() -> list[Any]:
        messages = [initial + emission[:, 0]]
        for t in range(1, steps):
            moved = torch.logsumexp(messages[-1][:, :, None] + transition, 1) + emission[:, t]
            messages.append(torch.where(valid[:, t], moved, messages[-1]) if is_ragged else moved)
        return messages

    def forward_backward() -> Any:
        messages, message = forward(), torch.zeros_like(emission[:, 0])
        rows = [message]
        for t in range(steps - 1, 0, -1):
            moved = torch.logsumexp(transition + (emission[:, t] + message)[:, None, :], 2)
            message = torch.where(valid[:, t], moved, 0.0) if is_ragged else moved
            rows.append(message)
        joint = torch.stack(messages, 1) + torch.stack(rows[::-1], 1)
        return joint.softmax(-1), torch.logsumexp(messages[-1], 1)

    def viterbi() -> Any:
        message, pointers = initial + emission[:, 0], []
        here = torch.arange(problem.cell.states)
        for t in range(1, steps):
            moved, source = (message[:, :, None] + transition).max(1)
            moved = moved + emission[:, t]
            message = torch.where(valid[:, t], moved, message) if is_ragged else moved
            pointers.append(torch.where(valid[:, t], source, here) if is_ragged else source)
        path = [message.argmax(1, keepdim=True)]
        for source in reversed(pointers):
            path.append(source.gather(1, path[-1]))
        return torch.cat(path[::-1], 1)

    def gradient() -> Any:
        return torch.autograd.grad(torch.logsumexp(forward()[-1], 1).sum(), (initial, transition, emission))

    if operation == "log_likelihood":
        return lambda: torch.logsumexp(forward()[-1], 1), _numpy
    if operation == "gradient":
        return gradient, lambda out: _like_truth(problem, _numpy(out))
    return (forward_backward, _numpy) if operation == "forward_backward" else (viterbi, _numpy)


def pomegranate(problem: Problem, operation: str, dtype: str) -> Timed:
    """`DenseHMM.forward`, `forward_backward` and `viterbi` with `emissions=`; ragged: zero padding, or an end state."""
    from pomegranate.distributions import Normal
    from pomegranate.hmm import DenseHMM

    is_padded = problem.cell.kind == "ragged" and operation == "viterbi"
    arrays = problem.with_end_state() if is_padded else (*problem.probabilities(), problem.log_emission)
    starts, edges, emission = (torch.as_tensor(x).to(getattr(torch, dtype)).clone() for x in arrays)
    with default_dtype(emission.dtype):
        states = [Normal(torch.zeros(1), torch.ones(1), covariance_type="diag") for _ in starts]
        model = DenseHMM(states, edges=edges, starts=starts, ends=torch.ones(len(states)))
    last = torch.as_tensor(problem.lengths) - 1
    rows = torch.arange(problem.cell.batch)

    def log_likelihood() -> Any:
        return torch.logsumexp(model.forward(emissions=emission)[rows, last], -1)

    if operation == "log_likelihood":
        return log_likelihood, _numpy
    if operation == "viterbi":
        return lambda: model.viterbi(emissions=emission), _numpy
    if operation == "forward_backward":
        call = lambda: model.forward_backward(emissions=emission)  # noqa: E731
        return call, lambda out: _numpy((out[1].exp(), out[4]))
    wanted = [x.requires_grad_() for x in (model.starts, model.edges, emission)]
    call = lambda: torch.autograd.grad(log_likelihood().sum(), wanted)  # noqa: E731
    return call, lambda out: _like_truth(problem, _numpy(out))


def torch_struct(problem: Problem, operation: str, dtype: str) -> Timed:
    """`LinearChainCRF` over potentials built from the emissions: `partition`, `marginals`, `argmax`."""
    from torch_struct import LinearChainCRF

    leaves = _tensors(problem, dtype, operation == "gradient", LOG_ZERO)
    initial, transition, emission = leaves
    lengths = torch.as_tensor(problem.lengths) if problem.cell.kind == "ragged" else None

    def chain() -> Any:
        first = torch.zeros_like(emission[:, 1:])
        first[:, 0] = initial + emission[:, 0]
        return LinearChainCRF(transition.T + emission[:, 1:, :, None] + first[:, :, None, :], lengths)

    def posteriors() -> Any:
        distribution = chain()
        pairs = distribution.marginals.detach()
        return torch.cat([pairs[:, :1].sum(-2), pairs.sum(-1)], 1), distribution.partition.detach()

    def viterbi() -> Any:
        pairs = chain().argmax.detach()
        return torch.cat([pairs[:, :1].sum(-2), pairs.sum(-1)], 1).argmax(-1)

    if operation == "gradient":
        call = lambda: torch.autograd.grad(chain().partition.sum(), leaves)  # noqa: E731
        return call, lambda out: _like_truth(problem, _numpy(out))
    if operation == "log_likelihood":
        return lambda: chain().partition, _numpy
    return (posteriors, _numpy) if operation == "forward_backward" else (viterbi, _numpy)


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    """What a pomegranate model takes its dtype from when it is made."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tensors(problem: Problem, dtype: str, is_leaf: bool, log_zero: float | None = None) -> list[Any]:
    arrays = [problem.log_initial, problem.log_transition, problem.log_emission]
    tensors = [torch.as_tensor(x).to(getattr(torch, dtype)) for x in arrays]
    if log_zero is not None:
        tensors = [x.clamp(min=log_zero) for x in tensors]
    return [x.clone().requires_grad_(is_leaf) for x in tensors]


def _numpy(out: Any) -> Any:
    if isinstance(out, tuple):
        return tuple(_numpy(x) for x in out)
    out = out.detach()
    return (out.double() if out.is_floating_point() else out).numpy()


def _like_truth(problem: Problem, gradients: Any) -> Any:
    """The bands of a dense gradient, where bands are what the truth is about."""
    if problem.log_bands is None:
        return gradients
    initial, dense, emission = gradients
    return initial, problem.bands_of(dense), emission
