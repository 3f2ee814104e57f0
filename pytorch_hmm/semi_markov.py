"""Hidden semi-Markov models: states that last as long as a law of their own says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional._check import need_count
from hmm_functional.learning import HMMParameters

from ._check import is_traced, log_of, need_normalised
from .duration import DURATIONS, Duration, Limit
from .emission import Emission, of_emission
from .gaussian import GaussianEmission
from .hmm import ChainFunctions, Topology
from .parametrize import CovarianceType, LogProbabilities, Parametrized
from .trainable import EmissionHMM, EmissionOptions, num_laws

DurationName = Literal["categorical", "poisson", "negative_binomial", "gamma", "gaussian", "geometric", "uniform"]

SEMI_MARKOV = ChainFunctions(
    hf.semi_markov_log_likelihood,
    hf.semi_markov_forward_backward,
    hf.semi_markov_forward,
    hf.semi_markov_viterbi,
)


class Segments(NamedTuple):
    """The segments of the most probable segmentation, S at most, in order; -1 where a sequence has fewer."""

    states: Tensor
    """(..., S) int64"""
    starts: Tensor
    """(..., S) int64: the first frame of each."""
    durations: Tensor
    """(..., S) int64: frames within the sequence."""
    log_joint: Tensor
    """(...): log p(x, segmentation)."""


class HSMM(EmissionHMM):
    """A hidden semi-Markov model: a chain of segments, each of a state that lasts as long as its duration law says.

    Args:
        num_states: K.
        obs_dim: D of Gaussian emissions; None with `emission`.
        max_duration: the longest that a state can last, steps, a number or one for each state; None with a `Duration`.
        duration: "categorical", "poisson", "negative_binomial", "gamma", "gaussian", "geometric", "uniform", or a
            `Duration`.
        emission: what the states emit, any `Emission`, instead of Gaussians.
        covariance_type, means, covariances: of the Gaussians, as `GaussianHMM`'s.
        min_duration: the shortest, as `max_duration`.
        censored: whether the last segment may run on past the end of a sequence; False where it ends with it.
        reaches_end: whether every sequence ends in a state without a way out, as whole utterances of a left-to-right
            model do; what stops before is impossible then. Filters and streams know no end.
        options: as `EmissionHMM`. `transition` is between segments: its diagonal is 0 and stays so; a row of zeros is a
            state that only comes last. Topology "left_to_right" goes on by one, "ergodic" to any other state;
            `self_loop` has no meaning here.

    Raises:
        ValueError: an argument that is no model.

    Names of its parameters for `fix` and `frozen` are those of the emission, and those of the duration law after
    "duration_", such as "duration_rates".

    A sequence that no segmentation fits, such as one longer than a left-to-right model's longest durations together,
    has log p -inf, posteriors 0 and no segments.

    Every method takes time in O(B T K (D_max + K)). `filter` gives the state with the last segment open.

    Attributes:
        emission, duration: the laws.

    References: Ferguson 1980; Levinson 1986; Yu 2010.

    Example:
        >>> import torch
        >>> hsmm = HSMM(2, obs_dim=1, max_duration=4, min_duration=2, means=[[-1.0], [1.0]])
        >>> hsmm.viterbi_segments(torch.tensor([[-1.2], [-0.8], [-0.3], [1.1], [0.9]])).durations
        tensor([3, 2])
    """

    _functions = SEMI_MARKOV
    _may_end = True

    def __init__(
        self,
        num_states: int,
        obs_dim: int | None = None,
        max_duration: Limit | None = None,
        duration: DurationName | Duration = "categorical",
        *,
        emission: Emission | None = None,
        covariance_type: CovarianceType | None = None,
        means: Any = None,
        covariances: Any = None,
        min_duration: Limit | None = None,
        censored: bool = True,
        reaches_end: bool = False,
        **options: Unpack[EmissionOptions],
    ) -> None:
        laws = num_laws(num_states, options.get("tied_states"))
        if emission is None:
            if obs_dim is None:
                raise ValueError("obs_dim: expected a number of features, or an emission, got neither")
            emission = GaussianEmission(laws, obs_dim, covariance_type or "diag", means=means, covariances=covariances)
        else:
            given = {"covariance_type": covariance_type, "means": means, "covariances": covariances}
            if any(value is not None for value in given.values()):
                raise ValueError("emission: expected it to hold covariance_type, means and covariances, got them, too")
            if obs_dim is not None and (obs_dim,) != emission.frame_shape:
                raise ValueError(f"obs_dim: expected the emission's, frames {emission.frame_shape}, got {obs_dim}")
        super().__init__(num_states, emission, **options)
        self.duration = _duration(num_states, max_duration, duration, min_duration)
        self.censored, self.reaches_end = bool(censored), bool(reaches_end)

    means = of_emission("means", "Means of the emissions that have them; assignable.")
    covariances = of_emission("covariances", "Variances of the emissions that have them; assignable.")

    @property
    def log_duration(self) -> Tensor:
        """log p(duration = d + 1 given the state), (K, D_max), nats."""
        return self.duration.log_prob()

    def viterbi_segments(self, x: Tensor, lengths: Any = None) -> Segments:
        """The most probable segmentation as a list of segments; see `viterbi_decode` for its states step by step."""
        found = self._call(hf.semi_markov_viterbi, x, lengths)
        states, is_start = found.states, found.is_start
        steps = torch.arange(states.shape[-1], device=states.device)
        count = int(is_start.sum(-1).max()) if is_start.numel() else 0
        # starts in order, T where there is none
        place = torch.where(is_start, steps, len(steps)).sort(-1).values[..., :count]
        is_some = place < len(steps)
        index = place.clamp_max(len(steps) - 1)
        ends = (states >= 0).sum(-1, keepdim=True)
        after = torch.cat([place[..., 1:], torch.full_like(place[..., :1], len(steps))], -1)
        durations = torch.minimum(after, ends) - index
        return Segments(
            states.gather(-1, index).where(is_some, -1),
            place.where(is_some, -1),
            durations.where(is_some, -1),
            found.log_joint,
        )

    def duration_posteriors(self, x: Tensor, lengths: Any = None) -> Tensor:
        """Expected number of segments of each state and duration given x, (..., K, D_max).

        Of a segment that the end cuts off, with `censored`, each duration it may have counts with its probability.
        Normalised along the last axis this is the posterior of the durations of each state's segments.
        """
        found = self._call(hf.semi_markov_forward_backward, x, lengths)
        counts: Tensor = found.expected_durations
        if self.censored:
            counts = counts + hf.semi_markov_completed(self.log_duration, found.expected_ends)
        return counts

    @torch.no_grad()
    def sample(
        self, num_steps: int, batch_size: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """States and observations drawn from the model, the last segment cut off at the end.

        Args, returns: as `EmissionHMM.sample`. After the end of a state without a way out, states are -1 and
        observations 0: `(states >= 0).sum(-1)` are the lengths.
        """
        states = self._sample_states(num_steps, batch_size, generator)
        rng = torch.default_generator if generator is None else generator
        x = self.emission.sample(self._laws_of(states.clamp_min(0)), rng)
        is_some = (states >= 0).reshape(*states.shape, *[1] * len(self.frame_shape))
        return states, x.where(is_some, torch.zeros_like(x))

    def _on(self, function: Any, transition: Any, emission: Tensor, lengths: Any, **options: Any) -> Any:
        if function not in SEMI_MARKOV:
            name = getattr(function, "__name__", function)
            raise NotImplementedError(f"{type(self).__name__}: {name} is for states without durations of their own")
        if self.reaches_end and function is not hf.semi_markov_forward:
            is_allowed = self._ending(None, tuple(emission.shape[:-1]), lengths)
            emission = hf.restrict_states(emission, is_allowed)
        return function(
            self.log_initial,
            transition,
            self.log_duration.to(emission.dtype),
            emission,
            lengths=lengths,
            censored=self.censored,
            **options,
        )

    def _ending(self, is_allowed: Tensor | None, shape: tuple[int, ...], lengths: Tensor | None) -> Tensor | None:
        if not self.reaches_end:
            return is_allowed
        is_last = ~self.transition_distribution.is_possible.any(-1)
        if not is_traced(is_last) and not is_last.any():
            raise ValueError("reaches_end: expected a state without a way out, such as the last of 'left_to_right'")
        steps = torch.arange(shape[-1], device=is_last.device).expand(shape)
        ends = shape[-1] if lengths is None else lengths[..., None]
        found = (steps != ends - 1)[..., None] | is_last
        return found if is_allowed is None else found & is_allowed

    def _sample_states(self, num_steps: int, batch_size: int | None, generator: torch.Generator | None) -> Tensor:
        return hf.semi_markov_sample(  # type: ignore[no-any-return]
            self.log_initial,
            self.log_transition,
            self.log_duration,
            num_steps=num_steps,
            rng=torch.default_generator if generator is None else generator,
            batch_shape=() if batch_size is None else (batch_size,),
        ).states

    def _chain_start(
        self, initial: Any, transition: Any, topology: Topology | None, self_loop: float | None
    ) -> tuple[Tensor, Tensor]:
        if self_loop is not None:
            raise ValueError("self_loop: expected none, states last as their duration law says")
        size = self.num_states
        if transition is None:
            if topology not in (None, "ergodic", "left_to_right"):
                raise ValueError(f"topology: expected None, 'left_to_right' or 'ergodic', got {topology!r}")
            p = torch.ones(size, size, dtype=torch.float64).fill_diagonal_(0.0) / max(size - 1, 1)
            if topology == "left_to_right":
                p = torch.ones(size, dtype=torch.float64)[1:].diag_embed(1) if size > 1 else torch.zeros(1, 1)
            start, _ = super()._chain_start(initial, None, topology, None)
            return start, p.double().log()
        start, _ = super()._chain_start(initial, None, None, None)
        if topology is not None:
            raise ValueError("topology: expected either topology or transition, got both")
        moves = log_of("transition", transition, (size, size), "(K, K)", may_end=True)
        return start, _checked_moves("transition", moves)

    def _make_moves(self, start: Tensor) -> SegmentMoves:
        return SegmentMoves(start, "(K, K)", self.learnable)

    def _live(self) -> HMMParameters:
        return super()._live()._replace(duration=self.duration.values())

    def _named(self, parameters: HMMParameters) -> dict[str, Any]:
        own = self.duration.named(parameters.duration)
        return {**super()._named(parameters), **{self.duration.prefix + name: value for name, value in own.items()}}

    def _duration_family(self, concentration: Any = 1.0) -> Any:
        return self.duration.family(concentration)

    def _fixed_durations(self, frozen: Collection[str]) -> Any:
        return self.duration.fixed(frozen)

    def _start_durations(self, states: Tensor) -> None:
        """Durations of the runs in states (..., T), -1 where there is none."""
        flat = states.reshape(-1, states.shape[-1])
        gap = torch.full_like(flat[:, :1], -1)
        flat = torch.cat([flat, gap], -1).reshape(-1)
        runs, lasted = torch.unique_consecutive(flat, return_counts=True)
        count = self.log_duration.shape[-1]
        lasted, runs = lasted[runs >= 0].clamp_max(count) - 1, runs[runs >= 0]
        counts = torch.bincount(runs * count + lasted, minlength=self.num_states * count)
        self.duration.initialize(counts.reshape(self.num_states, count))

    def _parametrized(self) -> dict[str, Parametrized]:
        own = {self.duration.prefix + name: one for name, one in self.duration.parametrized().items()}
        return {**super()._parametrized(), **own}

    def _arguments(self) -> dict[str, Any]:
        return {
            **super()._arguments(),
            "duration": self.duration,
            "censored": self.censored,
            "reaches_end": self.reaches_end,
        }

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        end = ", reaches_end=True" if self.reaches_end else ""
        return f"{super().extra_repr()}, censored={self.censored}{end}"


class DurationConstrainedHMM(HSMM):
    """An HMM whose states last at least and at most so many steps, all durations between being alike.

    Args:
        num_states: K.
        obs_dim: D of Gaussian emissions; None with `emission`.
        min_duration, max_duration: steps, a number or one for each state.
        options: as `HSMM`.

    Example:
        >>> import torch
        >>> hmm = DurationConstrainedHMM(2, obs_dim=1, min_duration=3, max_duration=5, means=[[-1.0], [1.0]])
        >>> hmm.viterbi_decode(torch.tensor([[-1.0], [1.0], [-1.0], [-1.0], [1.0], [1.0]]))[0]
        tensor([0, 0, 0, 0, 1, 1])
    """

    def __init__(
        self,
        num_states: int,
        obs_dim: int | None = None,
        min_duration: Limit = 1,
        max_duration: Limit | None = None,
        *,
        emission: Emission | None = None,
        **options: Any,
    ) -> None:
        if "duration" in options:
            raise ValueError("duration: expected none, all durations from the least to the largest are alike")
        super().__init__(
            num_states, obs_dim, max_duration, "uniform", emission=emission, min_duration=min_duration, **options
        )

    def _arguments(self) -> dict[str, Any]:
        found = super()._arguments()
        law = found.pop("duration").arguments()
        return {**found, "min_duration": law["min_duration"], "max_duration": law["max_duration"]}


class SegmentMoves(LogProbabilities):
    """Of a semi-Markov model: no state follows itself, and one without a way out has a row of zeros."""

    def _checked(self, name: str, values: Tensor) -> Tensor:
        return _checked_moves(name, values)

    def _of(self, logits: Tensor) -> Tensor:
        if self.fixed_values is not None:
            return super()._of(logits)
        has_any = self.is_possible.any(-1, keepdim=True)
        found = torch.where(self.is_possible | ~has_any, logits, -torch.inf).log_softmax(-1)
        return torch.where(self.is_possible, found, -torch.inf)


def _checked_moves(name: str, values: Tensor) -> Tensor:
    """Log-probabilities (K, K) that a user gave, or ValueError."""
    if (values.diagonal() > -torch.inf).any():
        raise ValueError(
            f"{name}: expected zeros on the diagonal (-inf of logs), since durations say how long states last; "
            "fill it so and divide each row by its sum"
        )
    need_normalised(name, values.exp(), "divide each row by its sum", may_end=True)
    return values


def _duration(
    num_states: int, max_duration: Limit | None, duration: str | Duration, min_duration: Limit | None
) -> Duration:
    """The duration law that the arguments ask for."""
    if isinstance(duration, Duration):
        if max_duration is not None or min_duration is not None:
            raise ValueError("duration: expected it to hold max_duration and min_duration, got them, too")
        if duration.num_states != need_count("num_states", num_states, 1):
            raise ValueError(f"duration: expected laws of {num_states} states, got {duration.num_states}")
        return duration
    if duration not in DURATIONS:
        known = ", ".join(map(repr, DURATIONS))
        raise ValueError(f"duration: expected one of {known}, or a Duration, got {duration!r}")
    if max_duration is None:
        raise ValueError("max_duration: expected a number of steps, got None")
    return DURATIONS[duration](num_states, max_duration, 1 if min_duration is None else min_duration)
