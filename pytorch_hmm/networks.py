"""Networks that move a model's parameters from frame to frame, and their evaluation in pieces of the time axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from .pieces import over_time

Kind = Literal["constant", "linear", "mlp", "gru"]

WORKSPACE = 2**23
"""Elements of scratch that one piece of the time axis may use."""


class Sees(NamedTuple):
    """What networks of a model see, and how large they are."""

    context_dim: int
    """C, 0 for none."""
    past_dim: int
    """Numbers of the frames before each frame, 0 for none."""
    num_states: int
    """K."""
    state_dim: int | None
    """E, where state vectors are given."""
    hidden_dim: int
    """H."""
    dropout: float
    """Of pre-nets, in training."""
    is_causal: bool
    """Whether what a frame gives may not depend on the context after it."""

    @property
    def num_directions(self) -> int:
        """In which a context is read."""
        return 0 if self.context_dim == 0 else 1 if self.is_causal else 2


class Network(nn.Module):
    """Numbers of each frame and state, (..., T, K, O), from what is known beside a frame: context, past, state vectors.

    `encode` and `recall` see the whole time axis and give what is kept of it, (..., T, P); `forward` takes pieces of
    that, and treats each frame by itself.

    Attributes:
        width: numbers that `forward` holds for each frame and state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def encode(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What is kept of a context (..., T or 1, C) whose padding is 0; C is 0 where there is none."""
        return context

    def recall(self, past: Tensor | None, carry: Any = None) -> tuple[Tensor | None, Any]:
        """What is kept of the frames before each frame, (..., T, P), and what to go on with behind them."""
        return past, None

    def states(self, given: Tensor | None) -> Tensor | None:
        """What `forward` takes of state vectors (..., K, E); None are learned ones."""
        return given

    def frames(self, context: Tensor, past: Tensor | None, lengths: Tensor | None) -> Tensor:
        """What is kept of every frame, (..., T or 1, P)."""
        return join(self.encode(context, lengths), self.recall(past)[0])

    def reset(self) -> None:
        """Give 0 from now on, until learning changes that."""

    def forward(self, frames: Tensor, states: Tensor | None) -> Tensor:
        """(..., T, K, O)."""
        raise NotImplementedError


class OwnNetwork(Network):
    """A module of the user's: frames (..., T, P) to (..., T, K, O); with state vectors it takes them, (..., K, E), too.

    Args:
        name: what errors call it.
        sizes: of O that it may give.
    """

    def __init__(self, module: nn.Module, name: str, num_states: int, sizes: tuple[int, ...]) -> None:
        super().__init__(max(sizes))
        self.module, self.name, self.num_states, self.sizes = module, name, num_states, sizes

    def forward(self, frames: Tensor, states: Tensor | None) -> Tensor:
        """(..., T, K, O), checked."""
        found: Tensor = self.module(frames) if states is None else self.module(frames, states)
        num_states = self.num_states if states is None else states.shape[-2]
        wanted = [(*frames.shape[:-1], num_states, size) for size in self.sizes]
        if not isinstance(found, Tensor) or tuple(found.shape) not in wanted:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            words = " or ".join(map(str, wanted))
            raise ValueError(f"{self.name}: expected it to give shape (..., T, K, O) = {words}, got {shown}")
        return found


class LinearNetwork(Network):
    """W_k [context, past], a matrix a state: logistic regression of moves, linear regression of means."""

    def __init__(self, sees: Sees, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.weights = nn.Parameter(torch.zeros(sees.num_states, num_outputs, sees.context_dim + sees.past_dim))

    def reset(self) -> None:
        """Weights of 0."""
        nn.init.zeros_(self.weights)

    def forward(self, frames: Tensor, states: Tensor | None) -> Tensor:
        """(..., T, K, O)."""
        return torch.einsum("...p,kop->...ko", frames, self.weights)


class PerceptronNetwork(Network):
    """W tanh(a_t + b_k): a part of the frame, by two layers, and a part of the state meet in one hidden layer.

    Past frames go through a pre-net of two layers. Parts of states are learned, or a linear layer of state vectors.
    """

    def __init__(self, sees: Sees, num_outputs: int) -> None:
        size = sees.hidden_dim
        super().__init__(size + num_outputs)
        self.prenet = _prenet(sees.past_dim, size, sees.dropout) if sees.past_dim else None
        frame_dim = self._frame_dim(sees)
        self.frame = None
        if frame_dim:
            self.frame = nn.Sequential(nn.Linear(frame_dim, size), nn.Tanh(), nn.Linear(size, size))
        self.reader = None if sees.state_dim is None else nn.Linear(sees.state_dim, size)
        self.learned = nn.Parameter(torch.randn(sees.num_states, size)) if sees.state_dim is None else None
        self.out = nn.Linear(size, num_outputs, bias=False)
        self.reset()

    def _frame_dim(self, sees: Sees) -> int:
        """P."""
        return sees.context_dim + sees.hidden_dim * (sees.past_dim > 0)

    def recall(self, past: Tensor | None, carry: Any = None) -> tuple[Tensor | None, Any]:
        """The pre-net of each frame."""
        return (None if self.prenet is None else self.prenet(past)), None

    def states(self, given: Tensor | None) -> Tensor | None:
        """Parts of the states, (K, H) or (..., 1, K, H)."""
        if self.reader is None:
            return self.learned
        return self.reader(given)[..., None, :, :]  # type: ignore[no-any-return]

    def reset(self) -> None:
        """A last layer of 0."""
        nn.init.zeros_(self.out.weight)

    def forward(self, frames: Tensor, states: Tensor | None) -> Tensor:
        """(..., T, K, O)."""
        assert states is not None
        hidden = states if self.frame is None else self.frame(frames)[..., None, :] + states
        return self.out(hidden.tanh())  # type: ignore[no-any-return]


class RecurrentNetwork(PerceptronNetwork):
    """The same behind GRUs over the context and over the pre-net of past frames.

    That of the context reads forwards alone where it `is_causal`, else a second one reads backwards, from each
    sequence's own end. Past frames are read forwards.
    """

    def __init__(self, sees: Sees, num_outputs: int) -> None:
        super().__init__(sees, num_outputs)
        size = sees.hidden_dim
        directions = range(sees.num_directions)
        self.readers = nn.ModuleList(nn.GRU(sees.context_dim, size, batch_first=True) for _ in directions)
        self.memory = nn.GRU(size, size, batch_first=True) if sees.past_dim else None

    def _frame_dim(self, sees: Sees) -> int:
        return sees.hidden_dim * (sees.num_directions + (sees.past_dim > 0))

    def encode(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        """States of the GRUs, each sequence read backwards from its own end."""
        if not len(self.readers):
            return context
        found = [_run(self.readers[0], context)[0]]
        if len(self.readers) == 2:
            back = _run(self.readers[1], _reversed(context, lengths))[0]
            found.append(_reversed(back, lengths))
        return torch.cat(found, -1)

    def recall(self, past: Tensor | None, carry: Any = None) -> tuple[Tensor | None, Any]:
        """States of the GRU over the pre-net."""
        known, _ = super().recall(past)
        return (None, None) if known is None else _run(self.memory, known, carry)


def network_of(kind: Any, name: str, sees: Sees, sizes: tuple[int, ...]) -> Network | None:
    """The network of a kind, or around a module; None where all is constant.

    Args:
        kind: a `Kind`, a module, or None: "mlp" where there is something to see, else "constant".
        name: what errors call it.
        sizes: of O that a module may give; networks made here give the largest.

    Raises:
        ValueError: no such kind, or nothing to see for it.
    """
    has_any = sees.context_dim + sees.past_dim + (sees.state_dim or 0) > 0
    if kind is None:
        kind = "mlp" if has_any else "constant"
    if isinstance(kind, nn.Module):
        return OwnNetwork(kind, name, sees.num_states, sizes)
    if kind not in get_args(Kind):
        known = ", ".join(map(repr, get_args(Kind)))
        raise ValueError(f"{name}: expected one of {known} or a torch.nn.Module, got {kind!r}")
    if kind == "constant":
        return None
    if not has_any:
        raise ValueError(f"{name}: expected 'constant' without context_dim and autoregressive, got {kind!r}")
    if kind == "linear" and sees.state_dim is not None:
        raise ValueError(f"{name}: expected 'mlp', 'gru' or a module with state_dim, got 'linear'")
    classes = {"linear": LinearNetwork, "mlp": PerceptronNetwork, "gru": RecurrentNetwork}
    return classes[kind](sees, max(sizes))


def kind_of(network: Network | None) -> Kind:
    """Of a network that `network_of` made."""
    if network is None:
        return "constant"
    if isinstance(network, LinearNetwork):
        return "linear"
    return "gru" if isinstance(network, RecurrentNetwork) else "mlp"


def evaluate(
    network: Network,
    frames: Tensor,
    states: Tensor | None,
    function: Callable[..., Tensor],
    num_states: int,
    workspace: int,
    axis: int,
    *,
    by_frame: Sequence[Tensor] = (),
    others: Sequence[Tensor] = (),
) -> Tensor:
    """function(network(frames, states), *by_frame, *others), frame by frame, in pieces of the time axis.

    Args:
        workspace: elements that a piece may use inside.
        axis: of time in what the function gives, from the end.
        by_frame: (..., T or 1, N).
    """
    names, weights = tuple(zip(*network.named_parameters(), strict=True)) or ((), ())
    num_cut, num_others = 1 + len(by_frame), len(others)

    def piece(frames: Tensor, *given: Tensor) -> Tensor:
        inside, own = given[: num_cut - 1 + num_others], given[num_cut - 1 + num_others :]
        vectors = own[len(names)] if states is not None else None
        outputs = functional_call(network, dict(zip(names, own[: len(names)], strict=True)), (frames, vectors))
        return function(outputs, *inside)

    batch = prod(np.broadcast_shapes(*(x.shape[:-2] for x in (frames, *by_frame))))
    length = max(1, workspace // max(1, batch * num_states * network.width))
    whole = (*others, *weights, *(() if states is None else (states,)))
    return over_time(piece, (frames, *by_frame), whole, length, axis)


def join(*parts: Tensor | None) -> Tensor:
    """Parts (..., T or 1, P), whose other axes broadcast, side by side."""
    given = [x for x in parts if x is not None]
    shape = np.broadcast_shapes(*(x.shape[:-1] for x in given))
    wide = [x.expand(*shape, -1) for x in given if x.shape[-1]] or [given[0].expand(*shape, -1)]
    return wide[0] if len(wide) == 1 else torch.cat(wide, -1)  # no copy of one alone, which would be kept for gradients


def _prenet(past_dim: int, hidden_dim: int, dropout: float) -> nn.Module:
    layers: list[nn.Module] = []
    for size in (past_dim, hidden_dim):
        layers += [nn.Linear(size, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _run(gru: Any, x: Tensor, carry: Any = None) -> tuple[Tensor, Any]:
    """A GRU over (..., T, N), any number of leading axes."""
    flat = x.reshape(prod(x.shape[:-2]), *x.shape[-2:])
    found, carry = gru(flat, carry)
    return found.reshape(*x.shape[:-1], -1), carry


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence (..., T, N) backwards within its length; padding stays where it is."""
    if lengths is None or x.shape[-2] == 1:
        return x.flip(-2)
    steps = torch.arange(x.shape[-2], device=x.device)
    order = torch.where(steps < lengths[..., None], lengths[..., None] - 1 - steps, steps)
    return x.take_along_dim(order[..., None], -2)
