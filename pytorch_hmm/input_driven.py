"""HMMs whose transitions depend on inputs: a logistic regression of the next state in each state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, Unpack

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional import learning
from hmm_functional._check import need_count
from hmm_functional.emissions.constraints import need_at_least
from hmm_functional.learning import HMMParameters, Statistics

from ._check import lengths_like, need_frames, need_support
from .context import BesideContext
from .data import Batch, is_distributed
from .descent import Trained
from .emission import Emission
from .hmm import ChainOptions
from .law import parameter
from .parametrize import Numbers, Parametrized, widened
from .report import FitReport
from .trainable import EmissionHMM
from .training import Training


class _Pairs:
    """p(z_t, z_{t+1} given x), (N, K, K), and the inputs they met, (N, P), batch by batch: what adds up is the list."""

    def __init__(self, parts: list[tuple[Tensor, Tensor]]) -> None:
        self.parts = parts

    def __add__(self, other: _Pairs) -> _Pairs:
        return _Pairs(self.parts + other.parts)

    def sum(self, axis: int) -> Tensor:
        """Expected numbers of transitions (K, K), summed along one axis."""
        counts = torch.stack([pairs.sum(0) for pairs, _ in self.parts]).sum(0)
        return counts.sum(axis)


class ContextTraining(Training):
    """Training of an `InputDrivenHMM`: its log_transition is a `LogisticTransitions`, statistics of it are `_Pairs`."""

    _model: InputDrivenHMM

    def __init__(self, model: Any, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        if not model.learnable:
            self._frozen.add("transition_weights")
        concentration = 1.0 if self._priors is None else self._priors.transition
        if not isinstance(concentration, int | float) or concentration != 1:
            raise ValueError("priors.transition: expected 1, none; weights have the penalty of ridge=")

    def restarts_at_once(self) -> int:
        """One: their M-steps share nothing."""
        return 1

    def by_em(self, method: str, starts: list[HMMParameters]) -> list[Trained]:
        """EM, of expectations alone."""
        if method != "em":
            raise ValueError(f"method: expected 'em' or 'gradient' where transitions depend on inputs, got {method!r}")
        if is_distributed():
            raise NotImplementedError("fit: EM of transitions that depend on inputs runs in one process")
        return super().by_em(method, starts)

    def stepwise(self, power: float) -> Trained:
        """Not there."""
        raise ValueError("method: expected 'em' or 'gradient' where transitions depend on inputs, got 'stepwise'")

    def _of_batch(self, batch: Batch, parameters: HMMParameters, method: str) -> Statistics:
        weights, biases = parameters.log_transition
        inputs = self._model._inputs(batch.x).to(weights)
        transitions = hf.logistic_transitions(inputs, weights, biases, lengths=batch.lengths)
        found = super()._of_batch(batch, parameters._replace(log_transition=transitions), method)
        pairs = found.transitions.reshape(-1, *biases.shape)
        return found._replace(transitions=_Pairs([(pairs, inputs[..., 1:, :].reshape(-1, inputs.shape[-1]))]))

    def _maximize(self, statistics: Statistics, parameters: HMMParameters) -> HMMParameters:
        law, fixed = parameters.log_transition, self._fixed or HMMParameters(None, None, None)
        found = learning.maximize(
            statistics._replace(transitions=law.biases),
            parameters._replace(log_transition=law.biases),
            self._family,
            priors=self._priors,
            fixed=fixed._replace(log_transition=True),
        )
        pairs, inputs = (torch.cat(parts) for parts in zip(*statistics.transitions.parts, strict=True))
        inputs = torch.cat([inputs.new_zeros(1, inputs.shape[-1]), inputs])
        is_kept = fixed.log_transition
        if isinstance(is_kept, Tensor):  # what probabilities at inputs of zero share depends on all biases of a row
            is_kept = is_kept.any(-1, keepdim=True).expand_as(is_kept)
        is_held = True if "transition_weights" in self._frozen else self._model.transition_slopes.is_fixed
        new = hf.maximize_logistic_transitions(
            pairs, inputs, *law, ridge=self._model.ridge, fixed=hf.LogisticTransitions(is_held, is_kept)
        )
        biases = learning.keep(is_kept, law.biases, new.biases.log_softmax(-1))
        return found._replace(log_transition=new._replace(biases=biases))

    def _prior_of(self, parameters: HMMParameters) -> Any:
        penalty = 0.5 * self._model.ridge * parameters.log_transition.weights.square().sum()
        return super()._prior_of(parameters) - penalty


class InputDrivenHMM(EmissionHMM):
    """An HMM whose transitions follow inputs u_t by logistic regressions: p(z_t = j given z_{t-1} = i, u_t) is in
    proportion to transition[i, j] exp(transition_weights[i, j] . u_t).

    Args:
        num_states: K.
        emission: what the states emit, an `Emission` of single frames.
        context_dim: P, how many inputs a frame has.
        transition_weights: (K, K, P), [from, to]; default zeros, with which it is the plain HMM.
        ridge: of the penalty ridge / 2 times the sum of squares of the weights in learning; a normal prior.
        tied_states: as `EmissionHMM`.
        options: `initial`, `transition` (probabilities, at inputs of zero), `topology`, `self_loop`, `learnable`,
            `missing`, as `BaseHMM`.

    Attributes:
        log_transition: (K, K), log p(z_{t+1} given z_t) at inputs of zero.

    Methods take the inputs as `context` (..., T, P), frames as x has them; those of step 0 and of padding are not used.
    Without `context`, x holds them beside the observations, (..., T, D + P), as batches for `fit` do. Inputs are always
    known: `missing` speaks of observations alone.

    The move from step t to t+1 reads the inputs of t+1, the step moved to, as input-output HMMs do. In depmixS4
    (Visser and Speekenbrink), and in `NeuralHMM`, those of t, the step moved from, decide: for that pass inputs one
    step later, `torch.cat([context[..., :1, :], context[..., :-1, :]], -2)`.

    What is added to all weights of a row and an input changes nothing; `fix("transition_weights", ...)` can make one
    transition a row the reference.

    References: Bengio and Frasconi 1995; Visser and Speekenbrink 2010.

    Example:
        >>> import torch
        >>> from pytorch_hmm import GaussianEmission
        >>> hmm = InputDrivenHMM(2, GaussianEmission(2, obs_dim=1), context_dim=1)
        >>> x, context = torch.randn(50, 1), torch.randn(50, 1)
        >>> hmm.fit(x, context=context, num_iterations=3, tolerance=0).stopped
        'num_iterations'
        >>> hmm.viterbi_decode(x, context=context)[0].shape
        torch.Size([50])
    """

    emission: BesideContext
    _is_conditional = True
    _training = ContextTraining

    def __init__(
        self,
        num_states: int,
        emission: Emission,
        context_dim: int,
        *,
        transition_weights: Any = None,
        ridge: float = 0.0,
        tied_states: Sequence[int] | None = None,
        **options: Unpack[ChainOptions],
    ) -> None:
        self.context_dim = need_count("context_dim", context_dim, 1)
        super().__init__(num_states, BesideContext(emission, context_dim), tied_states=tied_states, **options)
        need_at_least("ridge", ridge, 0.0)
        self.ridge = ridge
        self.transition_slopes = Numbers(torch.zeros(num_states, num_states, context_dim), "(K, K, P)")
        self.transition_slopes.values.requires_grad_(self.learnable)
        if transition_weights is not None:
            self.transition_weights = transition_weights

    transition_weights = parameter("transition_weights", "transition_slopes", "(K, K, P), [from, to]; assignable.")

    def forward(self, x: Tensor, lengths: Any = None, context: Tensor | None = None) -> Tensor:
        """log p(x given context) of each sequence, (...), nats."""
        return super().forward(self._joined(x, context), lengths)

    def log_prob(self, x: Tensor, lengths: Any = None, context: Tensor | None = None) -> Tensor:
        """The same as calling the module."""
        return self.forward(x, lengths, context)

    def forward_backward(self, x: Tensor, lengths: Any = None, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Posterior probabilities p(z_t given x), (..., T, K), and log p(x), (...)."""
        return super().forward_backward(self._joined(x, context), lengths)

    def filter(self, x: Tensor, lengths: Any = None, context: Tensor | None = None) -> Tensor:
        """Filtered probabilities p(z_t given x_0..t), (..., T, K)."""
        return super().filter(self._joined(x, context), lengths)

    def viterbi_decode(self, x: Tensor, lengths: Any = None, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The most probable state path, (..., T) int64, and its log p(x, z), (...)."""
        return super().viterbi_decode(self._joined(x, context), lengths)

    def emission_log_prob(self, x: Tensor, lengths: Any = None, context: Tensor | None = None) -> Tensor:
        """log p(x_t given z_t), (..., T, K), nats, which inputs have no part in."""
        return super().emission_log_prob(self._joined(x, context), lengths)

    def transitions(self, context: Tensor, lengths: Any = None) -> Tensor:
        """log p(z_{t+1} given z_t, u_{t+1}), (..., T-1, K, K), of inputs (..., T, P); padding is not read."""
        weights, biases = self.transition_weights, self.log_transition
        found: Tensor = hf.logistic_transitions(widened(context), weights, biases, lengths=lengths)
        return found

    def aic(self, x: Tensor, lengths: Any = None, context: Tensor | None = None) -> Tensor:
        """Akaike's information criterion, as `BaseHMM.aic`."""
        return super().aic(self._joined(x, context), lengths)

    def bic(self, x: Tensor, lengths: Any = None, context: Tensor | None = None) -> Tensor:
        """Schwarz's information criterion, as `BaseHMM.bic`."""
        return super().bic(self._joined(x, context), lengths)

    def num_free_parameters(self) -> int:
        """Numbers that learning sets; of weights one fewer a row and input than its transitions, if none is fixed."""
        found = super().num_free_parameters() - self.transition_slopes.num_free()
        if not self.learnable:
            return found
        is_allowed, is_fixed = self.transition_distribution.is_allowed[..., None], self.transition_slopes.is_fixed
        held = torch.zeros_like(self.transition_slopes.values, dtype=torch.bool) if is_fixed is None else is_fixed
        is_free, has_reference = is_allowed & ~held, (is_allowed & held).any(1)
        return found + int((is_free.sum(1) - (~has_reference).long()).clamp_min(0).sum())

    def initialize_from_data(
        self, x: Tensor, lengths: Any = None, *, context: Tensor | None = None, **options: Any
    ) -> Self:
        """As `EmissionHMM.initialize_from_data`; weights of inputs become zeros."""
        return super().initialize_from_data(self._joined(x, context), lengths, **options)

    def initialize_randomly(
        self, x: Tensor, lengths: Any = None, *, context: Tensor | None = None, **options: Any
    ) -> Self:
        """As `EmissionHMM.initialize_randomly`; weights of inputs become zeros."""
        return super().initialize_randomly(self._joined(x, context), lengths, **options)

    def fit(self, data: Any, lengths: Any = None, *, context: Any = None, **options: Any) -> FitReport:
        """Learn all parameters from data and inputs.

        Args:
            data, lengths: as `EmissionHMM.fit`; batches hold the inputs beside the observations, (..., T, D + P).
            context: (..., T, P), or with a list of sequences a list of (T_i, P).
            options: as `EmissionHMM.fit`; `method` is "em" or "gradient". EM's M-step of the transitions is
                `maximize_logistic_transitions`; a row of `log_transition` with fixed entries keeps all of them.

        Returns, raises, warns: as `EmissionHMM.fit`. The history has the penalty of `ridge` taken off.

        An E-step keeps p(z_t, z_{t+1} given x) of all data, (frames, K, K).
        """
        if context is not None and isinstance(data, Tensor):
            data = self._joined(data, context)
        elif context is not None:
            if not isinstance(data, list | tuple) or len(data) != len(context):
                raise ValueError("context: expected a list of as many tensors as data, or one beside a tensor")
            data = [self._joined(*pair) for pair in zip(data, context, strict=True)]
        return super().fit(data, lengths, **options)

    def partial_fit(self, x: Any, lengths: Any = None, **options: Any) -> float:
        """Not there: the M-step of logistic transitions needs all frames."""
        raise NotImplementedError("partial_fit: transitions that depend on inputs have no running statistics; use fit")

    @torch.no_grad()
    def sample(
        self,
        num_steps: int,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States and observations drawn from the model, given inputs.

        Args:
            num_steps: T.
            batch_size: number of independent sequences.
            generator: source of randomness; default torch's global one.
            context: (T, P), or (batch_size, T, P).

        Returns:
            As `EmissionHMM.sample`.
        """
        batch = () if batch_size is None else (batch_size,)
        shapes = {(num_steps, self.context_dim), (*batch, num_steps, self.context_dim)}
        if context is None or tuple(context.shape) not in shapes:
            found = None if context is None else tuple(context.shape)
            raise ValueError(f"context: expected shape {' or '.join(map(str, sorted(shapes)))}, got {found}")
        rng = torch.default_generator if generator is None else generator
        states: Tensor = hf.sample(
            self.log_initial,
            self.transitions(context.to(self.log_initial)),
            num_steps=num_steps,
            rng=rng,
            batch_shape=batch if context.ndim == 2 else (),
        )
        return states, self.emission.sample(self._laws_of(states), rng)

    def _joined(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Observations with the inputs beside them."""
        if context is None:
            if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[-1] != self.frame_shape[0]:
                raise ValueError(
                    f"context: expected (..., T, {self.context_dim}), or x (..., T, {self.frame_shape[0]}) with it"
                )
            return x
        rank = len(self.emission.law.frame_shape)
        need_frames("x", x, self.emission.law.frame_shape)
        need_frames("context", context, (self.context_dim,))
        shape = (*x.shape[: x.ndim - rank], self.context_dim)
        if tuple(context.shape) != shape:
            raise ValueError(f"context: expected shape {shape}, frames as x has them, got {tuple(context.shape)}")
        own, context = x if rank else x[..., None], widened(context)
        dtype = torch.promote_types(own.dtype, context.dtype)
        return torch.cat([own.to(dtype), context.to(dtype)], -1)

    def _inputs(self, x: Tensor) -> Tensor:
        """Inputs (..., T, P) of joined observations."""
        return widened(x[..., -self.context_dim :])

    def _transitions(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return self.transitions(self._inputs(x), lengths)

    def _prepare(self, x: Tensor, lengths: Any, name: str = "x") -> tuple[Tensor, Tensor | None, Tensor | None]:
        need_frames(name, x, self.frame_shape)
        is_valid: Tensor | None = None
        if lengths is not None:
            lengths = lengths_like(lengths, x, tuple(x.shape[:-2]), x.shape[-2])
            is_valid = torch.arange(x.shape[-2], device=x.device) < lengths[..., None]
        finite = (-torch.inf, torch.inf)
        remedy = "pass lengths= if it is padding"
        need_support("context", x[..., -self.context_dim :], 1, finite, is_valid, "finite inputs", remedy)
        found, lengths, is_missing = super()._prepare(x, lengths, name)
        if self._marginalizes:  # frames of which nothing but the inputs is known
            is_missing = x[..., : -self.context_dim].isnan().all(-1)
            blank = torch.as_tensor(self._blank(), device=x.device).to(found.dtype)
            found = torch.where(is_missing[..., None], blank, found)
        return found, lengths, is_missing

    def _initialize(self, *args: Any) -> Self:
        super()._initialize(*args)
        if self.learnable:
            self.transition_slopes.take(torch.zeros(self.transition_slopes.shape))
        return self

    def _live(self) -> HMMParameters:
        law = hf.LogisticTransitions(self.transition_weights, self.log_transition)
        return super()._live()._replace(log_transition=law)

    def _named(self, parameters: HMMParameters) -> dict[str, Any]:
        weights, biases = parameters.log_transition
        return {**super()._named(parameters), "log_transition": biases, "transition_weights": weights}

    def _parametrized(self) -> dict[str, Parametrized]:
        own = super()._parametrized()
        chain = {name: own.pop(name) for name in HMMParameters._fields[:2]}
        return {**chain, "transition_weights": self.transition_slopes, **own}

    def _arguments(self) -> dict[str, Any]:
        own = {"emission": self.emission.law, "context_dim": self.context_dim, "ridge": self.ridge}
        return {**super()._arguments(), **own}

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        ridge = f", ridge={self.ridge:g}" if self.ridge else ""
        return f"{super().extra_repr()}, context_dim={self.context_dim}{ridge}"
