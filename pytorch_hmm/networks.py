"""Networks that move a model's parameters from frame to frame, and their evaluation in pieces of the time axis."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmm_functional.backend import backend_named

Kind = Literal["constant", "linear", "mlp", "gru"]

WORKSPACE = 2**23
"""Elements of scratch that one piece of the time axis may use."""


class Network(nn.Module):
    """Numbers of each frame and state, (..., T, K, O), from what is known beside a frame: context, past, state vectors.

    `encode` and `recall` see the whole time axis and give what is kept of it, (..., T, P); `forward` takes pieces of
    that, and treats each frame by itself.

    Attributes:
        num_outputs: O.
        width: numbers that `forward` holds for each frame and state.
    """

    def __init__(self, num_outputs: int, width: int) -> None:
        super().__init__()
        self.num_outputs, self.width = num_outputs, width

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

    def __init__(self, module: nn.Module, name: str, num_states: int | None, sizes: tuple[int, ...]) -> None:
        super().__init__(max(sizes), max(sizes))
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

    def __init__(self, frame_dim: int, num_states: int, num_outputs: int) -> None:
        super().__init__(num_outputs, num_outputs)
        self.weights = nn.Parameter(torch.zeros(num_states, num_outputs, frame_dim))

    def reset(self) -> None:
        """Weights of 0."""
        nn.init.zeros_(self.weights)

    def forward(self, frames: Tensor, states: Tensor | None) -> Tensor:
        """(..., T, K, O)."""
        return torch.einsum("...p,kop->...ko", frames, self.weights)


class PerceptronNetwork(Network):
    """W tanh(a_t + b_k): a part of the frame, by two layers, and a part of the state meet in one hidden layer.

    Args:
        context_dim, past_dim: of what comes in, 0 for none; past frames go through a pre-net of two layers.
        num_states: K, of learned parts.
        state_dim: E, where state vectors are given, through a linear layer; None for learned parts.
        hidden_dim: H.
        dropout: of the pre-net, in training.
    """

    def __init__(
        self,
        context_dim: int,
        past_dim: int,
        num_states: int,
        state_dim: int | None,
        hidden_dim: int,
        num_outputs: int,
        dropout: float,
    ) -> None:
        super().__init__(num_outputs, hidden_dim + num_outputs)
        self.prenet = _prenet(past_dim, hidden_dim, dropout) if past_dim else None
        frame_dim = self._frame_dim(context_dim, past_dim, hidden_dim)
        self.frame: nn.Module | None = None
        if frame_dim:
            self.frame = nn.Sequential(nn.Linear(frame_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, hidden_dim))
        self.state: nn.Module | nn.Parameter
        self.state = nn.Parameter(torch.randn(num_states, hidden_dim))
        if state_dim is not None:
            self.state = nn.Linear(state_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, num_outputs, bias=False)
        self.reset()

    def _frame_dim(self, context_dim: int, past_dim: int, hidden_dim: int) -> int:
        """P."""
        return context_dim + hidden_dim * (past_dim > 0)

    def recall(self, past: Tensor | None, carry: Any = None) -> tuple[Tensor | None, Any]:
        """The pre-net of each frame."""
        return (None if self.prenet is None else self.prenet(past)), None

    def states(self, given: Tensor | None) -> Tensor | None:
        """Parts of the states, (K, H) or (..., 1, K, H)."""
        if isinstance(self.state, nn.Module):
            return self.state(given)[..., None, :, :]  # type: ignore[no-any-return]
        return self.state

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

    Args:
        is_causal: whether that of the context reads forwards alone; else a second one reads backwards. Past frames are
            always read forwards.
    """

    def __init__(self, *sizes: Any, is_causal: bool) -> None:
        self._directions = 1 if is_causal else 2
        super().__init__(*sizes)
        context_dim, past_dim, _, _, hidden_dim, *_ = sizes
        directions = range(self._directions if context_dim else 0)
        self.readers = nn.ModuleList(nn.GRU(context_dim, hidden_dim, batch_first=True) for _ in directions)
        self.memory = nn.GRU(hidden_dim, hidden_dim, batch_first=True) if past_dim else None

    def _frame_dim(self, context_dim: int, past_dim: int, hidden_dim: int) -> int:
        return hidden_dim * (self._directions * (context_dim > 0) + (past_dim > 0))

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


def network_of(
    kind: Any,
    name: str,
    *,
    context_dim: int,
    past_dim: int,
    num_states: int,
    state_dim: int | None,
    hidden_dim: int,
    sizes: tuple[int, ...],
    dropout: float,
    is_causal: bool,
) -> Network | None:
    """The network of a kind, or around a module; None where all is constant.

    Args:
        kind: a `Kind`, a module, or None: "mlp" where there is something to see, else "constant".
        name: what errors call it.
        sizes: of O that a module may give; networks made here give the largest.

    Raises:
        ValueError: no such kind, or nothing to see for it.
    """
    sees = context_dim + past_dim + (state_dim or 0)
    if kind is None:
        kind = "mlp" if sees else "constant"
    if isinstance(kind, nn.Module):
        return OwnNetwork(kind, name, None if state_dim else num_states, sizes)
    if kind not in ("constant", "linear", "mlp", "gru"):
        raise ValueError(f"{name}: expected 'constant', 'linear', 'mlp', 'gru' or a torch.nn.Module, got {kind!r}")
    if kind == "constant":
        return None
    if not sees:
        raise ValueError(f"{name}: expected 'constant' without context_dim and autoregressive, got {kind!r}")
    if kind == "linear":
        if state_dim is not None:
            raise ValueError(f"{name}: expected 'mlp', 'gru' or a module with state_dim, got 'linear'")
        return LinearNetwork(context_dim + past_dim, num_states, max(sizes))
    shape = (context_dim, past_dim, num_states, state_dim, hidden_dim, max(sizes), dropout)
    return PerceptronNetwork(*shape) if kind == "mlp" else RecurrentNetwork(*shape, is_causal=is_causal)


def over_time(
    network: Network, function: Callable[..., Tensor], workspace: int, num_states: int, axis: int, *arrays: Tensor
) -> Tensor:
    """function(*arrays), which looks at each frame by itself, over pieces of the time axis, second from the end.

    Args:
        network: what the function calls; its insides are computed again for gradients instead of kept.
        workspace: elements that a piece may use inside.
        axis: of time in what the function gives.
        arrays: (..., T or 1, N).
    """
    num_steps = max(x.shape[-2] for x in arrays)
    batch = prod(torch.broadcast_shapes(*(x.shape[:-2] for x in arrays)))
    length = max(1, workspace // max(1, batch * num_states * network.width))
    if num_steps <= length:
        return function(*arrays)
    known = tuple(network.parameters())  # so that it is seen that gradients are wanted
    count, remat = len(arrays), backend_named("torch").remat

    def piece(*given: Tensor) -> Tensor:
        return function(*given[:count])

    pieces = []
    for start in range(0, num_steps, length):
        cut = (x if x.shape[-2] == 1 else x[..., start : start + length, :] for x in arrays)
        pieces.append(remat(piece, *cut, *known))
    return torch.cat(pieces, axis)


def join(*parts: Tensor | None) -> Tensor:
    """Parts (..., T or 1, P), whose other axes broadcast, side by side."""
    given = [x for x in parts if x is not None]
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in given))
    return torch.cat([x.expand(*shape, -1) for x in given], -1)


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
