"""HMMs with an emission law of their own: sampling, and a start from data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional.learning import Priors

from .fit import Callback, FitReport, Init, Method, Online, Source, fit
from .hmm import BaseHMM
from .initialize import best_names, count_transitions, kmeans, nearest, uniform_segments
from .parametrize import full_precision


class EmissionHMM(BaseHMM):
    """An HMM with an emission law of its own: it can be sampled from, and started from data.

    A subclass gives `_emission_log_prob`, `_sample_observations` and `_initialize_emission`, and for learning
    `_family`, `_emission_parameters` and `_weights`.
    """

    _online: Online | None = None

    @torch.no_grad()
    def sample(
        self, num_steps: int, batch_size: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """States and observations drawn from the model.

        Args:
            num_steps: T.
            batch_size: number of independent sequences.
            generator: source of randomness; default torch's global one.

        Returns:
            (batch_size, T) int64 and (batch_size, T, *frame_shape), or without the first axis where `batch_size` is
            not given.
        """
        states = self._sample_states(num_steps, batch_size, generator)
        return states, self._sample_observations(states, torch.default_generator if generator is None else generator)

    @torch.no_grad()
    def initialize_from_data(
        self,
        x: Tensor,
        lengths: Any = None,
        *,
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Self:
        """Set all parameters from observations, as a start for learning.

        Frames are given to states by cutting each sequence into equal parts where the transitions only go forward
        (no state leads to a lower one), else by k-means; the parameters are then those of the parts, drawn slightly
        towards the whole data. Structural zeros stay; without `learnable`, initial and transition stay too.

        Args:
            x: (..., T, *frame_shape); unobserved frames and padding are left out.
            lengths: (...) integers 1..T.
            generator: source of randomness; default torch's global one.
            labels: (..., T) integers, the state where it is known, else -1; clusters are numbered to agree with them.

        Returns:
            The module itself.
        """
        return self._initialize(x, lengths, generator, self._label, labels)

    def _initialize(
        self,
        x: Tensor,
        lengths: Any,
        generator: torch.Generator | None,
        label: Callable[..., Tensor],
        labels: Tensor | None = None,
    ) -> Self:
        x, lengths, is_missing = self._prepare(x, lengths)
        rng = torch.default_generator if generator is None else generator
        rank = len(self.frame_shape)
        shape = x.shape[: x.ndim - rank]
        steps = torch.arange(shape[-1], device=x.device).expand(shape)
        ends = torch.full(shape[:-1], shape[-1], device=x.device) if lengths is None else lengths
        is_read = steps < ends[..., None]
        if is_missing is not None:
            is_read = is_read & ~is_missing
        if not is_read.any():
            raise ValueError("x: expected at least one observed frame, got none")
        is_possible = self.transition_distribution.is_possible
        if self.num_states > 1 and not is_possible.tril(-1).any():
            states = uniform_segments(steps, ends, self.num_states)
        else:
            states = torch.zeros_like(steps)
            states[is_read] = label(x[is_read], rng)
            if labels is not None:
                states = _renamed(states, labels, self.num_states)
        if labels is not None:
            states = labels.where(labels >= 0, states)
        states = states.where(is_read, -1)
        if self.learnable:
            first, moves = count_transitions(states.reshape(-1, shape[-1]), self.num_states)
            for distribution, counts in ((self.initial_distribution, first), (self.transition_distribution, moves)):
                weights = (counts + 1.0) * distribution.is_possible
                distribution.assign("counts", (weights / weights.sum(-1, keepdim=True)).log(), "")
        self._initialize_emission(x[is_read], states[is_read], rng)
        return self

    def _label(self, frames: Tensor, rng: torch.Generator) -> Tensor:
        """A state for each of the frames (N, *frame_shape) of a model without order."""
        return kmeans(frames, self.num_states, rng)

    @torch.no_grad()
    def initialize_randomly(
        self,
        x: Tensor,
        lengths: Any = None,
        *,
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Self:
        """The same from frames given to states by chance: a start that differs from one time to the next."""
        return self._initialize(x, lengths, generator, self._label_by_chance, labels)

    def fit(
        self,
        data: Any,
        lengths: Any = None,
        *,
        method: Method = "em",
        num_iterations: int = 100,
        tolerance: float = 1e-2,
        init: Init = "kmeans",
        num_restarts: int = 1,
        sample_weights: Any = None,
        labels: Any = None,
        priors: Priors | None = None,
        variance_floor: Any = None,
        frozen: Collection[str] = (),
        learning_rate: float | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
        generator: torch.Generator | None = None,
    ) -> FitReport:
        """Learn all parameters from data.

        Args:
            data: observations (..., T, *frame_shape); a list of sequences (T_i, *frame_shape); or batches, each x or
                (x, lengths), that can be iterated over again and again, as a DataLoader can: they need not fit memory.
            lengths: (...) integers 1..T, with a tensor.
            method: "em" (Baum-Welch); "viterbi" (the best path instead of expectations); "stepwise" (EM with an M-step
                after each batch); "gradient" (Adam).
            num_iterations: passes over the data, at most.
            tolerance: nats; training stops when a pass gains less. 0 never stops.
            init: "kmeans" and "random" start anew, see `initialize_from_data` and `initialize_randomly`; "keep" goes on
                from the parameters at hand.
            num_restarts: starts of which the best result is kept.
            sample_weights: (...), how often each sequence counts.
            labels: (..., T) integers, or a list of (T_i,): the state where it is known, else -1.
            priors: Dirichlet priors of the chain, and in `emission` that of the emissions: a `GaussianPrior` for
                Gaussians and mixtures, concentrations for symbols, (shape, rate) of a gamma distribution for Poisson
                rates, (ones, zeros) of a beta distribution for Bernoulli probabilities. Default none.
            variance_floor: least variance of Gaussians, a number or (D,); default a millionth of each feature's
                variance in the starting data, which holds back nothing but components that collapse onto single frames.
            frozen: names of parameters that stay as they are, such as "means" or "log_transition".
            learning_rate: of Adam, default 0.05; for "stepwise" the power of its steps (n + 2)^-power, default 0.7.
            callbacks: called with `Progress` after each iteration; one that returns False stops.
            progress: whether to show a bar (needs tqdm).
            generator: source of randomness; default torch's global one.

        Returns:
            `FitReport`: the log-likelihood before each iteration and at the end, why it stopped, seconds, dead states.

        Raises:
            ValueError: unusable arguments, or a sequence that is impossible under the model.

        Warns:
            NotConverged: the last iteration gained more than the tolerance.

        Under torch.distributed every process gives its own data and gets the model of all of them: statistics, or
        gradients, are summed. "stepwise" and "gradient" need equally many batches in each.

        EM computes in float64 and never lowers the likelihood (plus the log density of the priors): a step that would
        divide by nothing keeps what it had. Structural zeros stay zero; without `learnable` the chain stays as it is.

        References: Baum et al. 1970; Dempster, Laird and Rubin 1977; Cappe and Moulines 2009 (stepwise).

        Example:
            >>> import torch
            >>> x = torch.tensor([0.0, 0.1, 5.0, 5.2, 0.2, 5.1])[:, None]
            >>> from pytorch_hmm import GaussianHMM
            >>> hmm = GaussianHMM(2, obs_dim=1)
            >>> hmm.fit(x, generator=torch.Generator().manual_seed(0)).converged
            True
        """
        options = {
            "method": method,
            "num_iterations": num_iterations,
            "tolerance": tolerance,
            "init": init,
            "num_restarts": num_restarts,
            "sample_weights": sample_weights,
            "labels": labels,
            "priors": priors,
            "variance_floor": variance_floor,
            "frozen": frozen,
            "learning_rate": learning_rate,
            "callbacks": callbacks,
            "progress": progress,
            "generator": generator,
        }
        return fit(self, data, lengths, **options)

    def partial_fit(
        self,
        x: Any,
        lengths: Any = None,
        *,
        power: float = 0.7,
        sample_weights: Any = None,
        labels: Any = None,
        priors: Priors | None = None,
        variance_floor: Any = None,
        frozen: Collection[str] = (),
    ) -> float:
        """Learn from some more data, in one step of online EM from the parameters at hand.

        Args:
            x, lengths, sample_weights, labels, priors, variance_floor, frozen: as `fit`'s.
            power: call n counts n^-power of the running statistics; above 0.5 and up to 1.

        Returns:
            log p(x) before the step, nats.

        The first call is a plain EM step. The running statistics belong to the module while it lives and are not saved;
        start from `initialize_from_data` or `fit` on a first batch.

        References: Cappe and Moulines 2009.
        """
        if self._online is None:
            self._online = Online()
        options = {"priors": priors, "variance_floor": variance_floor, "frozen": frozen}
        return self._online.update(self, Source(self, x, lengths, sample_weights, labels), power, options)

    def _restricted(self, x: Tensor, lengths: Any, is_allowed: Tensor) -> Tensor:
        """log p(x) and of states within `is_allowed` (..., T, K)."""
        with full_precision(self.initial_distribution.logits):
            emission, lengths = self._emission(x, lengths)
            emission = hf.restrict_states(emission, is_allowed)
            found: Tensor = hf.log_likelihood(self.log_initial, self.log_transition, emission, lengths=lengths)
            return found

    def _label_by_chance(self, frames: Tensor, rng: torch.Generator) -> Tensor:
        """A state for each of the frames: that of the nearest of K frames drawn by chance."""
        chosen = torch.randperm(len(frames), generator=rng, device=rng.device)[: self.num_states].to(frames.device)
        if frames.ndim == 1 or len(chosen) < self.num_states:
            return torch.randint(self.num_states, frames.shape[:1], generator=rng, device=rng.device).to(frames.device)
        points = frames.double()
        deviations = points.std(0, correction=0)
        points = points / deviations.where(deviations > 0, 1.0)
        return nearest(points, points[chosen])

    @abstractmethod
    def _family(self, variance_floor: Any, prior: Any) -> Any:
        """The emission family that learning uses; `prior` is None or what its class takes."""
        raise NotImplementedError

    @abstractmethod
    def _emission_parameters(self) -> Any:
        """The family's parameters, a NamedTuple whose fields are properties of the module."""
        raise NotImplementedError

    def _storable(self, name: str, value: Tensor) -> Tensor:
        """A parameter of the family as the module can hold it."""
        return value

    def _weights(self) -> dict[str, nn.Parameter]:
        """The module's free parameters, by the names of the properties they make."""
        return {"log_initial": self.initial_distribution.logits, "log_transition": self.transition_distribution.logits}

    @abstractmethod
    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        """Observations (..., T, *frame_shape) drawn given the states (..., T)."""
        raise NotImplementedError

    @abstractmethod
    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        """Set the emission parameters from frames (N, *frame_shape) and their states (N,)."""
        raise NotImplementedError


def _renamed(states: Tensor, labels: Tensor, num_states: int) -> Tensor:
    """States numbered so that as many frames as can be agree with their labels."""
    is_known = (labels >= 0) & (states >= 0)
    pairs = torch.bincount(states[is_known] * num_states + labels[is_known], minlength=num_states**2)
    return best_names(pairs.reshape(num_states, num_states))[states]
