"""What every HMM module shares: the chain's parameters, the checks, and one functional call a method."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import log, prod
from typing import Any, Literal, NamedTuple, Self, TypedDict

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional._check import need_count

from ._check import lengths_like, log_of, need_frames, need_support
from .io import load, save
from .parametrize import AssignableModule, LogProbabilities, Parametrized, full_precision, widened

Topology = Literal["left_to_right", "ergodic"]


class ChainFunctions(NamedTuple):
    """What the methods of a module call: each gives results with the fields that those of a plain chain have."""

    log_likelihood: Callable[..., Any]
    forward_backward: Callable[..., Any]
    forward: Callable[..., Any]
    viterbi: Callable[..., Any]


class Read(NamedTuple):
    """Checked observations, and where they are."""

    x: Tensor
    """(..., T, *frame_shape)"""
    steps: Tensor
    """(..., T) integers 0..T-1"""
    ends: Tensor
    """(...), the lengths"""
    is_read: Tensor
    """(..., T): neither padding nor unobserved."""


class ChainOptions(TypedDict, total=False):
    """Keyword arguments that every HMM module takes; `BaseHMM` says what they mean."""

    initial: Any
    transition: Any
    topology: Topology | None
    self_loop: float | None
    learnable: bool
    missing: Literal["raise", "nan"]


class BaseHMM(AssignableModule, ABC):
    """A Markov chain of `num_states` hidden states, seen through what a subclass's `_emission_log_prob` scores.

    Args:
        num_states: K.
        frame_shape: shape of one observation: (D,), or () for symbols.
        initial: (K,) probabilities of the first state; default all alike, or the first state for left_to_right.
        transition: (K, K) probabilities, [from, to]; default all alike. Zeros, here and in `initial`, are structural:
            no optimiser changes them.
        topology: "left_to_right" (stay or go on by one) or "ergodic" instead of `transition`.
        self_loop: probability of staying, with a topology; default 0.5.
        learnable: whether initial and transition probabilities take gradients, and count as parameters.
        missing: what NaN observations mean: "raise" refuses them, "nan" takes them as unobserved: the feature in
            Gaussians and their mixtures, which is integrated out, the whole frame in others.

    Raises:
        ValueError: an argument that is no model; the message says what to do.

    Every method takes observations x (..., T, *frame_shape), any number of leading axes (the batch), and
    `lengths` (...), integers 1..T, for right-padded sequences: padding may hold anything. No leading axis means one
    sequence, and results without a batch axis. Values are checked when they can be read: not under torch.compile or
    torch.func. Scores and recursions run in float32 or wider, also under autocast.

    An impossible sequence has log-likelihood -inf, posteriors 0 and states -1, and so has padding.
    """

    _support: tuple[float | None, float | None] = (-torch.inf, torch.inf)
    _wanted = "finite observations"
    _marginalizes = False
    _num_lags = 0
    _functions = ChainFunctions(hf.log_likelihood, hf.forward_backward, hf.forward, hf.viterbi)
    _may_end = False
    """Whether a state may lead nowhere."""
    _is_conditional = False
    """Whether chain or emissions depend on more than the parameters, so that nothing but its own methods runs it."""

    def __init__(
        self,
        num_states: int,
        frame_shape: tuple[int, ...],
        *,
        initial: Any = None,
        transition: Any = None,
        topology: Topology | None = None,
        self_loop: float | None = None,
        learnable: bool = True,
        missing: Literal["raise", "nan"] = "raise",
    ) -> None:
        super().__init__()
        if missing not in ("raise", "nan"):
            raise ValueError(f"missing: expected 'raise' or 'nan', got {missing!r}")
        self.num_states = need_count("num_states", num_states, 1)
        self.frame_shape = frame_shape
        self.learnable = learnable
        self.missing = missing
        start, moves = self._chain_start(initial, transition, topology, self_loop)
        self.initial_distribution = LogProbabilities(start, "(K,)", learnable)
        self.transition_distribution = self._make_moves(moves)

    @property
    def log_initial(self) -> Tensor:
        """log p(z_0), (K,), nats; assignable, -inf becoming a structural zero."""
        return self.initial_distribution.forward()

    @log_initial.setter
    def log_initial(self, value: Any) -> None:
        self.initial_distribution.assign("log_initial", value)

    @property
    def log_transition(self) -> Tensor:
        """log p(z_{t+1} given z_t), (K, K), [from, to], nats; assignable, -inf becoming a structural zero."""
        return self.transition_distribution.forward()

    @log_transition.setter
    def log_transition(self, value: Any) -> None:
        self.transition_distribution.assign("log_transition", value)

    def fix(self, name: str, is_fixed: Any = True) -> Self:
        """Keep entries of a parameter: no learning, of whatever kind, changes a bit of them, and none counts them.

        Args:
            name: of the parameter, such as "means" or "log_transition".
            is_fixed: booleans of its shape, or a shape that broadcasts to it: True keeps an entry at its present value,
                False frees it. Of "full" and "tied" covariances whole matrices. Probabilities that are not fixed share
                what the fixed ones of their row leave.

        Returns:
            The module itself.

        Raises:
            ValueError: no such parameter, or no such booleans.

        Assigning to the parameter sets fixed entries, too.

        Example:
            >>> from pytorch_hmm import GaussianHMM
            >>> hmm = GaussianHMM(2, 1, means=[[0.0], [1.0]]).fix("means", [[True], [False]])
            >>> hmm.num_free_parameters()
            6
        """
        known = self._parametrized()
        if name not in known:
            raise ValueError(f"name: expected one of {', '.join(map(repr, known))}, got {name!r}")
        known[name].fix(name, is_fixed)
        return self

    @property
    def initial(self) -> Tensor:
        """p(z_0), (K,), probabilities; assignable."""
        return self.log_initial.exp()

    @initial.setter
    def initial(self, value: Any) -> None:
        self.initial_distribution.assign("initial", log_of("initial", value, (self.num_states,), "(K,)"))

    @property
    def transition(self) -> Tensor:
        """p(z_{t+1} given z_t), (K, K), probabilities; assignable."""
        return self.log_transition.exp()

    @transition.setter
    def transition(self, value: Any) -> None:
        made = self.transition_distribution
        made.assign("transition", log_of("transition", value, made.shape, made.words, self._may_end))

    def forward(self, x: Tensor, lengths: Any = None) -> Tensor:
        """log p(x) of each sequence, (...), nats: the loss of a batch is `-model(x, lengths).mean()`."""
        return self._call(self._functions.log_likelihood, x, lengths)  # type: ignore[no-any-return]

    def log_prob(self, x: Tensor, lengths: Any = None) -> Tensor:
        """log p(x) of each sequence, (...), nats; the same as calling the module."""
        return self.forward(x, lengths)

    def emission_log_prob(self, x: Tensor, lengths: Any = None) -> Tensor:
        """log p(x_t given z_t), (..., T, K), nats; unobserved frames score 0, padding holds no meaning."""
        with full_precision(self.initial_distribution.logits):
            return self._emission(x, lengths)[0]

    def forward_backward(self, x: Tensor, lengths: Any = None) -> tuple[Tensor, Tensor]:
        """Posterior probabilities p(z_t given x), (..., T, K), and log p(x), (...)."""
        found = self._call(self._functions.forward_backward, x, lengths)
        return found.log_posteriors.exp(), found.log_likelihood

    def filter(self, x: Tensor, lengths: Any = None) -> Tensor:
        """Filtered probabilities p(z_t given x_0..t), (..., T, K)."""
        return self._call(self._functions.forward, x, lengths).log_filtered.exp()  # type: ignore[no-any-return]

    def viterbi_decode(self, x: Tensor, lengths: Any = None) -> tuple[Tensor, Tensor]:
        """The most probable state path, (..., T) int64, and its log p(x, z), (...)."""
        found = self._call(self._functions.viterbi, x, lengths)
        return found.states, found.log_joint

    def aic(self, x: Tensor, lengths: Any = None) -> Tensor:
        """Akaike's information criterion of all sequences together, scalar; lower is better.

        References: Akaike 1974: 2 n - 2 log p(x) with n = `num_free_parameters()`.
        """
        return self._criterion(2.0, self.forward(x, lengths))

    def bic(self, x: Tensor, lengths: Any = None) -> Tensor:
        """Schwarz's information criterion of all sequences together, scalar; lower is better.

        References: Schwarz 1978: n log(frames) - 2 log p(x), every frame within its length counted.
        """
        return self._criterion(log(self._num_frames(x, lengths)), self.forward(x, lengths))

    def num_free_parameters(self) -> int:
        """Numbers that learning sets: a row of probabilities has one fewer than its possible entries."""
        chain = ("log_initial", "log_transition")
        return sum(x.num_free() for name, x in self._parametrized().items() if self.learnable or name not in chain)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to `path`, a safetensors file; an interrupted save leaves the file that was there."""
        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: Any = "cpu") -> Self:
        """The model that `save` wrote to `path`; no code from the file is run.

        Called on a class it gives a model of that class or one below it: `BaseHMM.load` takes any.

        Raises:
            OSError: there is no such file. ValueError: a damaged file, or one that holds another model.
        """
        return load(path, cls, device)  # type: ignore[no-any-return]

    def _chain_start(
        self, initial: Any, transition: Any, topology: Topology | None, self_loop: float | None
    ) -> tuple[Tensor, Tensor]:
        """Checked log p(z_0) and log transition, float64."""
        return chain_start(self.num_states, initial, transition, topology, self_loop)

    def _criterion(self, weight: float, log_likelihood: Tensor) -> Tensor:
        """An information criterion that weighs each free parameter so."""
        return weight * self.num_free_parameters() - 2.0 * log_likelihood.detach().sum()

    def _num_frames(self, x: Tensor, lengths: Any) -> int:
        """Frames within the lengths."""
        if lengths is not None:
            return int(torch.as_tensor(lengths).sum())
        return prod(x.shape[: x.ndim - len(self.frame_shape)])

    def _arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        return {"num_states": self.num_states, "learnable": self.learnable, "missing": self.missing}

    @abstractmethod
    def _emission_log_prob(self, x: Tensor) -> Tensor:
        """log p(x_t given z_t), (..., T, K), of checked observations: the one thing a subclass must give."""
        raise NotImplementedError

    def _parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters, by the names of the properties."""
        return {"log_initial": self.initial_distribution, "log_transition": self.transition_distribution}

    def _call(self, function: Callable[..., Any], x: Tensor, lengths: Any, **options: Any) -> Any:
        """A chain function of this model and these observations."""
        with full_precision(self.initial_distribution.logits):
            emission, ends = self._emission(x, lengths)
            return self._on(function, self._transitions(x, ends), emission, ends, **options)

    def _on(self, function: Callable[..., Any], transition: Any, emission: Tensor, lengths: Any, **options: Any) -> Any:
        """The same of scores (..., T, K)."""
        return function(self.log_initial, transition, emission, lengths=lengths, **options)

    def _transitions(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """What chain functions take as the transition, of observations as they were given."""
        return self.log_transition

    def _emission(self, x: Tensor, lengths: Any) -> tuple[Tensor, Tensor | None]:
        """Scores (..., T, K) of observations, 0 where unobserved, and the lengths."""
        x, lengths, is_missing = self._prepare(x, lengths)
        emission = self._emission_log_prob(x)
        if is_missing is not None:
            emission = hf.mask_emission(emission, ~is_missing)
        return emission, lengths

    def _prepare(self, x: Tensor, lengths: Any, name: str = "x") -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Checked observations, `_blank` in padding and unobserved frames; lengths; which frames are unobserved."""
        need_frames(name, x, self.frame_shape)
        rank = len(self.frame_shape)
        shape = x.shape[: x.ndim - rank]
        is_read: Tensor | None = None
        if lengths is not None:
            lengths = lengths_like(lengths, x, tuple(shape[:-1]), shape[-1])
            is_read = torch.arange(shape[-1], device=x.device) < lengths[..., None]
        is_missing: Tensor | None = None
        if self.missing == "nan" and x.is_floating_point():
            is_nan = x.isnan().reshape(*shape, -1)
            is_missing = is_nan.all(-1) if self._marginalizes else is_nan.any(-1)
            is_read = ~is_missing if is_read is None else is_read & ~is_missing
        can_miss = self.missing == "raise" and self._num_lags == 0
        remedy = "pass lengths= if it is padding" + ("; missing='nan' makes NaN unobserved" * can_miss)
        if is_read is None:
            self._check(name, x, None, remedy)
            return self._cast(x), lengths, None
        blank = torch.as_tensor(self._blank(), device=x.device).to(x.dtype)
        self._check(name, torch.where(x.isnan(), blank, x) if self._marginalizes else x, is_read, remedy)
        x = torch.where(is_read.reshape(*shape, *[1] * rank), x, blank)
        return self._cast(x), lengths, is_missing

    def _read(self, x: Tensor, lengths: Any) -> Read:
        """Observations to start from; one frame at least is observed."""
        x, lengths, is_missing = self._prepare(x, lengths)
        shape = x.shape[: x.ndim - len(self.frame_shape)]
        steps = torch.arange(shape[-1], device=x.device).expand(shape)
        ends = torch.full(shape[:-1], shape[-1], device=x.device) if lengths is None else lengths
        is_read = steps < ends[..., None]
        if is_missing is not None:
            is_read = is_read & ~is_missing
        if not is_read.any():
            raise ValueError("x: expected at least one observed frame, got none")
        return Read(x, steps, ends, is_read)

    def _blank(self) -> Any:
        """What stands for frames that are not read."""
        return 0

    def _check(self, name: str, x: Tensor, is_read: Tensor | None, remedy: str) -> None:
        """Raise ValueError for observations that are none."""
        need_support(name, x, len(self.frame_shape), self._support, is_read, self._wanted, remedy)

    def _cast(self, x: Tensor) -> Tensor:
        """Observations in the dtype that scores are computed in."""
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating-point observations, got {x.dtype}; convert with x.float()")
        return widened(x)

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        return f"num_states={self.num_states}"

    def _make_moves(self, start: Tensor) -> LogProbabilities:
        """What makes the transition probabilities."""
        return LogProbabilities(start, "(K, K)", self.learnable)

    def _sample_states(self, num_steps: int, batch_size: int | None, generator: torch.Generator | None) -> Tensor:
        return hf.sample(  # type: ignore[no-any-return]
            self.log_initial,
            self.log_transition,
            num_steps=num_steps,
            rng=torch.default_generator if generator is None else generator,
            batch_shape=() if batch_size is None else (batch_size,),
        )


def chain_start(
    num_states: int, initial: Any, transition: Any, topology: Topology | None, self_loop: float | None
) -> tuple[Tensor, Tensor]:
    """Checked log p(z_0) and log transition, float64."""
    uniform = torch.full((num_states,), -log(num_states), dtype=torch.float64)
    if topology is None:
        if self_loop is not None:
            raise ValueError("self_loop: expected only with topology=; write it into transition instead")
        moves = uniform.expand(num_states, num_states)
        if transition is not None:
            moves = log_of("transition", transition, (num_states, num_states), "(K, K)")
    elif transition is not None:
        raise ValueError("topology: expected either topology or transition, got both")
    elif topology in ("left_to_right", "ergodic"):
        build = hf.left_to_right if topology == "left_to_right" else hf.ergodic
        moves = build(num_states, self_loop=0.5 if self_loop is None else self_loop, like=uniform)
    else:
        raise ValueError(f"topology: expected None, 'left_to_right' or 'ergodic', got {topology!r}")
    if initial is not None:
        return log_of("initial", initial, (num_states,), "(K,)"), moves
    is_first = torch.arange(num_states) == 0
    return (torch.where(is_first, 0.0, -torch.inf).double() if topology == "left_to_right" else uniform), moves
