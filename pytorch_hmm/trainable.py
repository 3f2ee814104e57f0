"""HMMs that learn: a chain, and an emission law."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from inspect import signature
from typing import Any, Self, Unpack

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional._check import need_count
from hmm_functional.emissions import TiedStates
from hmm_functional.learning import HMMParameters, Priors

from ._check import need_no_prior
from .data import Source, checked_labels
from .emission import Emission
from .fit import Init, Method, fit
from .hmm import BaseHMM, ChainOptions
from .initialize import best_names, count_transitions, uniform_segments
from .parametrize import Parametrized, full_precision
from .report import Callback, FitReport
from .training import Online, Training


class EmissionOptions(ChainOptions, total=False):
    """Keyword arguments of modules whose states may share emission laws; `EmissionHMM` says what they mean."""

    tied_states: Sequence[int] | None


class TrainableHMM(BaseHMM):
    """An HMM that learns from data.

    Args:
        num_states: K.
        emission: what the states emit; each its own law, but for `tied_states`.
        tied_states: (K,) integers 0, 1, ...: states with the same number share their law, and each parameter of the
            emissions has one row a law; default none do.
        options: as `BaseHMM`.

    Attributes:
        emission: the emission law.
    """

    _online: Online | None = None
    _training: type[Training] = Training
    censored = True
    emission: Emission

    def __init__(
        self,
        num_states: int,
        emission: Emission,
        *,
        tied_states: Sequence[int] | None = None,
        **options: Unpack[ChainOptions],
    ) -> None:
        super().__init__(num_states, emission.frame_shape, **options)
        count = num_laws(num_states, tied_states)
        if emission.num_laws != count:
            raise ValueError(f"emission: expected {count} laws, got {emission.num_laws}")
        self.tied_states = None if tied_states is None else tuple(int(k) for k in tied_states)
        self.emission = emission
        if emission.num_lags and self.missing == "nan":
            raise ValueError("missing: expected 'raise' with lags: a frame's density needs those before it")

    @property
    def laws(self) -> Tensor | None:
        """(K,): which law each state has; None where each has its own."""
        if self.tied_states is None:
            return None
        return torch.tensor(self.tied_states, device=self.initial_distribution.logits.device)

    @property
    def _marginalizes(self) -> bool:  # type: ignore[override]
        return self.emission.can_marginalize and self.missing == "nan"

    @property
    def _num_lags(self) -> int:  # type: ignore[override]
        return self.emission.num_lags

    def _blank(self) -> Any:
        return self.emission.blank()

    def _check(self, name: str, x: Tensor, is_read: Tensor | None, remedy: str) -> None:
        self.emission.check(name, x, is_read, remedy)

    @property
    def _options(self) -> dict[str, Any]:
        """What the emission's family takes besides."""
        return {"missing": "marginalize"} if self._marginalizes else {}

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
        towards the whole data. Structural zeros and fixed entries stay, and without `learnable` the chain.

        Args:
            x: (..., T, *frame_shape); unobserved frames and padding are left out.
            lengths: (...) integers 1..T.
            generator: source of randomness; default torch's global one.
            labels: (..., T) integers, the state where it is known, else -1; clusters are numbered to agree with them.

        Returns:
            The module itself.
        """
        return self._initialize(x, lengths, generator, self.emission.label, labels)

    def _initialize(
        self,
        x: Tensor,
        lengths: Any,
        generator: torch.Generator | None,
        label: Callable[..., Tensor],
        labels: Tensor | None = None,
    ) -> Self:
        x, steps, ends, is_read = self._read(x, lengths)
        rng = torch.default_generator if generator is None else generator
        shape = steps.shape
        if labels is not None:
            labels = checked_labels(labels, ends, tuple(shape), self.num_states).where(is_read, -1)
        frames = _completed(self.emission.context(x)[is_read], rng)
        is_allowed = self.transition_distribution.is_allowed
        if self.num_states > 1 and not is_allowed.tril(-1).any():
            states = uniform_segments(steps, ends, self.num_states)
        else:
            states = torch.zeros_like(steps)
            if self.tied_states is None:
                states[is_read] = label(frames, self.num_states, rng)
            else:  # clusters are laws, whose frames go to their states by chance
                states[is_read] = _one_of(self.tied_states, label(frames, self.emission.num_laws, rng), rng)
            if labels is not None:
                states = _renamed(states, labels, self.num_states)
        if labels is not None:
            states = labels.where(labels >= 0, states)
        states = states.where(is_read, -1)
        if self.learnable:
            first, moves = count_transitions(states.reshape(-1, shape[-1]), self.num_states)
            self.initial_distribution.start(first)
            self.transition_distribution.start(moves)
        self._start_durations(states)
        self.emission.initialize(frames, self._laws_of(states[is_read]), rng)
        return self

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
        return self._initialize(x, lengths, generator, self.emission.label_by_chance, labels)

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
            num_restarts: starts of which the best result is kept. "em" and "viterbi" train as many at once, as one
                batch, as gain by it; one by one where covariances are "tied", emissions have a prior, fixed entries or
                shared laws, or callbacks or a bar watch them.
            sample_weights: (...), how often each sequence counts.
            labels: (..., T) integers, or a list of (T_i,): the state where it is known, else -1.
            priors: Dirichlet priors of the chain, and in `emission` that of the emissions: a `GaussianPrior` for
                Gaussians, that (or None) and concentrations of the weights for mixtures, concentrations for symbols,
                (shape, rate) of a gamma distribution for Poisson rates, (ones, zeros) of a beta distribution for
                Bernoulli probabilities. Default none.
            variance_floor: least variance of Gaussians, a number or (D,); default a millionth of each feature's
                variance in the starting data, which holds back nothing but components that collapse onto single frames.
            frozen: names of parameters that stay as they are, such as "means" or "log_transition"; `fix` keeps single
                entries.
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
        divide by nothing keeps what it had. Structural zeros stay zero, what `fix` fixed stays bit for bit; without
        `learnable` the chain stays as it is.

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
            emission, ends = self._emission(x, lengths)
            emission = hf.restrict_states(emission, is_allowed)
            found: Tensor = self._on(self._functions.log_likelihood, self._transitions(x, ends), emission, ends)
            return found

    def _family(self, variance_floor: Any = 0.0, prior: Any = None) -> Any:
        """The emission family that learning uses."""
        family = self.emission.family(variance_floor, prior, **self._options)
        return family if self.tied_states is None else TiedStates(family, self.tied_states)

    def _fixed(self, frozen: Collection[str]) -> HMMParameters | None:
        """Which entries stay in learning; None for none."""
        chain = [True if name in frozen else self._parametrized()[name].is_fixed for name in HMMParameters._fields[:2]]
        emission = self.emission.fixed(frozen)
        duration = self._fixed_durations(frozen)
        if chain == [None, None] and emission is None and duration is None:
            return None
        return HMMParameters(chain[0], chain[1], emission, duration)

    def _live(self) -> HMMParameters:
        """The parameters, differentiable."""
        return HMMParameters(self.log_initial, self.log_transition, self.emission.values())

    def _named(self, parameters: HMMParameters) -> dict[str, Any]:
        """The values of such parameters by the names of `_parametrized`."""
        return {**parameters._asdict(), **self.emission.named(parameters.emission)}

    def _duration_family(self, concentration: Any = 1.0) -> Any:
        """The family of durations; None of a plain chain."""
        need_no_prior(self, concentration)
        return None

    def _fixed_durations(self, frozen: Collection[str]) -> Any:
        """Which entries of it stay; None for none."""
        return None

    def _ending(self, is_allowed: Tensor | None, shape: tuple[int, ...], lengths: Tensor | None) -> Tensor | None:
        """Which states learning allows, (..., T, K), None for all, where the ends of sequences (..., T) bind, too."""
        return is_allowed

    def _start_durations(self, states: Tensor) -> None:
        """Set it from states (..., T), -1 where there is none."""

    def _laws_of(self, states: Tensor) -> Tensor:
        laws = self.laws
        return states if laws is None else laws[states]

    def _parametrized(self) -> dict[str, Parametrized]:
        return {**super()._parametrized(), **self.emission.parametrized()}

    def _emission_log_prob(self, x: Tensor) -> Tensor:
        found = self.emission.log_prob(x, **self._options)
        laws = self.laws
        return found if laws is None else found[..., laws]

    def _cast(self, x: Tensor) -> Tensor:
        return self.emission.cast(x, self.missing == "nan")

    def _arguments(self) -> dict[str, Any]:
        takes_emission = "emission" in signature(type(self).__init__).parameters
        own = {"emission": self.emission} if takes_emission else self.emission.arguments()
        own.pop("num_laws", None)
        tied = {} if self.tied_states is None else {"tied_states": list(self.tied_states)}
        return {**super()._arguments(), **own, **tied}

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        tied = "" if self.tied_states is None else f", tied_states={list(self.tied_states)}"
        return super().extra_repr() + tied


class EmissionHMM(TrainableHMM):
    """An HMM with an emission law of its own: it can be sampled from.

    Args:
        num_states: K.
        emission: what the states emit, such as a `GaussianEmission` of as many laws, or a `ProductEmission`.
        tied_states: (K,) integers 0, 1, ...: states with the same number share their law, and each parameter of the
            emissions has one row a law; default none do.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing`, as `BaseHMM`.

    Example:
        >>> import torch
        >>> from pytorch_hmm import CategoricalEmission, GaussianEmission, ProductEmission
        >>> hmm = EmissionHMM(3, ProductEmission([GaussianEmission(3, obs_dim=2), CategoricalEmission(3, 5)]))
        >>> states, x = hmm.sample(num_steps=10)
        >>> x.shape
        torch.Size([10, 3])
    """

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
        rng = torch.default_generator if generator is None else generator
        return states, self.emission.sample(self._laws_of(states), rng)


def num_laws(num_states: int, tied_states: Sequence[int] | None) -> int:
    """How many emission laws states have between them.

    Raises:
        ValueError: not one integer for each state, or numbers left out.
    """
    need_count("num_states", num_states, 1)
    if tied_states is None:
        return num_states
    is_whole = all(not isinstance(k, str) and k == int(k) for k in tied_states)
    numbers = [int(k) for k in tied_states] if is_whole else []
    if len(numbers) != num_states or sorted(set(numbers)) != list(range(max(numbers) + 1)):
        raise ValueError(
            f"tied_states: expected {num_states} integers that leave none of 0, 1, ... out, got {list(tied_states)}"
        )
    return max(numbers) + 1


def _completed(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Frames (N, ...) where numbers of the same feature, drawn from those that were observed, stand for NaN."""
    if not frames.is_floating_point() or not frames.isnan().any():
        return frames
    found = frames.clone()
    for d in range(frames.shape[-1]):
        column = frames[:, d]
        is_nan = column.isnan()
        if is_nan.all():
            raise ValueError(f"x: expected every feature to be observed somewhere, feature {d} never is")
        seen = column[~is_nan]
        drawn = torch.randint(len(seen), (int(is_nan.sum()),), generator=rng, device=rng.device)
        found[is_nan, d] = seen[drawn.to(seen.device)]
    return found


def _one_of(tied_states: Sequence[int], laws: Tensor, rng: torch.Generator) -> Tensor:
    """States drawn among those of each law (N,)."""
    numbers = torch.tensor(tied_states)
    members = [(numbers == law).nonzero()[:, 0] for law in range(max(tied_states) + 1)]
    most = max(map(len, members))
    table = torch.stack([one.repeat(most)[:most] for one in members]).to(laws.device)
    counts = torch.tensor([len(one) for one in members]).to(laws.device)
    luck = torch.rand(len(laws), generator=rng, device=rng.device).to(laws.device)
    return table[laws, (luck * counts[laws]).long()]


def _renamed(states: Tensor, labels: Tensor, num_states: int) -> Tensor:
    """States numbered so that as many frames as can be agree with their labels."""
    is_known = (labels >= 0) & (states >= 0)
    pairs = torch.bincount(states[is_known] * num_states + labels[is_known], minlength=num_states**2)
    return best_names(pairs.reshape(num_states, num_states))[states]
